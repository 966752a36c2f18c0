"""The hub: which files a name means, and how they come."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.errors import AccessDenied, BadUsage, Corrupt, MiyabiError, ModelMissing, NetworkError, Unsafe
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.sources.hf import HfSource
from miyabi_llm.sources.hf_files import HubFile, choose, quant_of
from miyabi_llm.store import Store
from miyabi_llm.types import RemoteFile, silent
from tests.faultd import OK, Fault, Faultd
from tests.registries import COMMIT, Hub, git_blob, sha
from tests.sources.wires import DATA, QUICK, settings

HF = "hf:org/repo"


def names(ref: str, *files: str, index: Mapping[str, object] | None = None) -> list[str]:
    listed = [HubFile(f, 10**9) if f.endswith((".gguf", ".safetensors")) else HubFile(f, 100) for f in files]
    return [f.name for f in choose(ModelRef.parse(ref), listed, lambda _: index or {}).files]


GGUFS = (
    "README.md",
    "m-Q2_K.gguf",
    "m-q4_k_m.gguf",
    "m-Q8_0.gguf",
    "m-f16-00001-of-00002.gguf",
    "m-f16-00002-of-00002.gguf",
)


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("Model.IQ4_XS.gguf", "IQ4_XS"),
        ("Model-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("phi-2_Q4_0.gguf", "Q4_0"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("gpt-oss-20b-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("Q4_K_M/big-Q4_K_M-00001-of-00003.gguf", "Q4_K_M"),
        ("m.BF16.gguf", "BF16"),
        ("m-TQ1_0.gguf", "TQ1_0"),
        ("m-q4_0_4_8.gguf", "Q4_0_4_8"),
        ("Qwen3-4B.gguf", None),
    ],
)
def test_the_quantization_in_a_name(name: str, quant: str | None) -> None:
    assert quant_of(name) == quant


def test_the_wanted_quantization_in_any_case() -> None:
    assert names(f"{HF}:Q4_K_M", *GGUFS) == ["m-q4_k_m.gguf"]
    assert names(f"{HF}:q8_0", *GGUFS) == ["m-Q8_0.gguf"]
    assert names(f"{HF}:F16", *GGUFS) == ["m-f16-00001-of-00002.gguf", "m-f16-00002-of-00002.gguf"]


def test_an_exact_quantization_beats_a_dynamic_one() -> None:
    assert names(f"{HF}:Q4_K_M", "m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf") == ["m-Q4_K_M.gguf"]
    assert names(f"{HF}:UD-Q4_K_M", "m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf") == ["m-UD-Q4_K_M.gguf"]
    assert names(f"{HF}:Q4_K_XL", "m-UD-Q4_K_XL.gguf", "m-Q4_K_M.gguf") == ["m-UD-Q4_K_XL.gguf"]


def test_without_a_word_q4_k_m_or_the_only_one() -> None:
    assert names(HF, *GGUFS) == ["m-q4_k_m.gguf"]
    assert names(HF, "only.gguf", "mmproj-only-f16.gguf") == ["only.gguf"]
    with pytest.raises(BadUsage) as e:
        names(HF, "m-Q2_K.gguf", "m-Q8_0.gguf")
    assert "Q2_K (1.00 GB), Q8_0 (1.00 GB)" in (e.value.hint or "")


def test_a_misnamed_quantization_says_what_is_there() -> None:
    with pytest.raises(ModelMissing, match="has no Q5_K_M") as e:
        names(f"{HF}:Q5_K_M", *GGUFS)
    assert all(q in (e.value.hint or "") for q in ("Q2_K (1.00 GB)", "F16 (2.00 GB)", "Q4_K_M", "Q8_0"))


def test_two_models_of_one_quantization_are_a_question() -> None:
    with pytest.raises(BadUsage, match="2 files") as e:
        names(f"{HF}:Q4_K_M", "a-Q4_K_M.gguf", "b-Q4_K_M.gguf")
    assert "hf:org/repo/a-Q4_K_M.gguf" in (e.value.hint or "")


@pytest.mark.parametrize("ref", [f"{HF}:F16", f"{HF}/m-f16-00002-of-00002.gguf"])
def test_a_missing_part_is_an_error(ref: str) -> None:
    with pytest.raises(Corrupt, match=r"m-f16-00001-of-00002\.gguf"):
        names(ref, "m-f16-00002-of-00002.gguf")


def test_one_part_means_all() -> None:
    assert len(names(f"{HF}/m-f16-00002-of-00002.gguf", *GGUFS)) == 2
    with pytest.raises(ModelMissing, match=r"has no file n\.gguf"):
        names(f"{HF}/n.gguf", *GGUFS)
    with pytest.raises(Unsafe):
        names(f"{HF}/pytorch_model.bin", "pytorch_model.bin")
    with pytest.raises(Corrupt, match="number"):
        names(f"{HF}/m-00009-of-00002.gguf", "m-00009-of-00002.gguf")


BESIDE = ("config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja", "merges.txt")
JUNK = (
    "README.md",
    "modeling_x.py",
    "pytorch_model.bin",
    "training_args.bin",
    "onnx/model.onnx",
    "model.ckpt",
    "a.pth",
)


def test_safetensors_come_with_what_a_reader_needs_and_nothing_that_runs() -> None:
    assert sorted(names(HF, "model.safetensors", *BESIDE, *JUNK)) == sorted(("model.safetensors", *BESIDE))


def test_the_index_says_which_weights() -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    files = (*shards, "consolidated.safetensors", "model.safetensors.index.json", "config.json")
    index = {"weight_map": {"a": shards[0], "b": shards[1], "c": shards[1]}}
    found = names(HF, *files, index=index)
    assert found[:2] == shards
    assert "consolidated.safetensors" not in found
    with pytest.raises(Corrupt, match="not there"):
        names(HF, *files[1:], index=index)
    for hostile in ("../../etc/x.safetensors", "/abs.safetensors", "x.bin", 7, ""):
        with pytest.raises(Unsafe):
            names(HF, *files, index={"weight_map": {"a": hostile}})
    for document in ({}, {"weight_map": []}, {"weight_map": {}}):
        with pytest.raises(Unsafe):
            names(HF, *files, index=document)


def test_parts_without_an_index_must_be_complete() -> None:
    with pytest.raises(Corrupt, match="model-00002-of-00002"):
        names(HF, "model-00001-of-00002.safetensors", "config.json")


def test_only_pickles_is_unsafe_and_says_why() -> None:
    with pytest.raises(Unsafe, match=r"pytorch_model\.bin: loading those files runs code"):
        names(HF, "pytorch_model.bin", "config.json")
    with pytest.raises(ModelMissing, match="no model file"):
        names(HF, "README.md")
    with pytest.raises(ModelMissing, match="no GGUF"):
        names(f"{HF}:Q4_K_M", "model.safetensors")


@pytest.mark.parametrize("name", ["../m.gguf", "/m.gguf", "a/../m.gguf", "C:\\m.gguf", "a\x00.gguf", ""])
def test_a_name_that_leaves_its_place_is_no_choice(name: str) -> None:
    with pytest.raises(ModelMissing):
        names(HF, name)


def test_an_adapter_is_one() -> None:
    listed = [HubFile("adapter_config.json", 5), HubFile("adapter_model.safetensors", 5)]
    assert choose(ModelRef.parse(HF), listed, lambda _: {}).format == "adapter"


@given(st.lists(st.text(min_size=1, max_size=60), max_size=20), st.sampled_from([HF, f"{HF}:Q4_K_M", f"{HF}/a.gguf"]))
def test_no_list_of_names_makes_more_than_an_explained_error(files: list[str], ref: str) -> None:
    endings = ("", ".gguf", "-Q4_K_M.gguf", ".safetensors", "-00001-of-00003.gguf", ".json")
    try:
        found = names(ref, *(f + endings[i % len(endings)] for i, f in enumerate(files)))
    except MiyabiError:
        return
    assert not any(".." in n.split("/") or n.startswith("/") or "\\" in n for n in found)


# -- over the wire


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
