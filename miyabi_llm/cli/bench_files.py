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

from miyabi_llm.errors import InvalidMeasurement

if TYPE_CHECKING:
    from miyabi_llm.bench.study import Study
    from miyabi_llm.cli.bench_parse import Plan

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Files:
    """Where results go besides standard output."""

    json: Path | None = None
    csv: Path | None = None
    html: Path | None = None


def finish(study: Study, files: Files, plan: Plan, *, as_json: bool) -> None:
    """Write the files, print the tables. Raises InvalidMeasurement after that; interrupted ones exit with 130."""
    from miyabi_llm.cli import bench_show, show

    write(study, files)
    show.emit(study, as_json=as_json, render=bench_show.show)
    for path in (files.json, files.csv, files.html):
        if path is not None:
            show.note(f"wrote {path}")
    if study.incomplete:
        show.note("INCOMPLETE: interrupted; these are the numbers until then")
        raise typer.Exit(INTERRUPTED)
    searching = plan.sweep or plan.promises
    if study.invalid and not (searching and any(level.valid for level in study.levels)):
        reasons = "\n".join(f"  {reason}" for reason in study.invalid)
        raise InvalidMeasurement(
            f"INVALID: these numbers must not be used\n{reasons}", hint="Nothing was measured that could be compared."
        )


def write(study: Study, files: Files) -> None:
    """Write the files that are wanted. Raises BadUsage, DiskFull."""
    from miyabi_llm.bench.report import as_csv, write_text

    if files.json is not None:
        write_text(files.json, document(study))
    if files.csv is not None:
        write_text(files.csv, tables([(level.label, as_csv(level.report)) for level in study.levels]))
    if files.html is not None:
        from miyabi_llm.bench import html

        write_text(files.html, html.page(study))


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


def document(study: Study) -> str:
    """The study as JSON."""
    from miyabi_llm.types import plain

    value: dict[str, Any] = plain(study)
    return json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
