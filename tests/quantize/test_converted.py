"""Safetensors and adapters through the real converter and the real server, and files that were damaged on the way.

The converter's environment takes some minutes to install the first time.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from miyabi_llm import quantize, safetensors
from miyabi_llm.cli import execute, sources
from miyabi_llm.errors import BadUsage, Corrupt, GateFailed, Missing, NetworkError
from miyabi_llm.quantize import Order, convert, merging, open_source, original
from miyabi_llm.quantize.convert import Kit
from miyabi_llm.quantize.run import Shop
from miyabi_llm.quantize.trainer import Trainer
from miyabi_llm.refs import ModelRef
from miyabi_llm.tools import converting, llama_cpp
from miyabi_llm.tools.converting import Converter
from miyabi_llm.tools.program import Program
from miyabi_llm.tools.quantizing import Window
from miyabi_llm.types import Adapter, Endpoint, OnEvent

from .. import tinyqwen
from ..conftest import CI, USER
from . import tinyhf

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def converter() -> Converter:
    """The real one."""
    try:
        return converting.get(USER)
    except (Missing, NetworkError) as e:
        if CI:
            raise
        pytest.skip(f"no converter: {e.message}")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinyhf.model(tmp_path_factory.mktemp("hf") / "tiny")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "tiny"))


@pytest.fixture
def kit(shop: Shop, converter: Converter) -> Kit:
    settings = shop.settings
    (settings.cache / "envs").symlink_to(USER.cache / "envs")

    @contextmanager
    def start(model: Path, lora: tuple[Adapter, ...]) -> Iterator[Endpoint]:
        with sources.serving(model, lora, settings, lambda _: None, threads=1) as endpoint:
            yield endpoint

    def programs(names: tuple[str, ...]) -> dict[str, Program]:
        return {name: llama_cpp.find(name, USER) for name in names}

    return Kit(shop.store, settings, lambda _: converter, start, programs)


def opened(folder: Path, kit: Kit) -> original.Folder:
    return original.open_folder(ModelRef.parse(str(folder)), kit.store, folder.parent)


def adapter(folder: Path, monkeypatch: pytest.MonkeyPatch, **config: object) -> Path:
    """An adapter for the little model, its configuration changed."""
    monkeypatch.setattr(tinyqwen, "WIDTH", tinyhf.WIDTH)
    made = tinyqwen.adapter(folder)
    path = made / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return made


def test_from_safetensors_to_a_measured_file(folder: Path, kit: Kit, shop: Shop) -> None:
    made = convert.to_gguf(opened(folder, kit), kit)
    assert (str(made.ref), made.format) == ("tiny:gguf", "gguf")
    told = made.card["converted"]
    assert set(told["sha256"]) == {p.name for p in folder.iterdir()}
    assert not [g for g in told["gates"] if g["level"] == "fail"]
    assert sum(g["name"].startswith("tokens: ") for g in told["gates"]) == 13
    assert str(folder.parent) not in json.dumps(made.card)
    source = open_source(made.ref, shop.store, folder.parent)
    assert source.header.eos == tinyhf.END
    done = quantize.quantize(source, Order(types=("Q8_0",), window=Window(chunks=2)), shop)
    assert str(done.artifact.ref) == "tiny:q8_0"
    assert [s["step"] for s in done.artifact.card["lineage"]] == ["convert", "quantize"]
    again = convert.to_gguf(opened(folder, kit), replace(kit, converter=_never))
    assert again == made


def _never(on_event: OnEvent) -> Converter:
    raise AssertionError("the file is here already")


def swapped(old: bytes, new: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = path.read_bytes()
        assert data.count(old) >= 1
        path.write_bytes(data.replace(old, new))

    return damage


class Damaging:
    """The real converter, whose file is damaged before anybody looks at it."""

    def __init__(self, real: Converter, damage: Callable[[Path], None]) -> None:
        self._real, self._damage = real, damage
        self.looking, self.knows, self.commit = real.looking, real.knows, real.commit

    def model(self, folder: Path, target: Path, outtype: str, work: Path, on_event: OnEvent) -> None:
        """Convert, then damage."""
        self._real.model(folder, target, outtype, work, on_event)
        self._damage(target)


KEY = b"tokenizer.ggml.eos_token_id" + (4).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            swapped(KEY + tinyhf.END.to_bytes(4, "little"), KEY + (5).to_bytes(4, "little")),
            "end: an answer ends with 5",
        ),
        (swapped(b"<tool_call>", b"<tool_cull>"), "added tokens: the added token '<tool_call>'"),
        (swapped(b"<|im_end|>\n", b"<|im_end|> "), "template: the chat template is not the original's"),
        (swapped(b"\x01\x00\x00\x00\x00\x00\x00\x00\x61", b"\x01\x00\x00\x00\x00\x00\x00\x00\xc2"), ""),
    ],
)
def test_a_damaged_file_goes_to_quarantine(
    folder: Path, kit: Kit, converter: Converter, damage: Callable[[Path], None], said: str
) -> None:
    broken = replace(kit, converter=lambda _: Damaging(converter, damage))  # type: ignore[arg-type, return-value]
    with pytest.raises((GateFailed, Corrupt)) as e:
        convert.to_gguf(opened(folder, kit), broken)
    assert kit.store.list() == []
    if isinstance(e.value, GateFailed):
        assert said in e.value.message
        place = Path(e.value.details["quarantine"])
        assert place.stat().st_size > 1_000_000
        report = json.loads(place.with_name(f"{place.name}.json").read_text())
        assert any(g["level"] == "fail" for g in report["gates"])


def test_numbers_that_are_none(tmp_path: Path, kit: Kit) -> None:
    bad = tinyhf.model(tmp_path / "bad", odd=float("nan"))
    with pytest.raises(Corrupt, match=r"layers\.1\.mlp\.up_proj\.weight of .* not finite"):
        convert.to_gguf(opened(bad, kit), kit)
    assert kit.store.list() == []


def test_a_weight_that_is_too_large_for_f16(tmp_path: Path, kit: Kit) -> None:
    wide = tinyhf.model(tmp_path / "wide", odd=70_000.0)
    made = convert.to_gguf(opened(wide, kit), kit)
    assert made.card["converted"]["outtype"] == "bf16"
    assert made.card["converted"]["largest"] == pytest.approx(70_000, rel=0.01)
    source = open_source(made.ref, kit.store, tmp_path)
    assert "F16" not in source.header.histogram
    assert source.header.histogram["BF16"][0] > 0


def test_what_the_converter_does_not_know(folder: Path, kit: Kit) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["NobodyForCausalLM"]}))
    with pytest.raises(BadUsage, match=r"llama\.cpp cannot convert NobodyForCausalLM"):
        convert.to_gguf(opened(folder, kit), kit)


def test_an_adapter_is_merged_as_its_trainer_scales_it(
    folder: Path, kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With r = 4 rsLoRA is twice as strong: the same as a plain adapter with twice the alpha, byte for byte."""
    base = open_source(convert.to_gguf(opened(folder, kit), kit).ref, kit.store, tmp_path)
    plain = adapter(tmp_path / "plain", monkeypatch, lora_alpha=4.0)
    twice = adapter(tmp_path / "twice", monkeypatch, lora_alpha=8.0)
    root = adapter(tmp_path / "root", monkeypatch, lora_alpha=4.0, use_rslora=True)
    part = adapter(tmp_path / "part", monkeypatch, lora_alpha=4.0, alpha_pattern={"q_proj": 8.0, "o_proj": 8.0})
    some = adapter(tmp_path / "some", monkeypatch, lora_alpha=4.0, alpha_pattern={"q_proj": 8.0})
    found = {}
    for path in (plain, twice, root, part, some):
        made = merging.merged(base, opened(folder, kit), path, kit)
        assert made.artifact is not None
        assert made.artifact.card["converted"]["gates"]["moved_by_adapter"] > 0.01
        found[path.name] = made.artifact.files[0].sha256
    assert found["twice"] == found["root"] == found["part"]
    assert len(set(found.values())) == 3


