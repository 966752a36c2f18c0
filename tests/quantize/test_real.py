"""The whole road with the real programs, on little real models; what goes wrong on the way leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from miyabi_llm import gguf, quantize
from miyabi_llm.cli import execute
from miyabi_llm.errors import BadUsage, Corrupt, DiskFull, GateFailed, InvalidMeasurement, MachineLimit
from miyabi_llm.quantize import Order, Source, open_source
from miyabi_llm.quantize.run import Shop
from miyabi_llm.refs import ModelRef
from miyabi_llm.store import Store
from miyabi_llm.store.adopt import hash_file
from miyabi_llm.tools.program import Program
from miyabi_llm.tools.quantizing import Window
from miyabi_llm.types import Artifact, Event

from .tinylm import write

TWO = Order(types=("q8_0", "Q4_K"), window=Window(chunks=4))


def test_the_whole_road(source: Source, shop: Shop) -> None:
    made = quantize.quantize(source, TWO, shop)
    assert str(made.artifact.ref) == "tiny:q8_0"
    assert [m.type for m in made.measured] == ["Q8_0", "Q4_K_M"]
    assert made.measured[0].quality.kld < made.measured[1].quality.kld
    assert made.quality.against == "the source at full precision"
    here = shop.store.find(made.artifact.ref)
    assert here == made.artifact
    assert shop.store.verify(here)[0].ok
    with shop.store.blob(here.files[0].sha256).open("rb") as f:
        header = gguf.read(f, here.size)
    assert header.weight_bytes == made.chosen.weights  # planned to the byte
    assert 0 <= made.chosen.size - here.size < 200
    card = json.loads(json.dumps(here.card))
    assert {k: (v["count"], v["bytes"]) for k, v in card["tensors"].items()} == header.histogram
    assert card["base"]["sha256"] == source.digests()
    assert card["quantized"]["argv"][-4:] == ["tiny.gguf", "tiny-q8_0.gguf", "Q8_0", "1"]
    assert str(source.first.parent) not in json.dumps(card)
    assert card["quantized"]["commit"]
    assert card["evaluation"]["chunks"] == 4
    assert card["speed"]["speed"] > 0
    assert here.license == "cc0-1.0"


def test_the_figures_are_the_tool_s_own(
    source: Source, shop: Shop, programs: dict[str, Program], tmp_path: Path
) -> None:
    made = quantize.quantize(source, replace(TWO, types=("Q4_0",)), shop)
    base = next((shop.settings.cache / "quantize" / "bases").glob("*.kld"))
    model = shop.store.blob(made.artifact.files[0].sha256)
    common = ["-c", "256", "-b", "512", "-ub", "512", "-t", "1", "--kl-divergence-base", str(base)]
    argv = [*programs["llama-perplexity"].argv, "-m", str(model), *common, "--kl-divergence"]
    said = None
    for _ in range(3):  # the program loses its last lines at times
        done = subprocess.run(argv, capture_output=True, text=True)
        if said := re.search(r"Mean    KLD: *([\d.]+) ± *([\d.]+)", done.stdout):
            break
    assert said is not None
    assert (made.quality.kld, made.quality.kld_error) == (float(said[1]), float(said[2]))


def test_the_second_time_nothing_is_measured_again(source: Source, shop: Shop) -> None:
    first = quantize.quantize(source, TWO, shop)
    events: list[Event] = []
    second = quantize.quantize(source, TWO, shop, events.append)
    assert second.quality == first.quality
    said = [e.message for e in events if "earlier run" in e.message]
    assert len(said) == 3  # the base and two files


def test_a_base_that_was_cut_is_recorded_again(source: Source, shop: Shop) -> None:
    first = quantize.quantize(source, TWO, shop)
    cache = shop.settings.cache / "quantize"
    base = next((cache / "bases").glob("*.kld"))
    os.truncate(base, base.stat().st_size - 1)
    shutil.rmtree(cache / "quality")
    assert quantize.quantize(source, TWO, shop).quality == first.quality


def test_a_plan_publishes_nothing(source: Source, shop: Shop) -> None:
    plan = quantize.plan(source, Order(types=("Q4_K_M", "Q3_K_M"), ctx=512), shop)
    assert plan.provenance.kind == "full"
    assert [p.type for p in plan.types] == ["Q4_K_M", "Q3_K_M"]
    assert plan.types[0].size > plan.types[1].size
    assert shop.store.list() == []


def test_the_largest_that_fits_is_made_alone(source: Source, shop: Shop) -> None:
    everything = quantize.plan(source, Order(budget=1 << 40), shop)
    middle = sorted(p.needed for p in everything.types)[len(everything.types) // 2]
    made = quantize.quantize(source, replace(TWO, types=(), budget=middle), shop)
    assert made.chosen.needed <= middle
    assert made.chosen.size == max(p.size for p in everything.types if p.needed <= middle)
    assert len(made.measured) == 1
    with pytest.raises(MachineLimit, match="no type fits"):
        quantize.quantize(source, replace(TWO, types=(), budget=1 << 20), shop)


def test_a_gate_that_fails_publishes_nothing(source: Source, shop: Shop) -> None:
    with pytest.raises(GateFailed) as e:
        quantize.quantize(source, replace(TWO, types=("Q2_K",), max_kld=0.05, window=Window(chunks=8)), shop)
    assert e.value.exit_code == 5
    # a program that is done before it can be given up is judged by its whole measurement: both name the type
    assert "Q2_K: " in e.value.message
    assert shop.store.list() == []
    assert list(shop.store.layout.blobs.iterdir()) == []
    kept, beside = Path(e.value.details["quarantine"]), Path(e.value.details["report"])
    assert {kept, beside} == set(shop.store.layout.quarantine.iterdir())
    assert e.value.hint is not None
    assert str(beside) in e.value.hint
    report = json.loads(beside.read_text("utf-8"))
    assert (report["file"], report["model"], report["type"]) == (kept.name, "file:tiny.gguf", "Q2_K")
    assert hash_file(kept) == report["sha256"]
    assert (report["limits"]["kld"], report["why"]) == (0.05, list(report["measured"][0]["why"]))
    made = quantize.quantize(source, replace(TWO, types=("Q2_K", "Q8_0"), max_kld=0.05), shop)
    assert made.chosen.type == "Q8_0"
    assert len(list(shop.store.layout.quarantine.iterdir())) == 2  # another file passed: nothing more is kept
    gate = made.artifact.card["gate"]
    assert (gate["kld"], gate["passed"]) == (0.05, True)


def test_of_two_that_fail_the_better_one_is_kept(source: Source, shop: Shop) -> None:
    order = replace(TWO, types=("Q3_K_M", "Q2_K"), max_kld=1e-9)
    with pytest.raises(GateFailed, match="Q3_K_M: ") as e:
        quantize.quantize(source, order, shop)
    assert [m["type"] for m in e.value.details["measured"]] == ["Q3_K_M", "Q2_K"]
    assert (e.value.hint or "").startswith("No better: Q2_K ")
    assert sorted(p.suffix == ".json" for p in shop.store.layout.quarantine.iterdir()) == [False, True]


def test_a_dequantized_source_is_found_out(
    source: Source, shop: Shop, programs: dict[str, Program], tmp_path: Path
) -> None:
    four, back = tmp_path / "four.gguf", tmp_path / "back.gguf"
    tool = programs["llama-quantize"].argv
    subprocess.run([*tool, str(source.first), str(four), "Q4_K_M", "1"], check=True, capture_output=True)
    subprocess.run([*tool, "--allow-requantize", str(four), str(back), "F16", "1"], check=True, capture_output=True)
    for path, kind in ((four, "quantized"), (back, "dequantized")):
        again = open_source(ModelRef.parse(str(path)), shop.store, tmp_path)
        with pytest.raises(InvalidMeasurement) as e:
            quantize.quantize(again, TWO, shop)
        assert e.value.exit_code == 7
        made = quantize.quantize(again, replace(TWO, types=("Q4_0",), requantize=True), shop)
        assert made.quality.against == "an already quantized source"
        assert made.artifact.card["base"]["kind"] == kind
        assert any("already quantized" in n for n in made.notes)


def test_a_source_with_nan_is_refused(shop: Shop, tmp_path: Path) -> None:
    bad = open_source(ModelRef.parse(str(write(tmp_path / "bad.gguf", poison=True))), shop.store, tmp_path)
    with pytest.raises(Corrupt):
        quantize.quantize(bad, TWO, shop)
    assert shop.store.list() == []


def test_a_source_that_changes_meanwhile_is_noticed(tiny: Path, shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "moving.gguf"
    shutil.copyfile(tiny, path)
    moving = open_source(ModelRef.parse(str(path)), shop.store, tmp_path)

    def change(event: Event) -> None:
        if event.name == "speed":
            with path.open("r+b") as f:
                f.seek(-1, os.SEEK_END)
                f.write(b"\x01")

    with pytest.raises(Corrupt, match="changed while"):
        quantize.quantize(moving, replace(TWO, types=("Q8_0",)), shop, change)
    assert shop.store.list() == []


def test_wrong_words(source: Source, shop: Shop, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("short")
    with pytest.raises(BadUsage, match="too short"):
        quantize.quantize(source, replace(TWO, text=short), shop)
    short.write_bytes(b"\xff" * 100)
    with pytest.raises(BadUsage, match="UTF-8"):
        quantize.quantize(source, replace(TWO, text=short), shop)
    with pytest.raises(BadUsage, match="'Q9_9'"):
        quantize.plan(source, Order(types=("Q9_9",)), shop)
    with pytest.raises(BadUsage, match="importance matrix"):
        quantize.quantize(source, Order(types=("IQ2_XXS",)), shop)
    with pytest.raises(BadUsage, match="catalog"):
        quantize.quantize(source, replace(TWO, name=ModelRef.parse("gemma3:270m")), shop)
    (tmp_path / "cut.gguf").write_bytes(source.first.read_bytes()[:100_000])
    with pytest.raises(Corrupt):
        open_source(ModelRef.parse(str(tmp_path / "cut.gguf")), shop.store, tmp_path)


def test_two_at_once_end_as_one(source: Source, shop: Shop) -> None:
    made: list[str] = []
    work = [
        threading.Thread(target=lambda: made.append(quantize.quantize(source, TWO, shop).artifact.files[0].sha256))
        for _ in range(2)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(made) == 2
    assert len(set(made)) == 1
    assert len(shop.store.list()) == 1


def test_killed_in_the_middle(tiny: Path, shop: Shop, source: Source, tmp_path: Path) -> None:
    """SIGKILL while a file is measured: no program stays, nothing is published, the next run removes the rest."""
    text = tmp_path / "long.txt"
    text.write_text("the quick brown fox jumps over the lazy dog, again and again. " * 300)
    argv = [sys.executable, "-m", "miyabi_llm", "quantize", str(tiny), "--type", "Q8_0", "--eval", str(text)]
    child = subprocess.Popen([*argv, "--chunks", "60", "--threads", "1"], stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("measure"):
            break
    parts = shop.store.layout.parts
    deadline = time.monotonic() + 10
    while not (tools := psutil.Process(child.pid).children(recursive=True)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(parts.glob("*.part"))
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stderr.close()
    _, alive = psutil.wait_procs(tools, timeout=5)
    assert not alive
    assert shop.store.list() == []
    quantize.plan(source, Order(types=("Q8_0",)), shop)
    assert list(parts.glob("*.part")) == []


def test_interrupted_in_the_middle(source: Source, shop: Shop) -> None:
    def interrupt(event: Event) -> None:
        if event.name == "measure":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize.quantize(source, TWO, shop, interrupt)
    assert shop.store.list() == []  # and the fixture looks for what is left


def test_the_disk_is_counted_before_the_start(source: Source, shop: Shop) -> None:
    huge = replace(TWO, window=Window(ctx=256, chunks=1 << 30))
    with pytest.raises(DiskFull) as e:
        quantize.quantize(source, replace(huge, text=_sparse(shop)), shop)
    assert e.value.details["needed"] > e.value.details["free"]


def _sparse(shop: Shop) -> Path:
    """A file of as many bytes as make more windows than any disk here holds."""
    path = shop.settings.cache / "sparse.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as f:
        f.truncate(1 << 42)
    return path


def test_the_command(tiny: Path, shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["quantize", str(tiny), "--type", "Q4_0", "--plan"]) == 0
    assert "Q4_0" in capsys.readouterr().out
    args = ["--type", "Q4_0", "--chunks", "4", "--threads", "1", "-o", "mine"]
    assert execute(["quantize", str(tiny), *args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["artifact"]["ref"], found["chosen"]["type"]) == ("mine", "Q4_0")
    assert execute(["quantize", str(tiny), *args]) == 0
    assert "chosen" in capsys.readouterr().out
    assert execute(["show", "mine", "--field", "card.quality.kld"]) == 0
    assert float(capsys.readouterr().out) == found["quality"]["kld"]
    assert execute(["outdated", "mine", "--json"]) == 0
    assert execute(["quantize", "mine", *args]) == 7
    assert execute(["quantize", str(tiny), "--type", "Q2_K", "--max-kld", "0.001", "--threads", "1"]) == 5


@pytest.mark.slow
def test_a_real_model(real_artifact: Artifact, real_store: Store, shop: Shop) -> None:
    """Gemma 3 270M, which is Q4_K_M itself: found out; measured against what it is when that is wanted."""
    stored = open_source(real_artifact.ref, real_store, shop.settings.user_home)
    for name, path in stored.files.items():
        shop.store.adopt(path, next(f.sha256 for f in real_artifact.files if f.name == name))
    shop.store.publish(real_artifact)
    source = open_source(real_artifact.ref, shop.store, shop.settings.user_home)
    order = Order(types=("Q4_0",), window=Window(chunks=2))
    with pytest.raises(InvalidMeasurement, match="27 Q4_K"):
        quantize.quantize(source, order, shop)
    made = quantize.quantize(source, replace(order, requantize=True), shop)
    assert str(made.artifact.ref) == "gemma3:270m-q4_0"
    assert 0 < made.quality.kld < 5
    assert [step["step"] for step in made.artifact.card["lineage"]] == ["pull", "quantize"]
    assert made.chosen.fallbacks == 1
