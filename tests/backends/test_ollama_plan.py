"""Ollama before a server is asked for anything: found, planned, installed, its words read. Not the real program."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.backends import ollama_values as values
from miyabi_llm.backends import ollama_words as words
from miyabi_llm.backends.base import InstallOptions, Unsupported
from miyabi_llm.backends.ollama import Found, Ollama, parse_version
from miyabi_llm.errors import BackendMissing, MiyabiError, ServerFailed
from miyabi_llm.refs import ModelRef
from miyabi_llm.tools.program import Program
from miyabi_llm.types import Adapter, Artifact, Endpoint, Secret, ServeSpec, StoredFile, silent
from tests.ollamad import VERSION, Ollamad, program
from tests.serve.conftest import free_port
from tests.tools.stubs import script, settings

PROGRAM = Program("ollama", Path("/o/ollama"), ("/o/ollama", "serve"), "0.33.1", "path")
RUNS = Endpoint("http://127.0.0.1:11434", "", ("openai",), backend="ollama")
FOUND = Found("ollama", True, program=PROGRAM, version="0.33.1", models=Path("/home/me/.ollama/models"))
RUNNING = replace(FOUND, running=RUNS)


def spec(**more: Any) -> ServeSpec:
    file = StoredFile("m.gguf", "0" * 64, 1)  # type: ignore[arg-type]
    artifact = Artifact(ModelRef.parse("hf:a/b/m.gguf"), "gguf", (file,), "verified", "test", "2026-01-01")
    made = ServeSpec(artifact, {"m.gguf": Path("/s/m")}, "qwen2.5-coder:1.5b", port=8099, work=Path("/w"))
    return replace(made, **more)


class TestPlan:
    def test_a_server_of_our_own(self) -> None:
        plan = Ollama().plan(spec(ctx=4096, kv_type="q8_0", parallel=2, keep_s=60), FOUND)
        assert plan.argv == ("/o/ollama", "serve")
        assert plan.env == {
            "OLLAMA_HOST": "127.0.0.1:8099",
            "OLLAMA_MODELS": "/w/ollama",
            "OLLAMA_CONTEXT_LENGTH": "4096",
            "OLLAMA_KEEP_ALIVE": "60s",
            "OLLAMA_NUM_PARALLEL": "2",
            "OLLAMA_KV_CACHE_TYPE": "q8_0",
            "OLLAMA_FLASH_ATTENTION": "1",
            "OLLAMA_NOPRUNE": "1",
            "OLLAMA_NO_CLOUD": "1",
        }
        assert (plan.health_path, plan.ctx) == ("/", 4096)
        assert plan.endpoint.base_url == "http://127.0.0.1:8099"
        assert plan.endpoint.model == "qwen2.5-coder:1.5b"
        assert plan.links == {Path(f"/w/ollama/blobs/sha256-{'0' * 64}"): Path("/s/m")}
        assert plan.handover is not None
        assert (plan.handover.work, plan.handover.attach) == (Path("/w/ollama"), False)

    def test_one_that_runs_is_attached_to(self) -> None:
        plan = Ollama().plan(spec(), RUNNING)
        assert plan.argv is None
        assert plan.env == {}
        assert plan.endpoint == replace(RUNS, model="miyabi/qwen2.5-coder:1.5b")
        assert plan.handover is not None
        assert (plan.handover.work, plan.handover.ctx) == (FOUND.models, 8192)
        assert "left running" in plan.notes[-1]
        assert Ollama().plan(spec(attach=False), RUNNING).argv is not None

    def test_a_name_with_and_without_a_folder_of_its_own(self) -> None:
        assert Ollama().plan(spec(work=None), FOUND).endpoint.model == "miyabi/qwen2.5-coder:1.5b"
        assert Ollama().plan(spec(host="::1"), FOUND).env["OLLAMA_HOST"] == "[::1]:8099"
        assert Ollama().plan(spec(), FOUND).env["OLLAMA_KEEP_ALIVE"] == "-1"

    def test_a_key_cannot_protect_it(self) -> None:
        plan = Ollama().plan(spec(key=Secret("k")), FOUND)
        assert plan.endpoint.key is None
        assert "demands no key" in plan.notes[0]
        assert plan.handover is not None
        assert plan.handover.key is None
        for host in ("0.0.0.0", "192.168.1.5", "::"):
            with pytest.raises(Unsupported, match="demands no key"):
                Ollama().plan(spec(key=Secret("k"), host=host), FOUND)

    def test_what_it_cannot_do(self) -> None:
        two = tuple(Adapter(n, Path(n)) for n in "ab")
        for more in ({"extra": ("-x",)}, {"nodes": 2}, {"tensor_parallel": 2}, {"kv_type": "q5_1"}, {"adapters": two}):
            with pytest.raises(Unsupported):
                Ollama().plan(spec(**more), FOUND)
        for more in ({"kv_type": "q8_0"}, {"parallel": 4}):
            with pytest.raises(Unsupported, match="set at its start") as e:
                Ollama().plan(spec(**more), RUNNING)
            assert "--port" in (e.value.hint or "")
        with pytest.raises(BackendMissing, match="not installed"):
            Ollama().plan(spec(), replace(FOUND, program=None))
        assert "update it to 0.30" in Ollama().plan(spec(), replace(FOUND, version="0.12.1")).notes[0]


class TestDetect:
    def test_nothing(self, tmp_path: Path) -> None:
        host = f"127.0.0.1:{free_port()}"
        found = Ollama().detect(settings(tmp_path, OLLAMA_HOST=host))
        assert not found.ok
        assert found.reason == f"is not installed; no server answers on http://{host}"

    def test_a_program_and_no_server(self, tmp_path: Path) -> None:
        path = program(tmp_path / "bin")
        found = Ollama().detect(settings(tmp_path, path.parent, OLLAMA_HOST=f"127.0.0.1:{free_port()}"))
        assert found.ok
        assert found.program == Program("ollama", path, (str(path), "serve"), VERSION, "path")
        assert (found.running, found.version, found.reason) == (None, VERSION, "")
        assert found.models == tmp_path / ".ollama/models"

    @pytest.mark.parametrize("text", ["exit 1", "echo hello", "sleep 60"])
    def test_a_program_that_is_none(self, tmp_path: Path, text: str) -> None:
        path = script(tmp_path / "bin/ollama", text)
        found = Ollama().detect(settings(tmp_path, path.parent, OLLAMA_HOST=f"127.0.0.1:{free_port()}"))
        assert not found.ok
        assert [r.path for r in found.rejected] == [path]

    def test_a_running_server_and_whose_it_is(self, tmp_path: Path) -> None:
        with Ollamad(tmp_path / "models") as server:
            where = settings(tmp_path, OLLAMA_HOST=server.url, OLLAMA_MODELS=str(tmp_path / "models"))
            found = Ollama().detect(where)
            assert found.ok
            assert found.running is not None
            assert (found.running.base_url, found.version) == (server.url, VERSION)
            assert found.models == tmp_path / "models"
            assert found.reason == f"runs on {server.url}, not started by us"
            where.run.mkdir(parents=True)
            (where.run / "broken.json").write_text("[")
            (where.run / "x.json").write_text(json.dumps({"backend": "ollama", "base_url": server.url}))
            assert Ollama().detect(where).reason.endswith("started by us")
            assert "not" not in Ollama().detect(where).reason

    def test_a_server_that_is_not_near_is_not_asked(self, tmp_path: Path) -> None:
        for host in ("ollama.com", "https://example.org", "8.8.8.8:11434"):
            found = Ollama().detect(settings(tmp_path, OLLAMA_HOST=host))
            assert found.running is None
            assert "not asked" in found.reason


class TestInstall:
    def test_by_the_package_manager_that_is_here(self, tmp_path: Path) -> None:
        bin_ = tmp_path / "bin"
        made = program(tmp_path / "made")
        script(bin_ / "brew", f'[ "$*" = "install ollama" ] && cp {made} {bin_}/ollama')
        where = settings(tmp_path, bin_, OLLAMA_HOST=f"127.0.0.1:{free_port()}")
        assert Ollama().install(where, silent, InstallOptions()).path == bin_ / "ollama"
        (bin_ / "brew").unlink()
        assert Ollama().install(where, silent, InstallOptions()).path == bin_ / "ollama"  # it is here already

    def test_one_that_fails_says_what_else_there_is(self, tmp_path: Path) -> None:
        script(tmp_path / "bin/brew", "echo no bottle for this machine; exit 1")
        where = settings(tmp_path, tmp_path / "bin", OLLAMA_HOST=f"127.0.0.1:{free_port()}")
        with pytest.raises(MiyabiError, match="no bottle"):
            Ollama().install(where, silent, InstallOptions())

    def test_offline_nothing_is_run(self, tmp_path: Path) -> None:
        script(tmp_path / "bin/brew", f"touch {tmp_path}/ran")
        where = settings(tmp_path, tmp_path / "bin", MIYABI_OFFLINE="1")
        with pytest.raises(BackendMissing, match="offline"):
            Ollama().install(where, silent, InstallOptions())
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("system", ["Linux", "Darwin", "Windows"])
    def test_no_way_runs_a_script_from_the_network_or_becomes_another_user(self, system: str) -> None:
        ways = Ollama().ways(system)
        assert ways[0].kind == "package manager"
        assert any(w.kind == "by hand" for w in ways)
        for way in ways:
            assert not {"sh", "bash", "sudo", "iex", "|"} & set(way.command)
        assert Ollama().ways("Plan9") == ()


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        (":56789", "http://127.0.0.1:56789"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("[::]:8000", "http://[::1]:8000"),
        ("::1", "http://[::1]:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("http://host", "http://host:80"),
        ("https://host/path", "https://host:443"),
        ("host:99999", "http://host:11434"),
        ("host:x", "http://host:11434"),
        ('"localhost"', "http://localhost:11434"),
        ("ollama.com", "https://ollama.com:443"),
    ],
)
def test_addresses_mean_what_ollama_means_by_them(text: str, url: str) -> None:
    """The cases of envconfig/config_test.go that a client can meet."""
    assert values.address(text) == url


@given(st.text(max_size=60))
def test_any_address_is_read(text: str) -> None:
    assert "://" in values.address(text)
    values.host_of(values.address(text))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("ollama version is 0.33.1\n", "0.33.1"),
        ("ollama version is 0.33.1\nWarning: client version is 0.32.0\n", "0.32.0"),
        (
            "Warning: could not connect to a running Ollama instance\nWarning: client version is 0.1.9-rc1\n",
            "0.1.9-rc1",
        ),
        ("zsh: command not found", ""),
        ("", ""),
    ],
)
def test_what_the_program_says_of_itself(text: str, version: str) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("qwen2.5-coder:1.5b", "qwen2.5-coder:1.5b"),
        ("hf:Org/Repo-GGUF:Q4_K_M", "repo-gguf:q4_k_m"),
        ("hf:Org/Repo/My File.gguf", "my-file:latest"),
        ("ollama:llama3:8b", "llama3:8b"),
        ("m", "m:latest"),
        ("m:cloud", "m:cloud-gguf"),
        ("m:120b-cloud", "m:120b-cloud-gguf"),
        ("m:local", "m:local-gguf"),
        ("日本語", "model:latest"),
        ("-x.", "x.:latest"),
        ("", "model:latest"),
    ],
)
def test_names(alias: str, name: str) -> None:
    assert words.model_name(spec(alias=alias, attach=False)) == name
    assert words.model_name(spec(alias=alias)) == f"miyabi/{name}"


@given(st.text(max_size=200))
def test_every_alias_becomes_a_name_ollama_takes(alias: str) -> None:
    name = words.model_name(spec(alias=alias))
    space, _, rest = name.partition("/")
    base, _, tag = rest.partition(":")
    assert space == "miyabi"
    for part in (base, tag):
        assert 1 <= len(part) <= 80
        assert part[0].isalnum() or part[0] == "_"
        assert part.isascii()
        assert set(part) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-")
    assert not values.is_cloud(name)


def test_versions() -> None:
    assert words.renders_gguf("0.30.0") is True
    assert words.renders_gguf("v1.0.0-rc2") is True
    assert words.renders_gguf("0.29.9") is False
    assert words.renders_gguf("0.0.0") is None  # a build from source
    assert words.renders_gguf("unknown") is None
    assert (values.go_seconds(0), values.go_seconds(90), values.go_seconds(0.5)) == ("-1", "90s", "0.5s")
    assert values.same("Foo", "foo:latest")
    assert not values.same("foo:1b", "foo")


def parsed(data: bytes, cuts: list[int]) -> list[Mapping[str, Any]]:
    edges = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    lines, found = values.Ndjson(), []
    for a, b in itertools.pairwise(edges):
        found += lines.feed(data[a:b])
    return [*found, *lines.finish()]


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.floats(allow_nan=False)
objects = st.dictionaries(st.text(max_size=8), scalars | st.lists(scalars, max_size=3), max_size=4)


@given(st.lists(objects, max_size=6), st.lists(st.integers(0, 400), max_size=8), st.booleans())
def test_lines_come_out_as_they_went_in_however_they_are_cut(
    said: list[dict[str, Any]], cuts: list[int], ended: bool
) -> None:
    data = b"\n".join(json.dumps(s).encode() for s in said) + (b"\r\n\n" if ended else b"")
    assert parsed(data, cuts) == said


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
def test_any_bytes_are_lines_of_objects_or_an_error_of_ours(data: bytes, cuts: list[int]) -> None:
    with contextlib.suppress(ServerFailed):
        assert all(isinstance(said, dict) for said in parsed(data, cuts))


def test_a_line_without_end_is_not_kept() -> None:
    lines = values.Ndjson()
    assert list(lines.feed(b"x" * values.LINE_MOST)) == []
    with pytest.raises(ServerFailed, match="more than 8 MiB"):
        list(lines.feed(b"x"))
    assert list(values.Ndjson().feed(b"[" * 100)) == []
    with pytest.raises(ServerFailed):
        list(values.Ndjson().feed(b'{"a":' * 100_000 + b"\n"))


@given(
    st.recursive(scalars, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=12), x), max_leaves=8)
)
def test_whatever_a_server_says_is_read_without_a_crash(said: object) -> None:
    for row in values.read_rows(said) + values.read_rows({"models": [said, {"name": "x", "size": said}]}):
        values.read_row(row)
        values.read_state(row)
    try:
        values.read_shown(said)
        values.read_shown({"model_info": said, "details": said, "modelfile": said, "parameters": said})
    except ServerFailed:
        assert not isinstance(said, dict)


def test_the_environment_of_the_user_does_not_reach_the_plan() -> None:
    assert "OLLAMA_HOST" not in os.environ
    assert values.decode_params("[1]") == {}
    assert values.decode_params("{") == {}
