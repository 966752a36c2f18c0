"""The hub over the wire: its lists, its files, its refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from miyabi_llm.errors import AccessDenied, BadUsage, Corrupt, MiyabiError, ModelMissing, NetworkError, Unsafe
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.sources.hf import HfSource
from miyabi_llm.store import Store
from miyabi_llm.types import RemoteFile, silent
from tests.faultd import OK, Fault, Faultd
from tests.registries import COMMIT, Hub, git_blob, sha
from tests.sources.wires import DATA, QUICK, settings

HF = "hf:org/repo"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Faultd() as server:
        yield Hub(server)


Make = Callable[..., HfSource]


@pytest.fixture
def make(hub: Hub, tmp_path: Path) -> Make:
    def source(token: str = "", **more: object) -> HfSource:
        made = settings(tmp_path, hf_endpoint=hub.server.url, **more)
        env = {"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
        return HfSource(replace(made, env=env), QUICK)

    return source


def fetched(source: HfSource, file: RemoteFile, tmp_path: Path) -> bytes:
    store = Store(tmp_path / "store")
    with store.part(file.sha256 or "0" * 64, file.size) as part:
        source.fetch(file, part, silent)
        blob = part.commit(file.sha256, file.size)
    return store.blob(blob.sha256).read_bytes()


def test_lists_at_a_commit_and_fetches(hub: Hub, make: Make, tmp_path: Path) -> None:
    hub.add("org/repo", {"m-Q4_K_M.gguf": DATA, "README.md": b"hi"}, license="mit")
    source = make()
    listing = source.list(ModelRef.parse(HF))
    assert str(listing.resolved) == f"hf:org/repo@{COMMIT}"
    assert (listing.format, listing.license, listing.size) == ("gguf", "mit", len(DATA))
    (file,) = listing.files
    assert (file.name, file.sha256) == ("m-Q4_K_M.gguf", sha(DATA))
    assert f"/resolve/{COMMIT}/" in file.urls[0]
    assert hub.server.sent == {} or sum(hub.server.sent.values()) < 5000  # a listing brings no model byte
    assert fetched(source, file, tmp_path) == DATA


def test_the_token_goes_to_the_hub_and_not_to_its_storage(hub: Hub, make: Make, tmp_path: Path) -> None:
    with Faultd() as cdn:
        hub.cdn = cdn
        hub.add("org/repo", {"m.gguf": DATA}, token="hf_canary")
        source = make("hf_canary")
        assert fetched(source, source.list(ModelRef.parse(HF)).files[0], tmp_path) == DATA
        assert all(r.headers.get("authorization") == "Bearer hf_canary" for r in hub.server.requests)
        assert cdn.requests
        assert not any("authorization" in r.headers for r in cdn.requests)


def test_without_a_token_none_is_sent(hub: Hub, make: Make) -> None:
    hub.add("org/repo", {"m.gguf": DATA})
    make().list(ModelRef.parse(HF))
    assert not any("authorization" in r.headers for r in hub.server.requests)


def test_wrong_bytes_from_the_storage_are_refused(hub: Hub, make: Make, tmp_path: Path) -> None:
    hub.add("org/repo", {"m.gguf": DATA})
    hub.server.always(f"/cdn/{sha(DATA)}", Fault(flip=5))
    source = make()
    with pytest.raises(Corrupt):
        fetched(source, source.list(ModelRef.parse(HF)).files[0], tmp_path)


def test_a_small_file_is_checked_against_its_git_blob(hub: Hub, make: Make, tmp_path: Path) -> None:
    config = json.dumps({"a": 1}).encode()
    hub.add("org/repo", {"model.safetensors": DATA, "config.json": config})
    source = make()
    file = next(f for f in source.list(ModelRef.parse(HF)).files if f.name == "config.json")
    assert file.sha256 is None
    assert fetched(source, file, tmp_path) == config
    hub.server.always(f"/org/repo/resolve/{COMMIT}/config.json", Fault(flip=2))
    with pytest.raises(Corrupt, match=git_blob(config)):
        fetched(source, file, tmp_path / "again")
    hub.server.always(f"/org/repo/resolve/{COMMIT}/config.json", Fault())
    hub.server.script(f"/org/repo/resolve/{COMMIT}/config.json", Fault(cut=3))
    assert fetched(source, file, tmp_path / "third") == config


def test_the_index_is_read_from_the_hub(hub: Hub, make: Make) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": DATA[:i] for i in (1, 2)}
    index = json.dumps({"weight_map": dict.fromkeys("ab", "model-00001-of-00002.safetensors")}).encode()
    hub.add("org/repo", {**shards, "model.safetensors.index.json": index})
    found = [f.name for f in make().list(ModelRef.parse(HF)).files]
    assert found == ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    hub.add("org/repo", {**shards, "model.safetensors.index.json": b"[" * 100_000})
    with pytest.raises(Corrupt, match="not JSON"):
        make().list(ModelRef.parse(HF))


def test_gated(hub: Hub, make: Make, tmp_path: Path) -> None:
    hub.add("org/repo", {"m.gguf": DATA}, token="hf_ok", gated="manual")
    source = make()
    listing = source.list(ModelRef.parse(HF))
    assert listing.card["gated"] is True
    with pytest.raises(AccessDenied) as e:
        fetched(source, listing.files[0], tmp_path)
    assert f"{hub.server.url}/org/repo" in (e.value.hint or "")
    assert "hf auth login" in (e.value.hint or "")
    source = make("hf_ok")
    assert fetched(source, source.list(ModelRef.parse(HF)).files[0], tmp_path) == DATA


def test_gated_already_at_the_question(hub: Hub, make: Make) -> None:
    hub.server.always(
        "/api/models/org/repo", Fault(status=403, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
    )
    with pytest.raises(AccessDenied, match="gated") as e:
        make().list(ModelRef.parse(HF))
    assert (e.value.hint or "").startswith(f"Accept the licence at {hub.server.url}/org/repo")


@pytest.mark.parametrize("token", ["", "hf_other"])
def test_missing_or_private(hub: Hub, make: Make, token: str) -> None:
    hub.add("org/private", {"m.gguf": DATA}, token="hf_mine")
    for name in ("org/private", "org/nothing"):
        with pytest.raises(ModelMissing) as e:
            make(token).list(ModelRef.parse(f"hf:{name}"))
        assert "hf auth login" in (e.value.hint or "")
        assert token not in str(e.value) or not token


def test_a_refused_token(hub: Hub, make: Make) -> None:
    text = "Invalid credentials in Authorization header"
    hub.server.always("/api/models/org/repo", Fault(status=401, headers={"X-Error-Message": text}))
    with pytest.raises(AccessDenied) as e:
        make("hf_old").list(ModelRef.parse(HF))
    assert e.value.hint == "Run `hf auth login`."


@pytest.mark.parametrize("token", ["hf_canary\nX-Evil: 1", "hf_canary with spaces", "hf_canary\u3042"])
def test_a_broken_token_is_told_without_printing_it(hub: Hub, make: Make, token: str) -> None:
    with pytest.raises(BadUsage) as e:
        make(token).list(ModelRef.parse(HF))
    assert "canary" not in f"{e.value} {e.value.hint} {e.value.__cause__}"
    assert hub.server.requests == []


@pytest.mark.parametrize("endpoint", ["http://hub.example", "http://192.168.1.5:8080", "ftp://hub.example"])
def test_no_token_goes_out_in_clear_text(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(Unsafe):
        HfSource(settings(tmp_path, hf_endpoint=endpoint), QUICK).list(ModelRef.parse(HF))


def test_no_such_revision(hub: Hub, make: Make) -> None:
    hub.add("org/repo", {"m.gguf": DATA})
    assert make().list(ModelRef.parse("hf:org/repo@v1")).resolved.revision == COMMIT
    with pytest.raises(ModelMissing, match="no revision nope"):
        make().list(ModelRef.parse("hf:org/repo@nope"))


_LIST = """
import os, sys
from pathlib import Path
from miyabi_llm.refs import ModelRef
from miyabi_llm.sources.hf import HfSource
from tests.sources.wires import QUICK, settings
print(HfSource(settings(Path(sys.argv[1]), hf_endpoint=sys.argv[2]), QUICK).list(ModelRef.parse("hf:org/repo")).size)
"""


def test_only_the_configured_hub_is_asked_and_only_what_is_needed(hub: Hub, tmp_path: Path) -> None:
    """Another hub in the environment hears nothing, and the hub's library reports nothing about us."""
    hub.add("org/repo", {"m.gguf": DATA})
    with Faultd() as other:
        env = {"HF_ENDPOINT": other.url, "HOME": str(tmp_path), "AI_AGENT": "canary", "PATH": os.defpath}
        argv = [sys.executable, "-c", _LIST, str(tmp_path), hub.server.url]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert other.requests == []
    assert [r.path for r in hub.server.requests] == ["/api/models/org/repo"]
    assert "canary" not in str(hub.server.requests)


