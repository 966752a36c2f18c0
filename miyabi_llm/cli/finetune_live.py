"""The view of a run while it goes: a bar of steps with loss, learning rate, tokens/s, memory and the time left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from miyabi_llm.cli import progress
from miyabi_llm.types import Event, OnEvent

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@contextmanager
def live(*, as_json: bool = False) -> Iterator[OnEvent]:
    """An `OnEvent` that shows a training on stderr; all else is shown as in every other command."""
    with progress.shown(as_json=as_json) as usual:
        if as_json or not sys.stderr.isatty():
            yield usual
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[line]}"))
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            yield _Steps(bars, usual)


class _Steps:
    """Shows the steps of a training in a bar of its own, as long as it goes."""

    def __init__(self, bars: Progress, usual: OnEvent) -> None:
        self._bars, self._usual = bars, usual
        self._task: TaskID | None = None

    def __call__(self, event: Event) -> None:
        if event.kind == "progress" and event.name == "train" and "loss" in event.data:
            if self._task is None:
                self._task = self._bars.add_task("train", total=event.total, line="")
            self._bars.update(self._task, completed=event.done, total=event.total, line=event.message, refresh=True)
            return
        if event.kind == "phase" and self._task is not None and event.name != "train":
            self._bars.remove_task(self._task)
            self._task = None
        self._usual(event)
