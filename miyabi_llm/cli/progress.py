"""Events to the eye: bars on a terminal, plain lines in a log, JSON lines with `--json`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from miyabi_llm.cli.show import human
from miyabi_llm.types import Event, OnEvent, plain

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

PLAIN_EVERY = 5.0  # seconds between progress lines where there is no terminal


@contextmanager
def shown(*, as_json: bool = False) -> Iterator[OnEvent]:
    """An `OnEvent` that shows events on stderr while the block runs."""
    if as_json:
        yield lambda e: print(json.dumps(plain(e), ensure_ascii=False), file=sys.stderr, flush=True)
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bars:
            yield _Bars(bars)
    else:
        yield _Lines()


class _Lines:
    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def __call__(self, e: Event) -> None:
        if e.kind == "progress":
            now = time.monotonic()
            if now - self._last.setdefault(e.name, now) < PLAIN_EVERY:
                return
            self._last[e.name] = now
            print(f"{e.name}: {_amount(e)} {e.message}".rstrip(), file=sys.stderr, flush=True)
        elif e.kind != "log":
            mark = "warning: " if e.kind == "warning" else ""
            print(f"{mark}{e.name}: {e.message}" if e.message else f"{mark}{e.name}", file=sys.stderr, flush=True)


class _Bars:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, e: Event) -> None:
        if e.kind == "progress":
            task = self._tasks.get(e.name)
            if task is None:
                self._bars.columns = _columns(e.unit)
                task = self._tasks[e.name] = self._bars.add_task(e.name, total=e.total)
            self._bars.update(task, completed=e.done, total=e.total)
        elif e.kind != "log":
            from rich.text import Text

            style = "yellow" if e.kind == "warning" else "bold" if e.kind == "phase" else "green"
            # as text, not as markup: a message may hold a server's last words, brackets and all
            self._bars.console.print(Text(e.name, style), Text(e.message), highlight=False)


def _columns(unit: str) -> tuple[ProgressColumn, ...]:
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    name, bar, left = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    if unit == "bytes":
        return name, bar, DownloadColumn(binary_units=True), Speed(), left
    return name, bar, MofNCompleteColumn(), left


def _amount(e: Event) -> str:
    size = human if e.unit == "bytes" else lambda n: f"{n:.0f} {e.unit}" if n is not None else "?"
    share = f" ({100 * e.done / e.total:.0f}%)" if e.total else ""
    return f"{size(e.done)} of {size(e.total)}{share}" if e.total is not None else size(e.done)
