"""What remains of a measurement: files, what is printed, and the exit code."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from miyabi_llm.errors import InvalidMeasurement, MiyabiError

if TYPE_CHECKING:
    from miyabi_llm.bench.gate.values import Judgement
    from miyabi_llm.bench.study import Study
    from miyabi_llm.cli.bench_gate import Gate
    from miyabi_llm.config import Settings

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Files:
    """Where results go besides standard output."""

    json: Path | None = None
    csv: Path | None = None
    html: Path | None = None


@dataclass(frozen=True, slots=True)
class End:
    """How a measurement ends: its files, its gate, how it is printed. `searching`: an invalid load ends a search."""

    files: Files
    gate: Gate
    settings: Settings
    as_json: bool
    searching: bool = False
    compat: str | None = None


def finish(study: Study, end: End) -> None:
    """Write the files, print the tables, judge; then exit with the code of what was found, 130 when interrupted."""
    from miyabi_llm.bench.gate.outcome import as_dict
    from miyabi_llm.cli import bench_gate, bench_show, show

    judgement = bench_gate.judge(end.gate, study)
    write(study, end.files, judgement, end.compat)
    if end.as_json:
        body = value(study, end.compat) | ({"judgement": as_dict(judgement)} if judgement is not None else {})
        show.emit(body, as_json=True, render=print)
    else:
        bench_show.show(study)
        if judgement is not None:
            bench_gate.render(judgement)
    for path in (end.files.json, end.files.csv, end.files.html):
        if path is not None:
            show.note(f"wrote {path}")
    if judgement is not None:
        bench_gate.tell(judgement, end.gate.told, study.levels[0].report.machine, study.name)
    if study.incomplete:
        show.note("INCOMPLETE: interrupted; these are the numbers until then")
        raise typer.Exit(INTERRUPTED)
    _refuse(study, searching=end.searching)
    bench_gate.save(end.gate, study.levels[0].report, end.settings)
    if judgement is not None:
        end_with(judgement)


def end_with(judgement: Judgement) -> None:
    """Exit with 5, 6 or 7 where it did not pass. What was found is printed already, so only the hint is left to say."""
    from miyabi_llm.bench.gate.outcome import enforce
    from miyabi_llm.cli import show

    try:
        enforce(judgement)
    except MiyabiError as e:
        if e.hint:
            show.note(f"  {e.hint}")
        raise typer.Exit(e.exit_code) from None


def _refuse(study: Study, *, searching: bool) -> None:
    """Exit with 7 when there are numbers that must not be used; the document was printed already."""
    from miyabi_llm.cli import show

    if not study.invalid or (searching and any(level.valid for level in study.levels)):
        return
    show.note("miyabi-llm: INVALID: these numbers must not be used")
    for reason in study.invalid:
        show.note(f"  {reason}")
    raise typer.Exit(InvalidMeasurement.exit_code)


def write(study: Study, files: Files, judgement: Judgement | None = None, compat: str | None = None) -> None:
    """Write the files that are wanted. Raises BadUsage, DiskFull."""
    from miyabi_llm.bench.gate.outcome import as_dict
    from miyabi_llm.bench.report import as_csv, write_text

    if files.json is not None:
        body = value(study, compat) | ({"judgement": as_dict(judgement)} if judgement is not None else {})
        write_text(files.json, json.dumps(body, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    if files.csv is not None:
        write_text(files.csv, tables([(level.label, as_csv(level.report)) for level in study.levels]))
    if files.html is not None:
        from miyabi_llm.bench import html
        from miyabi_llm.bench.gate.shown import headline
        from miyabi_llm.bench.gate.shown import table as judged

        extra = [] if judgement is None else [(f"Gate: {headline(judgement)}", judged(judgement))]
        write_text(files.html, html.page(study, extra))


def tables(parts: Sequence[tuple[str, str]]) -> str:
    """The CSV of each load as one, with a column for the load; their columns differ with n. Pure."""
    read = [(label, list(csv.DictReader(io.StringIO(text)))) for label, text in parts]
    seen = dict.fromkeys(column for _, rows in read for row in rows for column in row)
    last = [c for c in ("source", "invalid") if c in seen]
    out = io.StringIO()
    writer = csv.DictWriter(out, ["load", *(c for c in seen if c not in last), *last], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"load": label, **row} for label, rows in read for row in rows)
    return out.getvalue()


def value(study: Study, compat: str | None = None) -> dict[str, Any]:
    """The study as JSON holds it; `compat` "vllm" adds each target's figures under the names of vLLM's benchmark."""
    from miyabi_llm.bench.stats import vllm
    from miyabi_llm.types import plain

    body: dict[str, Any] = plain(study)
    if compat is not None:
        for level, part in zip(study.levels, body["levels"], strict=True):
            report = level.report
            part["vllm"] = {m.name: vllm(m, report.seconds) for m in report.measured} if level.valid else {}
    return body