def test_offline_and_nobody_there(hub: Hub, make: Make, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="offline") as e:
        make(offline=True).list(ModelRef.parse(HF))
    assert "MIYABI_OFFLINE" in (e.value.hint or "")
    assert hub.server.requests == []
    with Faultd() as gone:
        url = gone.url
    with pytest.raises(NetworkError, match="does not answer"):
        HfSource(settings(tmp_path, hf_endpoint=url), QUICK).list(ModelRef.parse(HF))


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_in_trouble(hub: Hub, make: Make, status: int) -> None:
    hub.server.always("/api/models/org/repo", Fault(status=status))
    hub.add("org/repo", {"m.gguf": DATA})
    with pytest.raises(NetworkError, match=str(status)):
        make().list(ModelRef.parse(HF))
    assert len(hub.server.requests) == QUICK.tries
    hub.server.script("/api/models/org/repo", Fault(status=status))
    hub.server.always("/api/models/org/repo", OK)
    assert make().list(ModelRef.parse(HF)).files


@pytest.mark.parametrize(
    "siblings",
    [
        [{"rfilename": "m.gguf", "size": -5, "blobId": "0" * 40}],
        [{"rfilename": "m.gguf", "size": 1 << 60, "blobId": "0" * 40}],
        [{"rfilename": "m.gguf", "size": 5, "lfs": {"sha256": "../../x", "size": 5, "pointerSize": 1}}],
        [{"rfilename": "../m.gguf", "size": 5}],
        [{"rfilename": "/etc/m.gguf", "size": 5}],
        [{"rfilename": "a\\..\\m.gguf", "size": 5}],
        [{"rfilename": "a\nb.gguf", "size": 5}],
        [{"size": 5}],
        ["m.gguf"],
        [{"rfilename": "m.gguf", "lfs": "x"}],
    ],
)
def test_a_hostile_list_is_refused(hub: Hub, make: Make, siblings: list[object]) -> None:
    hub.add("org/repo", {}, siblings=siblings)
    with pytest.raises(MiyabiError):
        make().list(ModelRef.parse(HF))


def test_the_hash_is_a_digest(hub: Hub, make: Make) -> None:
    hub.add("org/repo", {"m.gguf": DATA})
    assert make().list(ModelRef.parse(HF)).files[0].sha256 == Digest(sha(DATA))
