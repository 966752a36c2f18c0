"""Reports of quality on disk: written whole, read with every field checked."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

from miyabi_llm.bench.quality.run import ALL, score
from miyabi_llm.bench.quality.values import SCHEMA, Drift, Graded, How, Report
from miyabi_llm.errors import BadUsage, MachineLimit
from miyabi_llm.types import plain

T = TypeVar("T")
MOST = 256 << 20  # bytes


def write_report(report: Report, path: Path) -> None:
    """Write it, replacing what was there only when it is whole. Raises MachineLimit."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as out:
            json.dump(plain(report), out, ensure_ascii=False, indent=1)
        os.replace(name, path)
    except OSError as e:
        raise MachineLimit(f"{path}: cannot be written: {e.strerror}") from e


def read_report(path: Path) -> Report:
    """A report that `write_report` or `--json` wrote; its scores are counted again. Raises BadUsage."""
    try:
        if path.stat().st_size > MOST:
            raise BadUsage(f"{path}: too large for a report")
        body = json.loads(path.read_bytes())
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror}", hint="`bench quality REF --output FILE` writes one.") from e
    except (ValueError, RecursionError) as e:
        raise BadUsage(f"{path}: not a report: {e}") from e
    if isinstance(body, dict) and isinstance(body.get("report"), dict):
        body = body["report"]  # what --json printed beside a comparison
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise BadUsage(f"{path}: not a quality report of schema {SCHEMA}", hint="Measure it again.")
    try:
        return _report(body)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise BadUsage(f"{path}: not a quality report: {type(e).__name__}: {e}") from e


def _report(body: Mapping[str, Any]) -> Report:
    items = tuple(_made(Graded, row) for row in body["items"])
    keys = [(i.task, i.id) for i in items]
    if len(set(keys)) != len(keys):
        raise ValueError("an item is there twice")
    names = list(dict.fromkeys(i.task for i in items))
    simple = {f.name: body[f.name] for f in fields(Report) if f.name not in _BUILT}
    _typed(Report, simple)
    return Report(
        **simple,
        how=_made(How, body["how"]),
        tasks={str(k): str(v) for k, v in body["tasks"].items()},
        scores=tuple(score(name, [i for i in items if i.task == name]) for name in names),
        total=score(ALL, items),
        drift=None if body["drift"] is None else _made(Drift, body["drift"]),
        items=items,
        invalid=tuple(str(w) for w in body["invalid"]),
    )


_BUILT = ("how", "tasks", "scores", "total", "drift", "items", "invalid")
_TYPES = {
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str | None": (str, NoneType),
    "int | None": (int, NoneType),
}


def _made(kind: type[T], row: Mapping[str, Any]) -> T:
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    values = {k: v for k, v in row.items() if k in known}
    _typed(kind, values)
    return kind(**values)


def _typed(kind: type, values: Mapping[str, Any]) -> None:
    for f in fields(kind):
        if f.name in values and not isinstance(values[f.name], _TYPES[str(f.type)]):
            raise TypeError(f"{f.name} is no {f.type}")
