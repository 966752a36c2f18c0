"""Which files of a hub repository a name means."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.errors import BadUsage, Corrupt, MiyabiError, ModelMissing, Unsafe
from miyabi_llm.refs import ModelRef
from miyabi_llm.sources.hf_files import HubFile, choose, quant_of

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
