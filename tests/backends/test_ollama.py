"""The Ollama backend: not run against the real program here.

What is said over the wire is tested against a stand-in that keeps state (tests/ollamad.py), written from Ollama's
published server. The tests of `TestServer` run unchanged against the real program where `ollama` is on PATH:
`pytest -m ollama tests/backends/test_ollama.py`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from miyabi_llm.backends.base import Unsupported
from miyabi_llm.backends.ollama import Found, Ollama
from miyabi_llm.backends.ollama_api import rendered
from miyabi_llm.backends.ollama_control import OllamaControl, lend
from miyabi_llm.errors import MiyabiError, ModelMissing, NetworkError, ServerFailed
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.types import Adapter, Artifact, Endpoint, Event, ServeSpec, StoredFile
from tests import ggufs
from tests.ollamad import Ollamad
from tests.serve.conftest import free_port

HELLO = [{"role": "user", "content": "Hello"}]


def stored(folder: Path, **files: bytes) -> tuple[Artifact, dict[str, Path]]:
    """An artifact as the store has it: read-only files named by their hash. `__` in a name is a dot."""
    folder.mkdir(exist_ok=True)
    rows, paths = [], {}
    for key, data in files.items():
        name, sha = key.replace("__", "."), Digest(hashlib.sha256(data).hexdigest())
        paths[name] = folder / sha
        if not paths[name].exists():
            paths[name].write_bytes(data)
            paths[name].chmod(0o444)
        rows.append(StoredFile(name, sha, len(data)))
    ref = ModelRef.parse("hf:Org/Tiny-GGUF:Q8_0")
    return Artifact(ref, "gguf", tuple(rows), "verified", "test", "2026-01-01"), paths


@dataclass
class Bench:
    """A server, its models folder, a model for it, and what the control said."""

    endpoint: Endpoint
    models: Path
    spec: ServeSpec
    fake: Ollamad | None = None

    def control(self) -> OllamaControl:
        return OllamaControl(self.endpoint)

    def add(self, spec: ServeSpec | None = None) -> tuple[str, list[Event]]:
        said: list[Event] = []
        with self.control() as control:
            return control.add(spec or self.spec, said.append), said


def handed(said: list[Event]) -> dict[str, int]:
    (event,) = [e for e in said if e.name == "handed over"]
    return dict(event.data)


def warnings(said: list[Event]) -> list[str]:
    return [e.message for e in said if e.kind == "warning"]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Bench]:
    """The stand-in, with a tiny model that has no weights worth the name."""
    artifact, files = stored(tmp_path / "store", model__gguf=ggufs.tiny())
    models = tmp_path / "models"
    spec = ServeSpec(artifact, files, "hf:Org/Tiny-GGUF:Q8_0", ctx=2048, work=models)
    with Ollamad(models) as server:
        yield Bench(Endpoint(server.url, "", backend="ollama"), models, spec, server)


def _real(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """The program on PATH with a folder of its own, and a small real model."""
    program = shutil.which("ollama")
    if program is None:
        pytest.skip("no ollama on PATH")
    artifact: Artifact = request.getfixturevalue("real_artifact")
    files = {artifact.files[0].name: request.getfixturevalue("real_model")}
    models, port = tmp_path / "models", free_port()
    env = os.environ | {"OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_MODELS": str(models), "OLLAMA_NO_CLOUD": "1"}
    with (tmp_path / "log").open("wb") as log, subprocess.Popen([program, "serve"], env=env, stderr=log) as child:
        try:
            endpoint = Endpoint(f"http://127.0.0.1:{port}", "", backend="ollama")
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                try:
                    httpx.get(endpoint.base_url, trust_env=False, timeout=1)
                    break
                except httpx.HTTPError:
                    time.sleep(0.1)
            yield Bench(endpoint, models, ServeSpec(artifact, files, "tiny:test", ctx=2048, work=models))
        finally:
            child.terminate()


@pytest.fixture(params=["stand-in", pytest.param("the real program", marks=pytest.mark.ollama)])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "stand-in":
        yield request.getfixturevalue("fake")
    else:
        yield from _real(tmp_path, request)


class TestServer:
    """What any Ollama does: the same tests for the stand-in and, where it is on PATH, for the real program."""

    def test_a_model_is_lent_loaded_asked_unloaded_deleted(self, bench: Bench) -> None:
        name, said = bench.add()
        size, blob = bench.spec.artifact.size, bench.spec.artifact.files[0]
        assert handed(said) == {"lent": size, "sent": 0, "copied": 0}
        source, lent = bench.spec.files[blob.name].resolve(), bench.models / "blobs" / f"sha256-{blob.sha256}"
        assert not lent.is_symlink()
        assert lent.stat().st_size == size
        assert lent.samefile(source) or lent.stat().st_dev == source.stat().st_dev  # one file, or a clone of it
        with bench.control() as control:
            assert control.version()
            (state,) = control.models()
            assert (state.name, state.state, state.ctx) == (name, "loaded", 2048)
            assert state.memory
            body = {"model": name, "prompt": "1", "max_tokens": 1}
            assert control.post("/v1/completions", body, timeout=120)["choices"]
            assert name in [m["id"] for m in control.get("/v1/models")["data"]]
            control.unload(name)
            assert [s.state for s in control.models()] == ["unloaded"]
            assert control.load(name, ctx=1024, keep_s=0).ctx == 1024
            control.delete(name)
            assert control.models() == ()
        assert source.exists()

    def test_it_is_handed_over_once(self, bench: Bench) -> None:
        name, _ = bench.add()
        again, said = bench.add()
        assert again == name
        assert handed(said) == {"lent": 0, "sent": 0, "copied": 0}
        other, said = bench.add(replace(bench.spec, ctx=1024))
        assert other == name
        assert handed(said)["lent"] == bench.spec.artifact.size
        with bench.control() as control:
            assert [s.ctx for s in control.models()] == [1024]

    def test_where_the_folder_is_out_of_reach_the_bytes_are_sent(self, bench: Bench) -> None:
        name, said = bench.add(replace(bench.spec, work=None))
        assert handed(said)["sent"] == bench.spec.artifact.size
        assert handed(said)["copied"] >= bench.spec.artifact.size
        uploads = [e for e in said if e.kind == "progress" and e.name == "upload"]
        assert uploads[-1].done == uploads[-1].total == bench.spec.artifact.size
        with bench.control() as control:
            assert [s.name for s in control.models()] == [name]

    def test_the_wrong_folder_is_noticed_and_left_clean(self, bench: Bench, tmp_path: Path) -> None:
        (tmp_path / "elsewhere/blobs").mkdir(parents=True)
        _, said = bench.add(replace(bench.spec, work=tmp_path / "elsewhere"))
        assert handed(said)["sent"] == bench.spec.artifact.size
        assert not [p for p in (tmp_path / "elsewhere").rglob("*") if p.is_file() and p.stat().st_size > 4096]

    def test_a_name_it_does_not_know(self, bench: Bench) -> None:
        with bench.control() as control:
            for call in (control.load, control.unload, control.delete):
                with pytest.raises(ModelMissing):
                    call("no-such-model:1b")

    def test_bytes_that_are_not_what_they_say(self, bench: Bench, tmp_path: Path) -> None:
        (tmp_path / "other").write_bytes(b"other bytes")
        with bench.control() as control, pytest.raises(ServerFailed, match=r"400.*mismatch"):
            control.upload("0" * 64, tmp_path / "other", lambda e: None)

    def test_a_file_that_is_no_model(self, bench: Bench, tmp_path: Path) -> None:
        artifact, files = stored(tmp_path / "bad", model__gguf=b"not a model")
        with pytest.raises(MiyabiError):
            bench.add(replace(bench.spec, artifact=artifact, files=files, work=None))
        with bench.control() as control:
            assert control.models() == ()

    def test_the_prompt_it_would_render(self, bench: Bench) -> None:
        name, _ = bench.add()
        assert "Hello" in rendered(replace(bench.endpoint, model=name), HELLO)


class TestErrors:
    """Errors of the server, of the stand-in only."""

    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            ("late-error", "tensor out of bounds"),
            ("early-error", "no space left on device"),
            ("no-success", "before it said success.*writing manifest"),
            ("garbage", "<html>"),
        ],
    )
    def test_an_error_inside_a_good_answer_is_an_error(self, fake: Bench, fault: str, words: str) -> None:
        assert fake.fake is not None
        fake.fake.faults = {fault}
        with pytest.raises(ServerFailed, match=words):
            fake.add(replace(fake.spec, work=None))

    def test_a_stream_that_is_cut(self, fake: Bench) -> None:
        assert fake.fake is not None
        fake.fake.faults = {"cut"}
        with pytest.raises(NetworkError, match="/api/create"):
            fake.add(replace(fake.spec, work=None))

    def test_what_was_made_is_compared_and_removed_when_it_differs(self, fake: Bench) -> None:
        assert fake.fake is not None
        fake.fake.faults = {"wrong-model"}
        with pytest.raises(ServerFailed, match=r"parameters \d+, given \d+"):
            fake.add()
        with fake.control() as control:
            assert control.models() == ()

    def test_alarms(self, fake: Bench) -> None:
        assert fake.fake is not None
        fake.fake.faults = {"half-gpu", "small-ctx"}
        gpu, ctx = warnings(fake.add()[1])
        assert "only 49% of it is on the GPU" in gpu or "only 50% of it is on the GPU" in gpu
        assert "1024 tokens, not the 2048" in ctx
        fake.fake.faults = set()
        assert "there is a GPU" in warnings(fake.add(replace(fake.spec, gpus=1, ctx=512))[1])[0]
        assert warnings(fake.add(replace(fake.spec, ctx=256))[1]) == []

    def test_an_old_server_copies_and_is_warned_about(self, fake: Bench) -> None:
        assert fake.fake is not None
        fake.fake.faults = {"old"}
        _, said = fake.add()
        assert handed(said)["copied"]
        assert "update it to 0.30" in warnings(said)[0]

    def test_a_server_that_cannot_make_one_model_of_another_imports_it(self, fake: Bench) -> None:
        assert fake.fake is not None
        fake.fake.faults = {"from-fails"}
        _, said = fake.add()
        assert "operation not permitted" in warnings(said)[0]
        assert handed(said)["copied"]
        with fake.control() as control:
            assert [s.name for s in control.models()] == ["miyabi/tiny-gguf:q8_0"]

    def test_models_that_run_elsewhere_are_refused(self, fake: Bench) -> None:
        assert fake.fake is not None
        fake.fake.stub("big:1t", "https://ollama.com:443")
        fake.fake.remote["sly"] = "https://ollama.com:443"
        with fake.control() as control:
            assert control.models() == ()
            for call in (lambda: control.load("big:1t"), lambda: control.load("gpt-oss:120b-cloud")):
                with pytest.raises(Unsupported, match="does not run on this machine"):
                    call()
            for name in ("gpt-oss:cloud", "sly"):
                with pytest.raises(Unsupported, match="does not run on this machine"):
                    control.pull(name, lambda e: None)
            assert [r.name for r in control.tags()] == ["big:1t"]
        fake.fake.stub("miyabi/tiny-gguf:q8_0", "https://ollama.com:443")
        with pytest.raises(Unsupported, match=r"ollama\.com"):
            fake.add()

    def test_a_prompt_that_is_not_told(self, fake: Bench) -> None:
        assert fake.fake is not None
        name, _ = fake.add()
        fake.fake.faults = {"no-debug"}
        with pytest.raises(ServerFailed, match="does not tell the prompt"):
            rendered(replace(fake.endpoint, model=name), HELLO)

    def test_nobody_there(self) -> None:
        with OllamaControl(Endpoint(f"http://127.0.0.1:{free_port()}", "m")) as control:
            for call in (control.version, control.models, lambda: control.has_blob("0" * 64)):
                with pytest.raises(NetworkError):
                    call()


class TestModels:
    """What becomes of a model's files."""

    def test_pull_tells_its_progress_and_its_errors(self, fake: Bench) -> None:
        assert fake.fake is not None
        fake.fake.pulls["small:1b"] = ggufs.tiny()
        said: list[Event] = []
        with fake.control() as control:
            control.pull("small:1b", said.append)
            assert [s.name for s in control.models()] == ["small:1b"]
            assert [e.done for e in said if e.kind == "progress"][-1] == len(ggufs.tiny())
            with pytest.raises(ServerFailed, match="file does not exist"):
                control.pull("none:1b", said.append)

    def test_a_model_in_parts_names_all_of_them(self, fake: Bench, tmp_path: Path) -> None:
        assert fake.fake is not None
        keys = {"general.architecture": "llama", "split.count": 2, "split.tensors.count": 2}
        row = ("t.weight", (64,), 0, 256)
        parts = [ggufs.model(keys | {"split.no": i}, [(f"{i}{row[0]}", *row[1:])]) for i in (0, 1)]
        names = {f"m-0000{i + 1}-of-00002__gguf": data for i, data in enumerate(parts)}
        artifact, files = stored(tmp_path / "parts", **names)
        fake.fake.faults = {"late-error"}  # the stand-in cannot join them; that all are named is what counts
        with pytest.raises(ServerFailed, match="out of bounds"):
            fake.add(replace(fake.spec, artifact=artifact, files=files))
        (body,) = [b for _, path, b in fake.fake.heard if path == "/api/create"]
        assert sorted(body["files"]) == sorted(files)
        assert all((fake.models / "blobs" / f"sha256-{f.sha256}").exists() for f in artifact.files)

    @pytest.mark.parametrize("shared", [True, False])
    def test_what_came_from_ollama_keeps_its_template(self, fake: Bench, tmp_path: Path, shared: bool) -> None:
        assert fake.fake is not None
        texts = {"template": b"{{ .Prompt }}", "system": b"Be kind.", "params__json": b'{"stop":["x"],"num_ctx":9}'}
        artifact, files = stored(tmp_path / "o", model__gguf=ggufs.tiny(), **texts)
        spec = replace(fake.spec, artifact=artifact, files=files, work=fake.models if shared else None)
        name, _ = fake.add(spec)
        assert fake.fake.store.params(name) == {"stop": ["x"], "num_ctx": 2048}
        assert fake.fake.show(name)["template"] == "{{ .Prompt }}"
        assert [p.read_bytes() for p in fake.fake.store.layers(name, "system")] == [b"Be kind."]

    def test_one_adapter(self, fake: Bench, tmp_path: Path) -> None:
        assert fake.fake is not None
        for name in "ab":
            (tmp_path / f"{name}.gguf").write_bytes(ggufs.model({"general.type": "adapter", "name": name}))
        a, b = (Adapter(n, tmp_path / f"{n}.gguf") for n in "ab")
        name, _ = fake.add(replace(fake.spec, adapters=(a,)))
        assert [p.read_bytes() for p in fake.fake.store.layers(name, "adapter")] == [a.path.read_bytes()]
        assert handed(fake.add()[1])["lent"]  # the same model without it is made anew
        assert not fake.fake.store.layers(name, "adapter")
        with pytest.raises(Unsupported, match="one adapter"):
            fake.add(replace(fake.spec, adapters=(a, b)))
        with pytest.raises(Unsupported, match="no GGUF file"):
            fake.add(replace(fake.spec, adapters=(Adapter("peft", tmp_path),)))

    def test_a_server_of_our_own_uses_the_plain_name_and_our_threads(self, fake: Bench) -> None:
        assert fake.fake is not None
        name, _ = fake.add(replace(fake.spec, attach=False, threads=3, keep_s=0))
        assert name == "tiny-gguf:q8_0"
        assert fake.fake.store.params(name) == {"num_ctx": 2048, "num_thread": 3}
        with fake.control() as control:
            (state,) = control.models()
        assert state.expires is not None
        assert int(state.expires[:4]) > 2100

    def test_an_owners_model_is_never_replaced(self, fake: Bench) -> None:
        assert fake.fake is not None
        fake.fake.pulls["tiny:latest"] = ggufs.tiny(tokens=50)
        with fake.control() as control:
            control.pull("tiny:latest", lambda e: None)
            before = control.show("tiny")
            name, _ = fake.add(replace(fake.spec, alias="tiny"))
            assert name == "miyabi/tiny:latest"
            assert control.show("tiny") == before

    def test_lending_is_whole_or_nothing(self, tmp_path: Path) -> None:
        source, folder = tmp_path / "a", tmp_path / "blobs"
        source.write_bytes(b"x" * 100)
        folder.mkdir()
        assert lend(source, folder / "sha256-1")
        assert lend(source, folder / "sha256-1")  # two names of one file: a rename between them does nothing
        assert [p.name for p in folder.iterdir()] == ["sha256-1"]
        assert not lend(source, tmp_path / "none" / "sha256-1")
        assert not lend(tmp_path / "gone", folder / "sha256-2")
        assert [p.name for p in folder.iterdir()] == ["sha256-1"]


def test_the_backend_hands_out_the_control(fake: Bench) -> None:
    with Ollama().control(fake.endpoint) as control:
        assert isinstance(control, OllamaControl)
        assert control.cloud_disabled() is False
    assert Found("ollama", True).models is None
