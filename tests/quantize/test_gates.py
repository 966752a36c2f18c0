"""What a converted file must be: ends, added tokens, template, tensors and tokens, judged on planted faults."""

from __future__ import annotations

import io
import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from miyabi_llm import gguf
from miyabi_llm.cli import execute
from miyabi_llm.errors import BadUsage, Corrupt
from miyabi_llm.gguf import Header
from miyabi_llm.quantize import gates
from miyabi_llm.quantize.convert import full_name
from miyabi_llm.quantize.gates import Answer
from miyabi_llm.quantize.original import Added, Promise, lay_out, open_folder, read_promise
from miyabi_llm.refs import ModelRef
from miyabi_llm.store import Store

from ..ggufs import header as write_header
from ..ggufs import kv
from . import tinyhf


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One little model for all: its random numbers take a second."""
    return tinyhf.model(tmp_path_factory.mktemp("hf") / "tiny")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "tiny"))


TOKENS = ["a", "b", "<|im_end|>", "<|endoftext|>", "<tool_call>"]
TYPES = [1, 1, 3, 3, 4]
PROMISE = Promise(
    "LlamaForCausalLM",
    (2, 3),
    2,
    (Added(2, "<|im_end|>", True), Added(4, "<tool_call>", False)),
    "{{ x }}",
    False,
    True,
)


def made(tokens: list[str] = TOKENS, types: list[int] = TYPES, **keys: Any) -> Header:
    """A header with the vocabulary and keys of a sound conversion, except for `keys`."""
    known = {"tokenizer.ggml.eos_token_id": 2, "tokenizer.chat_template": "{{ x }}"}
    known |= {f"tokenizer.{'chat_template' if k == 'template' else f'ggml.{k}'}": v for k, v in keys.items()}
    body = write_header([
        kv("general.architecture", "llama"), kv("tokenizer.ggml.tokens", tokens),
        kv("tokenizer.ggml.token_type", types), *(kv(k, v) for k, v in known.items() if v is not None),
    ])  # fmt: skip
    return gguf.read(io.BytesIO(body), len(body), whole_arrays=True)


def wrong(header: Header) -> list[str]:
    return [f.message for f in gates.failed(gates.metadata(header, PROMISE))]


def test_a_sound_file_passes() -> None:
    assert wrong(made()) == []


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (made(eos_token_id=3 - 2), "an answer ends with 1"),
        (made(eos_token_id=None), "an answer ends with None"),
        (made([*TOKENS[:3], "<|other|>", "<tool_call>"]), "token 3, which ends the original's answers, was lost"),
        (made([*TOKENS[:4], "c"]), "the added token '<tool_call>' (4) was lost: it is 'c'"),
        (made(TOKENS[:4], TYPES[:4]), "the added token '<tool_call>' (4) was lost: it is not there"),
        (made(types=[1, 1, 3, 3, 1]), "'<tool_call>' (4) became an ordinary one"),
        (made(template="{{ y }}"), "is not the original's"),
        (made(template=None), "was lost"),
    ],
)
def test_each_fault_is_named(header: Header, said: str) -> None:
    found = wrong(header)
    assert len(found) == 1
    assert said in found[0]


def test_a_foreign_name_of_an_end_is_told() -> None:
    found = gates.metadata(made(["</s>", *TOKENS[1:]]), PROMISE)
    assert any(f.level == "warn" and "'</s>' (0) for an end" in f.message for f in found)


def probe(**more: Any) -> Mapping[str, Any]:
    return {"name": "p", "messages": [], "rendered": "<s>ab", "special": False, "ids": [0, 1], "left": None} | more


@pytest.mark.parametrize(
    ("answer", "level", "said"),
    [
        (Answer("<s>ab", (0, 1)), "ok", "2 tokens"),
        (Answer("ab", (0, 1)), "ok", "2 tokens"),  # the server leaves the start out, and puts it in with the ids
        (Answer("<s>aX", (0, 1)), "fail", "rendered otherwise from letter 4"),
        (Answer("<s>ab", (0, 2)), "fail", "other tokens from number 1: [2], the original [1]"),
        (Answer("<s>ab", (0,)), "fail", "other tokens from number 1"),
        (Answer("<s>ab", (0, 2), (0, 1)), "warn", "NFC"),
        (Answer("<s>ab", (5, 0, 1)), "warn", "puts <s> first"),
    ],
)
def test_tokens(answer: Answer, level: str, said: str) -> None:
    header = made([*TOKENS, "<s>"], [*TYPES, 3], bos_token_id=5)
    (found,) = gates.tokens([probe()], {"p": answer}, header)
    assert found.level == level
    assert said in found.message


def test_a_probe_the_template_refuses_is_left_out() -> None:
    (found,) = gates.tokens([probe(left="no tools")], {}, made())
    assert (found.level, found.message) == ("ok", "left out: no tools")


def test_a_folder_is_read(folder: Path, tmp_path: Path) -> None:
    found = open_folder(ModelRef.parse(str(folder)), Store(tmp_path / "store"), tmp_path)
    assert found.promise.ends == (tinyhf.END, 2)
    assert found.promise.eos == tinyhf.END
    assert {a.text for a in found.promise.added} >= {"<|im_start|>", "<tool_call>", "</s>"}
    assert found.promise.template == tinyhf.TEMPLATE
    assert found.parameters == 1_494_784
    place, mended = lay_out(found, tmp_path / "laid")
    assert mended is None
    assert sorted(p.name for p in place.iterdir()) == sorted(found.files)


def test_code_and_pickles_beside_a_model_stay_outside(folder: Path, tmp_path: Path) -> None:
    (folder / "modeling_own.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    found = open_folder(ModelRef.parse(str(folder)), Store(tmp_path / "store"), tmp_path)
    assert not any(n.endswith((".py", ".bin")) for n in found.files)


def test_an_end_that_only_the_tokenizer_names_is_mended(folder: Path, tmp_path: Path) -> None:
    """The converter asks the tokenizer alone; the generation's configuration decides."""
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tinyhf.END}))
    tinyhf.tokenizer(folder, eos="</s>")
    found = open_folder(ModelRef.parse(str(folder)), Store(tmp_path / "store"), tmp_path)
    assert (found.promise.eos, found.promise.ends) == (2, (tinyhf.END,))
    place, mended = lay_out(found, tmp_path / "laid")
    assert mended is not None
    assert json.loads((place / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
    assert read_promise({p.name: p for p in place.iterdir()}).eos == tinyhf.END
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "</s>"


def test_damaged_folders(folder: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    ref = ModelRef.parse(str(folder))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    with pytest.raises(Corrupt, match="the tensors end"):
        open_folder(ref, store, tmp_path)
    weights.write_bytes(whole)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}})
    )
    with pytest.raises(Corrupt, match="lacks model-00002"):
        open_folder(ref, store, tmp_path)
    weights.unlink()
    with pytest.raises(BadUsage, match="no model in safetensors"):
        open_folder(ref, store, tmp_path)


def test_a_file_that_makes_others_hang_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """49 bytes that announce an array of 2**63 numbers."""
    bad = tmp_path / "bad.gguf"
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1)
    bad.write_bytes(head + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 0, 1 << 63))
    assert bad.stat().st_size == 49
    assert execute(["quantize", str(bad), "--type", "Q4_0"]) == 1
    assert "bad.gguf" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ref", "adapter", "name"),
    [
        ("qwen2.5-coder:1.5b-safetensors", "", "qwen2.5-coder:1.5b-gguf"),
        ("file:/x/My Model", "", "my-model:gguf"),
        ("hf:Org/Repo", "mine", "repo:mine-gguf"),
        ("tiny:gguf", "mine", "tiny:mine-gguf"),
        ("file:/x/hf", "", "hf-model:gguf"),  # hf:gguf would be a name at the hub
    ],
)
def test_names(ref: str, adapter: str, name: str) -> None:
    assert str(full_name(ModelRef.parse(ref), adapter)) == name
