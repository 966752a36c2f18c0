"""Importance matrices and types for single tensors, with the real programs on a little model."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from miyabi_llm import gguf, quantize
from miyabi_llm.errors import BadUsage, InvalidMeasurement, MiyabiError
from miyabi_llm.quantize import Order, Source, imatrix, open_source
from miyabi_llm.quantize.passing import Passing
from miyabi_llm.quantize.run import Shop
from miyabi_llm.refs import ModelRef
from miyabi_llm.tools import llama_cpp, quantizing
from miyabi_llm.tools.quantizing import Window
from miyabi_llm.types import Event

from ..conftest import CI, USER

ORDER = Order(types=("Q4_0",), window=Window(chunks=2))


@pytest.fixture
def more(shop: Shop) -> Shop:
    """The shop with the programs that few need."""
    names = (quantizing.IMATRIX, quantizing.SPLIT)
    try:
        return replace(shop, programs={**shop.programs, **{n: llama_cpp.find(n, USER) for n in names}})
    except MiyabiError as e:
        if CI:
            raise
        pytest.skip(f"{e.message}. `miyabi-llm backend install llama-cpp --tools` brings it")


def shipped(name: str) -> str:
    return resources.files("miyabi_llm").joinpath("data", name).read_text("utf-8")


def test_the_shipped_texts_have_nothing_in_common() -> None:
    assert imatrix.overlap(shipped("calibration.txt"), shipped("evaluation.txt")) == 0
    assert imatrix.overlap(shipped("evaluation.txt"), shipped("evaluation.txt")) == 1


def test_lines_are_compared_without_their_spaces_and_capitals() -> None:
    line = "A line that is long enough to be told from others."
    assert imatrix.overlap(f"x\n   {line.upper().replace(' ', '  ')}", f"{line}\n}}\n") == 1
    assert imatrix.overlap("end\n}\n", "end\n}\n") == 0  # short lines stand everywhere


def test_a_type_that_needs_a_matrix(source: Source, more: Shop, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text(shipped("calibration.txt")[:1100])  # a letter is a token: two windows
    order = replace(ORDER, types=("IQ2_XXS",), imatrix=str(text))
    assert quantize.plan(source, order, more).types[0].needs_imatrix is False
    made = quantize.quantize(source, order, more)
    told = made.card["imatrix"]
    assert (told["text"], told["datasets"], told["chunks"], told["overlap"]) == ("mine.txt", ["calibration.txt"], 2, 0)
    with more.store.blob(made.artifact.files[0].sha256).open("rb") as f:
        header = gguf.read(f, made.artifact.size)
    assert header.text("quantize.imatrix.file") == "imatrix.gguf"  # nothing of this machine
    assert any(kind.startswith("IQ2") for kind in header.histogram)
    kept = next((more.settings.cache / "quantize" / "imatrix").glob("*.gguf"))
    again = quantize.quantize(source, replace(order, imatrix=str(kept)), more)
    assert again.artifact.files[0].sha256 == made.artifact.files[0].sha256
    assert again.card["imatrix"]["made"] == "before"


def test_a_matrix_is_made_once(source: Source, more: Shop, tmp_path: Path) -> None:
    text, events = tmp_path / "mine.txt", list[Event]()
    text.write_text(shipped("calibration.txt")[:1100])
    found = []
    for i in range(2):
        (tmp_path / f"{i}").mkdir()
        wish = imatrix.Wish(str(text), None, tmp_path)
        found.append(imatrix.bring(wish, source.first, {}, _tools(more, tmp_path / f"{i}"), events.append))
    assert found[0] == found[1]
    assert events[-1].message == "known from an earlier run"


def test_a_text_that_is_measured_on_calibrates_nothing(source: Source, more: Shop, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text(shipped("evaluation.txt"), encoding="utf-8")
    with pytest.raises(InvalidMeasurement, match="100% of the evaluation's lines"):
        quantize.quantize(source, replace(ORDER, imatrix=str(text)), more)
    said = tmp_path / "mine.jsonl"
    lines = shipped("calibration.txt").splitlines()
    said.write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": x}]}) for x in lines if x))
    with pytest.raises(InvalidMeasurement):
        imatrix.bring(imatrix.Wish("auto", said, tmp_path), source.first, {}, _tools(more, tmp_path))


def test_what_is_no_matrix_and_no_text(source: Source, more: Shop, tmp_path: Path, tiny: Path) -> None:
    for path, said in ((tiny, "is a model, no importance matrix"), (tmp_path / "none", "No such file")):
        with pytest.raises(BadUsage, match=said):
            quantize.quantize(source, replace(ORDER, imatrix=str(path)), more)
    short = tmp_path / "short.txt"
    short.write_text("short")
    with pytest.raises(MiyabiError):
        quantize.quantize(source, replace(ORDER, imatrix=str(short)), more)
    assert more.store.list() == []


def _tools(shop: Shop, folder: Path) -> quantizing.Tools:
    return quantizing.Tools(shop.programs, shop.settings.env, folder, 1)


def test_types_for_single_tensors(source: Source, shop: Shop) -> None:
    own = Passing(tensor_types=("attn_v=q8_0", r"blk\.1\.ffn_down=f16"), output_type="q5_0", embedding_type="q8_0")
    made = quantize.quantize(source, replace(ORDER, passing=own), shop)
    with shop.store.blob(made.artifact.files[0].sha256).open("rb") as f:
        header = gguf.read(f, made.artifact.size)
    kinds = {t.name.removesuffix(".weight"): t.type for t in header.tensors}
    assert (kinds["blk.0.attn_v"], kinds["blk.1.ffn_down"], kinds["blk.0.ffn_down"]) == ("Q8_0", "F16", "Q4_0")
    assert (kinds["output"], kinds["token_embd"]) == ("Q5_0", "Q8_0")
    assert header.weight_bytes == made.chosen.weights  # planned to the byte with them
    assert "attn_v=q8_0" in made.card["quantized"]["argv"]
    pure = quantize.plan(source, replace(ORDER, passing=Passing(pure=True)), shop)
    assert set(pure.types[0].tensors) == {"Q4_0", "F32"}


def test_words_that_the_quantizer_does_not_take(source: Source, shop: Shop) -> None:
    with pytest.raises(BadUsage, match="REGEX=TYPE"):
        quantize.plan(source, replace(ORDER, passing=Passing(tensor_types=("attn_v",))), shop)
    with pytest.raises(BadUsage, match="does not take --output-tensor-type q9_9"):
        quantize.plan(source, replace(ORDER, passing=Passing(output_type="q9_9")), shop)


def test_a_source_in_shards_stays_in_shards(tiny: Path, more: Shop, tmp_path: Path) -> None:
    tool = more.programs[quantizing.SPLIT].argv
    split = ["--split", "--split-max-tensors", "8", str(tiny), str(tmp_path / "mini")]
    subprocess.run([*tool, *split], check=True, capture_output=True)
    first = min(tmp_path.glob("mini-*.gguf"))
    source = open_source(ModelRef.parse(str(first)), more.store, tmp_path)
    assert len(source.parts) > 1
    order = replace(ORDER, passing=Passing(keep_split=True))
    made = quantize.quantize(source, order, more)
    assert len(made.artifact.files) == len(source.parts)
    stored = open_source(made.artifact.ref, more.store, tmp_path)
    assert stored.header.histogram == made.chosen.tensors
    whole = open_source(ModelRef.parse(str(tiny)), more.store, tmp_path)
    one = quantize.quantize(whole, ORDER, more)
    assert one.quality == made.quality
    with pytest.raises(BadUsage, match="no split to keep"):
        quantize.quantize(whole, order, more)