def test_an_adapter_that_changes_nothing(
    folder: Path, kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = open_source(convert.to_gguf(opened(folder, kit), kit).ref, kit.store, tmp_path)
    with pytest.raises(GateFailed, match="changes nothing"):
        merging.merged(base, opened(folder, kit), adapter(tmp_path / "a", monkeypatch, lora_alpha=1e-9), kit)
    with pytest.raises(BadUsage, match="no safetensors model"):
        merging.merged(base, None, adapter(tmp_path / "n", monkeypatch), kit)
    assert [str(a.ref) for a in kit.store.list()] == ["tiny:gguf"]


@pytest.fixture
def trainer(kit: Kit) -> Trainer:
    found = Trainer(kit.settings, kit.settings.cache)
    if not found.here:
        pytest.skip("no environment with peft: `miyabi-llm finetune install` brings it")
    return found


def whole(made: Path, more: dict[str, tuple[tuple[int, ...], float]], **config: object) -> Path:
    """The adapter with more tensors, each of one number."""
    with (made / "adapter_model.safetensors").open("rb") as f:
        header = safetensors.read(f, (made / "adapter_model.safetensors").stat().st_size)
        f.seek(0)
        data = f.read()
    start = len(data) - sum(t.nbytes for t in header.tensors)
    tensors: dict[str, tuple[tuple[int, ...], list[float]]] = {}
    at = start
    for t in header.tensors:
        halves = struct.unpack(f"<{t.nbytes // 2}H", data[at : at + t.nbytes])
        numbers = struct.unpack(f"<{len(halves)}f", struct.pack(f"<{len(halves)}I", *(h << 16 for h in halves)))
        tensors[t.name] = (t.shape, list(numbers))
        at += t.nbytes
    for name, (shape, number) in more.items():
        tensors[name] = (shape, [number * (1 + i % 7) for i in range(math.prod(shape))])
    tinyqwen._safetensors(made / "adapter_model.safetensors", tensors)
    path = made / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return made


class Weakening:
    """The real converter as it was without our correction: it reads the alpha of the adapter's own configuration."""

    def __init__(self, real: Converter) -> None:
        self._real = real

    def adapter(self, folder: Path, base: Path, target: Path, work: Path) -> None:
        """Undo the correction, then convert."""
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 1.0}))
        self._real.adapter(folder, base, target, work)


