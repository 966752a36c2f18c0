"""Judgements over time: a JSON line each, appended whole, read with what is broken named; and their trend, plotted."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miyabi_llm.bench.gate.shown import WORDS, percent
from miyabi_llm.bench.gate.values import Judgement, Outcome
from miyabi_llm.bench.report import Table, amount
from miyabi_llm.errors import BadUsage, DiskFull, Missing
from miyabi_llm.types import plain

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Point:
    """One figure of one entry: B's own (`value`, in `unit`), and against A (`ratio` above 1 is worse), None without."""

    value: float | None
    unit: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One judgement, remembered.

    `at` is the UTC time in ISO 8601, `label` a commit or version, `machine` a fingerprint.
    """

    at: str
    outcome: Outcome
    label: str = ""
    machine: str = ""
    points: Mapping[str, Point] = field(default_factory=dict)


def entry(judgement: Judgement, *, at: str, label: str = "", machine: str = "") -> Entry:
    """What is remembered of a judgement: no figure of an invalid one. Pure."""
    points = {}
    if judgement.outcome != "invalid":
        for c in judgement.metrics:
            against = c.kind == "relative" and c.metric != "error_rate"
            ratio = (c.value, c.low, c.high) if against else (None, None, None)
            points[c.metric] = Point(_finite(c.b), c.unit, *map(_finite, ratio))
    return Entry(at, judgement.outcome, label, machine, points)


def append(path: Path, new: Entry) -> None:
    """Add a line: in one write to the end of the file, so that two at once do not mix. Raises BadUsage, DiskFull.

    A line that a crash left unfinished is ended first and does not swallow this one.
    """
    line = json.dumps({"schema": SCHEMA, **plain(new)}, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    try:
        with path.open("ab+", buffering=0) as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = b"\n" + line
            if file.write(line) != len(line):
                raise DiskFull(f"{path}: only a part of the line could be written", hint="free some space")
            os.fsync(file.fileno())
    except OSError as e:
        kind = DiskFull if e.errno == 28 else BadUsage
        raise kind(f"{path}: {e.strerror}") from e


def read(path: Path) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """The entries in the order of the file, and what was wrong with other lines. Raises Missing, BadUsage."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError as e:
        raise Missing(f"no history at {path}", hint="bench --history FILE begins one") from e
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror}") from e
    entries, wrong = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                entries.append(_entry(json.loads(line)))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
                wrong.append(f"line {number} is not an entry: {type(e).__name__} {e}"[:160])
    return tuple(entries), tuple(wrong)


def _entry(value: dict[str, Any]) -> Entry:
    if value["schema"] != SCHEMA:
        raise ValueError(f"schema {value['schema']!r}")
    if value["outcome"] not in WORDS:
        raise ValueError(f"outcome {value['outcome']!r}")
    points = {}
    for name, p in value["points"].items():
        numbers = [None if p[k] is None else float(p[k]) for k in ("value", "ratio", "low", "high")]
        points[str(name)] = Point(numbers[0], str(p["unit"]), *numbers[1:])
    label, machine = (str(value.get(k, "")) for k in ("label", "machine"))
    return Entry(str(value["at"]), value["outcome"], label, machine, points)


def table(entries: Sequence[Entry]) -> Table:
    """The entries as rows, the newest last."""
    names = list(dict.fromkeys(name for e in entries for name in e.points))
    rows = [(e.at, e.label, WORDS[e.outcome], *(_cell(e.points.get(name)) for name in names)) for e in entries]
    return Table(("time", "version", "verdict", *names), tuple(rows))


def _cell(point: Point | None) -> str:
    if point is None or point.value is None:
        return ""
    change = "" if point.ratio is None else f" ({percent(point.ratio)} worse)" if point.ratio > 1 else ""
    return amount(point.value, point.unit) + change


def trend(entries: Sequence[Entry], *, title: str = "bench history") -> dict[str, Any]:
    """A Vega-Lite specification: each figure over time, one machine one line, coloured by verdict. Pure."""
    values = [
        {"at": e.at, "label": e.label, "machine": e.machine, "verdict": WORDS[e.outcome]}
        | {"metric": f"{name}, {p.unit}", "value": p.value}
        for e in entries
        for name, p in e.points.items()
        if p.value is not None
    ]
    place: dict[str, Any] = {"x": {"field": "at", "type": "temporal", "title": None}}
    place["y"] = {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": False}}
    colours = {"domain": list(WORDS.values()), "range": ["#1a7f37", "#cf222e", "#9a6700", "#6e7781"]}
    point = place | {
        "color": {"field": "verdict", "type": "nominal", "scale": colours},
        "shape": {"field": "verdict", "type": "nominal", "scale": {"domain": colours["domain"]}},
        "tooltip": [{"field": f} for f in ("label", "at", "value", "verdict", "machine")],
    }
    line = place | {"detail": {"field": "machine", "type": "nominal"}}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": title,
        "data": {"values": values},
        "facet": {"row": {"field": "metric", "type": "nominal", "title": None}},
        "resolve": {"scale": {"y": "independent"}},
        "spec": {
            "width": 640,
            "height": 120,
            "layer": [
                {"mark": {"type": "line", "color": "#8c959f", "strokeWidth": 1}, "encoding": line},
                {"mark": {"type": "point", "filled": True, "size": 60}, "encoding": point},
            ],
        },
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
