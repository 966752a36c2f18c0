"""What each type costs on a real model, whether the search finds what measuring everything finds, and our overhead.

    python benchmarks/quantize.py table MODEL.gguf [TYPE ...] [--chunks N]
    python benchmarks/quantize.py search MODEL.gguf [--chunks N]
    python benchmarks/quantize.py overhead MODEL.gguf|FOLDER [TYPE] [--rounds N]

`table` makes each type (Q8_0 Q6_K Q4_K_M Q4_0 Q2_K) and prints a line as soon as it is measured, with the memory
planned and the memory resident in a llama-server at 8192 tokens. `search` measures eight types and then lets the
search choose among them for a budget that half of them fit: same file, and what share of the work. `overhead` runs
llama-quantize alone and through us, in turns; of a folder of safetensors the converter before it too, and on our side
everything that a conversion has to pass. Everything is written below a temporary folder of the current one and
removed. A model that is quantized is turned into F16 first; what is measured then is not the loss of the original.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from miyabi_llm import calibration, config, hardware, quantize
from miyabi_llm.cli import sources
from miyabi_llm.config import Settings
from miyabi_llm.errors import GateFailed
from miyabi_llm.quantize import Made, Order, Source, convert, open_source, provenance
from miyabi_llm.quantize.original import open_folder
from miyabi_llm.quantize.run import Shop, verify_header
from miyabi_llm.quantize.sizes import planned
from miyabi_llm.refs import ModelRef
from miyabi_llm.store import Store
from miyabi_llm.store.adopt import hash_file
from miyabi_llm.tools import converting, llama_cpp, quantizing
from miyabi_llm.tools.quantizing import Tools, Window
from miyabi_llm.types import Event, OnEvent

CLAIMS = {"Q8_0": "~50%", "Q4_K_M": "~75%", "Q4_0": "~75%", "Q2_K": "~87%"}  # of many a guide
TABLE = ("Q8_0", "Q6_K", "Q4_K_M", "Q4_0", "Q2_K")
EIGHT = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K")
MIB = 1 << 20
ROUNDS = 3


@contextmanager
def shop() -> Iterator[tuple[Shop, Path]]:
    """A store and a cache of our own, with the programs that are installed."""
    user = config.load()
    programs = {n: llama_cpp.find(n, user) for n in (*quantizing.PROGRAMS, llama_cpp.SERVER)}
    flags = hardware.cpu_flags()
    if not calibration.server_uses_amx(user, programs[llama_cpp.SERVER].path):
        flags = frozenset(f for f in flags if not f.startswith("amx"))
    with tempfile.TemporaryDirectory(dir=".") as folder:
        settings = replace(user, home=Path(folder).absolute() / "home", cache=Path(folder).absolute() / "cache")
        settings.cache.mkdir()
        yield Shop(Store(settings.store), settings, programs, flags), Path(folder).absolute()


def full(path: Path, at: Shop, folder: Path) -> Source:
    """The model at 16 bits, made of a quantized one where it is that."""
    source = open_source(ModelRef.parse(str(path.absolute())), at.store, at.settings.user_home)
    found = provenance.judge(source.header, source.parts)
    print(f"source: {found.kind}; {found.evidence}")
    if found.kind != "quantized":
        return source
    target = folder / f"{path.stem}-f16.gguf"
    tool = at.programs[quantizing.QUANTIZE].argv
    argv = [*tool, "--allow-requantize", str(source.first), str(target), "F16"]
    subprocess.run(argv, check=True, capture_output=True)
    print("turned into F16: sizes are exact, losses are against rounded weights and NOT those of the original")
    return open_source(ModelRef.parse(str(target)), at.store, at.settings.user_home)


def table(source: Source, at: Shop, kinds: tuple[str, ...], chunks: int) -> None:
    """One line for each type, as soon as it is measured."""
    print("| type | claim | file, bytes | saved | bits | mean KLD, 95% interval | 99.9% | same top | tokens/s "
          "| memory planned | resident | quantize s |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for kind in kinds:
        made = quantize.quantize(source, Order((kind,), window=Window(chunks=chunks), requantize=True), at, told)
        print(line(made), flush=True)
        at.store.remove(made.artifact.ref)


def told(event: Event) -> None:
    """What could not be measured is said; the rest is silence."""
    if event.kind == "warning":
        print(f"{event.name}: {event.message}", file=sys.stderr, flush=True)


def line(made: Made) -> str:
    """A type's row of the table."""
    q, size, m = made.quality, made.artifact.size, made.measured[0]
    resident = f"{made.resident / MIB:.0f} MiB ({made.chosen.needed / made.resident - 1:+.1%})" if made.resident else ""
    speed = f"{made.speed.speed:.1f} ± {made.speed.spread:.1f}" if made.speed else ""
    cells = (
        made.chosen.type, CLAIMS.get(made.chosen.type, ""), f"{size:,}", f"{1 - size / made.plan.source_size:.1%}",
        f"{made.chosen.bits:.2f}", f"{q.kld:.6f} ({q.low:.6f} to {q.high:.6f})", f"{q.p999 or 0:.4f}",
        f"{q.same_top:.2f}%", speed, f"{made.chosen.needed / MIB:.0f} MiB", resident, f"{m.seconds:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def search(source: Source, at: Shop, chunks: int) -> None:
    """Measure all eight, then let the search choose; the base is recorded before and counted on both sides."""
    order = Order(EIGHT, window=Window(chunks=chunks), requantize=True, ctx=2048)
    plan = quantize.plan(source, replace(order, budget=1 << 50), at)
    needs = sorted(p.needed for p in plan.types)
    budget = needs[len(needs) // 2]
    began = time.monotonic()
    quantize.quantize(source, replace(order, types=("Q8_0",)), at)  # records the base; a file more than is counted
    warm = time.monotonic() - began
    shutil.rmtree(at.settings.cache / "quantize" / "quality")
    began = time.monotonic()
    everything = quantize.quantize(source, order, at)
    whole = time.monotonic() - began
    fits = [m for m in everything.measured if next(p for p in plan.types if p.type == m.type).needed <= budget]
    best = min(fits, key=lambda m: m.quality.kld)
    limit = max(best.quality.high * 1.05, 0.001)
    for m in everything.measured:
        print(f"{m.type}: {m.size:,} bytes, {m.quality.kld:.6f} ({m.quality.low:.6f} to {m.quality.high:.6f})")
    shutil.rmtree(at.settings.cache / "quantize" / "quality")
    began = time.monotonic()
    print(f"budget {budget / MIB:.0f} MiB, gate {limit:.4f}; of {len(EIGHT)} types {len(fits)} fit")
    try:
        found = quantize.quantize(source, replace(order, types=(), budget=budget, max_kld=limit), at)
    except GateFailed as e:  # of a source that was quantized before: its own type loses next to nothing
        print(f"measuring all: {best.type}; search: none passed, {e.message}")
        return
    ours = time.monotonic() - began
    print(f"measuring all: {best.type}, {whole:.1f} s for {len(everything.measured)} files")
    print(f"search: {found.chosen.type}, {ours:.1f} s for {len(found.measured)} files: {ours / whole:.0%} of that")
    print(f"same file: {'yes' if found.chosen.type == best.type else 'NO'}; the first run, base included: {warm:.1f} s")


def overhead(source: Source, at: Shop, folder: Path, kind: str, rounds: int) -> None:
    """llama-quantize alone, and through us with header check and hash, in turns."""
    alone, ours = [], []
    tools = Tools(at.programs, at.settings.env, folder)
    todo = planned(source.header, tools.dry_run(source.first, kind), kind, 2048, at.flags, None)
    for i in range(rounds):
        target, other = folder / f"bare-{i}.gguf", folder / f"ours-{i}.gguf"
        alone.append(timed(lambda to=target: bare(source.first, to, kind, at)))

        def through_us(to: Path = other) -> None:
            tools.quantize(source.first, to, kind, requantize=True)
            verify_header(source, todo, to)
            hash_file(to)

        ours.append(timed(through_us))
        assert hash_file(other) == hash_file(target), "the same bytes"
        target.unlink(), other.unlink()
    print(f"{kind}: {compared(alone, ours)}; the same bytes")


def overhead_of_conversion(path: Path, at: Shop, folder: Path, kind: str, rounds: int) -> None:
    """Converter and quantizer alone, and through us with every gate, in turns."""
    user = config.load()
    converter = converting.get(user)
    alone, ours, steps = [], [], []
    for i in range(rounds):
        full, target = folder / "full.gguf", folder / "bare.gguf"

        def tools_alone(full: Path = full, target: Path = target) -> None:
            script = [str(converter.python), "-E", "-s", "-B", str(converter.scripts / converting.MODEL)]
            subprocess.run(
                [*script, str(path), "--outfile", str(full), "--outtype", "f16"], check=True, capture_output=True
            )
            bare(full, target, kind, at)

        alone.append(timed(tools_alone))
        full.unlink(), target.unlink()
        settings = replace(at.settings, home=folder / f"home-{i}")
        store = Store(settings.store)
        began, seen = time.monotonic(), list[tuple[str, float]]()

        def note(event: Event, began: float = began, seen: list[tuple[str, float]] = seen) -> None:
            if event.kind in ("phase", "done"):
                seen.append((f"{event.name} {event.message}"[:40], time.monotonic() - began))

        def through_us(store: Store = store, settings: Settings = settings, note: OnEvent = note) -> None:
            kit = replace(sources.kit(store, settings, note), converter=lambda _: converter)
            original = open_folder(ModelRef.parse(str(path.absolute())), store, user.user_home)
            made = open_source(convert.to_gguf(original, kit).ref, store, user.user_home)
            tools, other = Tools(at.programs, at.settings.env, folder), folder / "ours.gguf"
            todo = planned(made.header, tools.dry_run(made.first, kind), kind, 2048, at.flags, None)
            note(Event("phase", "quantize", kind))
            tools.quantize(made.first, other, kind, requantize=False)
            verify_header(made, todo, other)
            hash_file(other)

        ours.append(timed(through_us))
        (folder / "ours.gguf").unlink()
        shutil.rmtree(settings.home)
        steps = seen
        print(f"round {i + 1}: alone {alone[-1]:.1f} s, through us {ours[-1]:.1f} s", flush=True)
    print(f"convert and {kind}: {compared(alone, ours)}")
    print("the last round began at: " + "; ".join(f"{at:.1f} s {what}" for what, at in steps))


def bare(model: Path, target: Path, kind: str, at: Shop) -> None:
    """llama-quantize as a person would run it."""
    argv = [*at.programs[quantizing.QUANTIZE].argv, "--allow-requantize", str(model), str(target), kind]
    subprocess.run(argv, check=True, capture_output=True)


def timed(work: Callable[[], None]) -> float:
    """Seconds that `work` takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def compared(alone: list[float], ours: list[float]) -> str:
    """Medians and spreads in words."""
    a, b = statistics.median(alone), statistics.median(ours)
    spread = f"{min(alone):.2f} to {max(alone):.2f}; {min(ours):.2f} to {max(ours):.2f}"
    return f"alone {a:.2f} s, through us {b:.2f} s: {b / a - 1:+.1%} ({spread})"


def option(words: list[str], name: str, default: int) -> int:
    """The number after `name`, taken out of `words`."""
    if name not in words:
        return default
    at = words.index(name)
    words.pop(at)
    return int(words.pop(at))


def main() -> None:
    """Run one of the three."""
    words = sys.argv[1:]
    chunks, rounds = option(words, "--chunks", 16), option(words, "--rounds", ROUNDS)
    if len(words) < 2 or words[0] not in ("table", "search", "overhead"):
        raise SystemExit(__doc__)
    machine = hardware.look(config.load().env)
    print(f"{machine.cpu}, {machine.usable_cores} processors; {chunks} windows of 256 tokens")
    job, path, kind = words[0], Path(words[1]), next(iter(words[2:]), "Q4_K_M")
    with shop() as (at, folder):
        if job == "overhead" and path.is_dir():
            overhead_of_conversion(path, at, folder, kind, rounds)
            return
        source = full(path, at, folder)
        if job == "table":
            table(source, at, tuple(words[2:]) or TABLE, chunks)
        elif job == "search":
            search(source, at, chunks)
        else:
            overhead(source, at, folder, kind, rounds)


if __name__ == "__main__":
    main()
