"""Reading what an earlier run left in the output file, and saying what of it stays."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miyabi_llm.batch.disk import explained
from miyabi_llm.batch.reading import digest
from miyabi_llm.batch.tally import Tally, is_failed
from miyabi_llm.errors import BadUsage


@dataclass(slots=True)
class Scan:
    """What the output file holds.

    `finished` are the digests of the rows that stay, `drop` the spans of bytes that do not: damaged lines (their
    numbers are in `damaged`), rows that are there a second time, and failed ones that shall be asked again. A torn
    last line begins at `torn`; with `open_end` the last row is whole and only its newline is missing.
    """

    finished: set[bytes] = field(default_factory=set)
    tally: Tally = field(default_factory=Tally)
    drop: list[tuple[int, int]] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    torn: int | None = None
    open_end: bool = False
    size: int = 0


def scan(target: Path, known: Container[bytes], *, retry_failed: bool = False) -> Scan:
    """Look through `target`; nothing is changed. Raises BadUsage on a row whose name is not in `known`."""
    found = Scan()
    with explained(target), target.open("rb") as file:
        for number, line in enumerate(file, 1):
            start, found.size = found.size, found.size + len(line)
            document = _document(line)
            ended = line.endswith(b"\n")
            if document is None:
                if not ended:
                    found.torn = start
                else:
                    found.damaged.append(number)
                found.drop.append((start, found.size))
                continue
            name = digest(document["custom_id"])
            if name not in known:
                raise BadUsage(
                    f"{target}, line {number}: {document['custom_id'][:80]!r} is in no line of the input",
                    hint="Write to another file with -o, or begin anew with --restart.",
                )
            if name in found.finished or (retry_failed and is_failed(document)):
                found.drop.append((start, found.size))
                continue
            found.open_end = not ended
            found.finished.add(name)
            found.tally.add(document)
    if found.drop == [(found.torn, found.size)]:
        found.drop = []  # a torn end alone is cut off in place
    return found


def _document(line: bytes) -> dict[str, Any] | None:
    """A row of ours, or None for anything else."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    ours = isinstance(value, dict) and isinstance(value.get("custom_id"), str) and {"response", "error"} <= set(value)
    return value if ours else None
