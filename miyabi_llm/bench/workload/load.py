"""Workloads: the four that come with us, or a file of one's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from miyabi_llm.bench.values import Item
from miyabi_llm.bench.workload.rows import parse
from miyabi_llm.errors import BadUsage
from miyabi_llm.types import counted

BUILT_IN = ("chat", "code-review", "rag", "batch")
LICENSE = "CC0-1.0"  # of the built-in texts, which were written for this
LIMIT = 1 << 30  # bytes of a file: all of it is held in memory
SHOWN = 20


@dataclass(frozen=True, slots=True)
class Workload:
    """Questions under a name. `sha256` is that of the file they are from; `license` is empty where it is not known."""

    name: str
    items: tuple[Item, ...]
    license: str
    sha256: str


def load_workload(name_or_path: str, *, max_tokens: int | None = None) -> Workload:
    """A built-in workload, or one from FILE.jsonl; `max_tokens` replaces what its rows say.

    Rows are {"messages": [...]}, {"prompt": "..."}, lines of the batch format, or ShareGPT's {"conversations": [...]}
    (also as one JSON list). Raises BadUsage when there is no such workload, or with each bad row by its line.
    """
    if name_or_path in BUILT_IN:
        found = resources.files("miyabi_llm").joinpath("data", "workloads", f"{name_or_path}.jsonl")
        return _workload(name_or_path, name_or_path, found.read_bytes(), LICENSE, max_tokens)
    path = Path(name_or_path)
    if not path.suffix and not path.exists():
        raise BadUsage(f"no workload {name_or_path}", hint=f"One of {', '.join(BUILT_IN)}, or a FILE.jsonl.")
    try:
        if path.stat().st_size > LIMIT:
            raise BadUsage(f"{path} is larger than {LIMIT >> 30} GiB", hint="Take a part of it: `head -n 10000`.")
        data = path.read_bytes()
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror}", hint=f"One of {', '.join(BUILT_IN)}, or a FILE.jsonl.") from e
    return _workload(path.name, str(path), data, "", max_tokens)


def _workload(name: str, where: str, data: bytes, license_: str, max_tokens: int | None) -> Workload:
    items: list[Item] = []
    bad: list[str] = []
    seen: dict[str, int] = {}
    for number, row in _rows(where, data):
        try:
            if isinstance(row, Exception):
                raise ValueError(f"not JSON: {row}")
            item = parse(row, number, max_tokens)
            if (first := seen.setdefault(item.id, number)) != number:
                raise ValueError(f"id {item.id[:60]!r} is already in row {first}")
            items.append(item)
        except ValueError as e:
            bad.append(f"row {number}: {e}")
    if bad:
        lines = [f"{where}: {counted(len(bad), 'bad row')} of {len(bad) + len(items):,}", *bad[:SHOWN]]
        lines += [f"and {len(bad) - SHOWN:,} more"] if len(bad) > SHOWN else []
        raise BadUsage("\n  ".join(lines), hint="Mend these rows, or take them out.", bad=bad)
    if not items:
        raise BadUsage(f"{where} holds no question", hint='One {"messages": [...]} or {"prompt": "..."} a line.')
    return Workload(name, tuple(items), license_, hashlib.sha256(data).hexdigest())


def _rows(where: str, data: bytes) -> Iterator[tuple[int, object]]:
    """(number, value) of each row that is not blank: lines are numbered from 1, and so are the values of a list."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise BadUsage(f"{where} is not UTF-8 text: byte {e.start}", hint="Save it as UTF-8.") from e
    if text.lstrip()[:1] == "[":
        try:
            yield from enumerate(json.loads(text), 1)
        except (ValueError, RecursionError) as e:
            raise BadUsage(f"{where} begins like a JSON list and is none: {e}") from e
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as e:
                yield number, e
