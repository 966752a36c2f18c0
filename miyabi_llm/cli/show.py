"""Data to stdout, everything else to stderr: one place that prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from miyabi_llm.types import plain


def emit(value: Any, *, as_json: bool, render: Callable[[Any], None]) -> None:
    """Print a verb's value: as one JSON document, or by `render` for a person."""
    if as_json:
        print(document(value))
    else:
        render(value)
    sys.stdout.flush()  # a command may live on, and its reader waits


def document(value: Any) -> str:
    """A value as JSON; in ASCII where standard output's encoding has no other letters."""
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    return json.dumps(plain(value), ensure_ascii=not encoding.startswith("utf"), indent=2, default=str)


def note(text: str) -> None:
    """A line for the person, on stderr."""
    print(text, file=sys.stderr)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Left-aligned columns on stdout; widths count East Asian wide characters as two cells."""
    lines = [tuple(header), *[tuple(r) for r in rows]]
    widths = [max(_cells(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        cells = [text + " " * (width - _cells(text)) for text, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


def human(size: float | None) -> str:
    """Bytes as people read them, in binary units: 1.0 GiB."""
    if size is None:
        return "?"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def _cells(text: str) -> int:
    import unicodedata

    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