def test_the_server_says_what_peft_says(
    folder: Path, kit: Kit, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an rsLoRA adapter, whose scale llama.cpp's converter leaves out: with the real peft."""
    base = open_source(convert.to_gguf(opened(folder, kit), kit).ref, kit.store, tmp_path)
    root = adapter(tmp_path / "root", monkeypatch, lora_alpha=1.0, use_rslora=True)
    made = merging.merged(base, opened(folder, kit), root, kit)
    assert made.artifact is not None
    gates = made.artifact.card["converted"]["gates"]
    assert gates["moved_from_trainer"] < 0.02 < gates["moved_by_adapter"]  # 16 bits here, 32 there
    # what comes of the adapter without the correction is told from it
    other = adapter(tmp_path / "other", monkeypatch, lora_alpha=1.0, use_rslora=True)
    weak = replace(kit, converter=lambda hear: Weakening(kit.converter(hear)))  # type: ignore[arg-type, return-value]
    with pytest.raises(GateFailed, match="does not say what the trainer says"):
        merging.merged(base, opened(folder, kit), other, weak)


def test_what_no_lora_file_can_hold_is_merged_by_peft(
    folder: Path, kit: Kit, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = "base_model.model.model.layers.{}.self_attn.{}_proj.lora_magnitude_vector"
    strong = {at.format(i, n): ((tinyhf.WIDTH,), 0.5) for i in range(tinyhf.LAYERS) for n in "qo"}
    dora = whole(adapter(tmp_path / "dora", monkeypatch), strong, use_dora=True)
    head = {"base_model.model.lm_head.weight": ((tinyhf.VOCAB, tinyhf.WIDTH), 0.01)}
    full = whole(adapter(tmp_path / "full", monkeypatch), head, modules_to_save=["lm_head"])
    base = open_source(convert.to_gguf(opened(folder, kit), kit).ref, kit.store, tmp_path)
    for path, why in ((dora, "is DoRA"), (full, "holds whole modules (lm_head)")):
        made = merging.merged(base, opened(folder, kit), path, kit)
        assert str(made.ref) == f"tiny:{path.name}-gguf"
        assert made.artifact is not None
        told = made.artifact.card["converted"]
        assert why in told["tool"]
        assert told["gates"]["moved_from_trainer"] < 0.02 < told["gates"]["moved_by_adapter"]
        assert told["gates"]["merged_kld"] < 1e-3
        assert [s["step"] for s in made.artifact.card["lineage"]] == ["convert", "merge"]
        assert str(tmp_path) not in json.dumps(made.artifact.card)


def test_the_command(folder: Path, kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["quantize", str(folder), "--type", "Q4_0", "--chunks", "2", "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["artifact"]["ref"] == "tiny:q4_0"
