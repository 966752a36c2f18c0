"""The tables of a measurement on standard output: few columns, every number with its n."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from miyabi_llm.bench.report import amount
from miyabi_llm.bench.stats.intervals import least_for
from miyabi_llm.cli.show import human

if TYPE_CHECKING:
    from miyabi_llm.bench.stats import Measured
    from miyabi_llm.bench.study import Level, Search, Study

MAIN = (
    ("TTFT p50", "ttft", "p50"),
    ("TTFT p95", "ttft", "p95"),
    ("ITL p50", "itl", "p50"),
    ("E2E p50", "e2e", "p50"),
    ("tok/s each", "decode_tps", "p50"),
)
DEEP = (("prompt tokens", "prompt_tokens", "p50"), ("prompt tok/s", "prefill_tps", "p50"))  # with a depth
# Columns of words; others are numbers and end at the right.
WORDS = frozenset(
    ("load", "target", "price of", "promise", "answer", "rule", "verdict", "time", "version", "check", "note", "figure")
) | {"beside it", "limit", "within"}
RATES = (("tok/s all", "output_tps"), ("req/s", "rps"), ("goodput", "goodput"))


def show(study: Study) -> None:
    """Everything a person wants to know first."""
    for first in study.firsts:
        parts = [f"ready after {first.load_s:.1f} s"] if first.load_s is not None else []
        parts += [f"first request: first token after {amount(first.ttft_s, 's')}"] if first.ttft_s is not None else []
        parts += [f"first request: {first.error}"] if first.error else []
        print(f"{first.target}: {', '.join(parts)}")
    good = [level for level in study.levels if level.valid]
    if good:
        print_table(*_main(good))
        print_table(*_resources(good))
        print_table(*_costs(good))
    for k in study.knees:
        found = f"{k.knee.load:g} at once, {k.knee.throughput:.1f} tokens/s: {k.knee.reason}" if k.knee else "none"
        print(f"knee of {k.target}: {found}")
    for search in study.searches:
        _search(search)
    notes = dict.fromkeys(f"{m.name}: {w}" for level in good for m in level.report.measured for w in m.warnings)
    for note in (*notes, *study.notes):
        print(f"note: {note}")
    for level in good:
        for m in level.report.measured:
            for kind, words in m.counts.examples.items():
                print(f"error: {m.name} {level.label}: {m.counts.errors.get(kind, 0)} {kind}: {words}"[:300])


def _main(levels: Sequence[Level]) -> tuple[list[str], list[list[str]]]:
    measured = [(level, m) for level in levels for m in level.report.measured]
    rates = [(title, name) for title, name in RATES if any(m.metric(name) for _, m in measured)]
    main = (*DEEP, *MAIN) if any(level.report.load.depth for level in levels) else MAIN
    head = ["load", "target", "n", *(title for title, _, _ in main), *(title for title, _ in rates), "failed"]
    rows = []
    for level, m in measured:
        row = [level.label, m.name, f"{m.counts.ok:,}"]
        row += [_cell(m, name, p) for _, name, p in main]
        row += [amount(found.mean, found.unit) if (found := m.metric(name)) else "" for _, name in rates]
        rows.append([*row, f"{m.counts.failed:,}" if m.counts.failed else "0"])
    return head, rows


def _cell(m: Measured, name: str, p: str) -> str:
    found = m.metric(name)
    if found is None:
        return ""
    if p not in found.percentiles:
        return f"n<{least_for(float(p[1:]) / 100)}"
    return amount(found.percentiles[p].value, found.unit)


def _resources(levels: Sequence[Level]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for level in levels:
        for used in level.used:
            if (r := used.resources) is None:
                continue
            energy = "" if used.tokens_per_joule is None else f"{used.tokens_per_joule:.2f}"
            gpu = "" if r.gpu_memory is None else human(r.gpu_memory)
            row = [level.label, used.target, f"{r.looks:,}", human(r.memory_peak), f"{r.cores:.2f}", f"{r.cpu_s:.1f}"]
            rows.append([*row, gpu, energy])
    return ["load", "target", "looks", "memory, peak", "cores", "CPU s", "GPU memory", "tokens/J"], rows


def _costs(levels: Sequence[Level]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for level in levels:
        for used in level.used:
            for cost in used.costs:
                dated = f"{cost.name}, {cost.date}" if cost.date else cost.name
                price = f"{cost.per_million:.4g} {cost.currency}".strip()
                rows.append([level.label, used.target, dated, price, f"{cost.total:.3g} {cost.currency}".strip()])
    return ["load", "target", "price of", "per million tokens", "these tokens"], rows


def _search(search: Search) -> None:
    rows = []
    for trial in search.trials:
        for kept in trial.kept:
            share = f"{kept.hits / kept.n:.1%}" if kept.n else ""
            answer = trial.answer if trial.valid else "invalid"
            rows.append([f"{trial.load:g}", kept.promise, f"{kept.n:,}", share, _between(kept.low, kept.high), answer])
    print_table([search.unit, "promise", "n", "kept", "95% interval", "answer"], rows)
    if search.best is None:
        print(f"{search.target}: no load that was tried keeps the promise")
    else:
        sure = "" if search.best.answer == "met" else " (likely: more requests would make it sure)"
        print(f"{search.target}: {search.best.load:g} {search.unit} keep the promise{sure}")


def _between(low: float, high: float) -> str:
    return f"{low:.1%} to {high:.1%}"


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; columns without a value in any row are left out."""
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    if not kept:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i in kept:
        table.add_column(head[i], justify="left" if head[i] in WORDS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(row[i]) for i in kept))
    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    text = io.StringIO()  # not to the terminal's width, and without spaces at the ends of lines
    Console(file=text, width=200, highlight=False, no_color=True).print(table)
    print("\n".join(line.rstrip() for line in text.getvalue().strip("\n").splitlines()).strip("\n") + "\n")
