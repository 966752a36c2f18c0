"""What a measurement looks like while it runs: a table that is drawn anew on a terminal, lines in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from miyabi_llm.types import Event, OnEvent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table


@contextmanager
def shown(*, as_json: bool) -> Iterator[OnEvent]:
    """An `OnEvent` that shows a measurement on stderr while the block runs."""
    from miyabi_llm.cli import progress

    if as_json or not sys.stderr.isatty():
        with progress.shown(as_json=as_json) as on_event:
            yield on_event
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    board = Board(console)
    with Live(board.table(), console=console, transient=True, auto_refresh=False) as live:
        board.live = live
        yield board


class Board:
    """The table: one row for each target and load that is being measured."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: dict[str, dict[str, Any]] = {}
        self.live: Live | None = None

    def __call__(self, e: Event) -> None:
        """Show one event."""
        if e.kind == "progress" and "tokens_per_s" in e.data:
            self._rows[e.name] = dict(e.data)
        elif e.kind == "progress":
            self._rows[e.name] = {"target": e.name, "done": round(e.done)}
        elif e.kind != "log":
            from rich.text import Text

            style = "yellow" if e.kind == "warning" else "bold"
            # as text, not as markup: a message may hold a server's last words, brackets and all
            self._console.print(Text(e.name, style), Text(e.message), highlight=False)
        if self.live is not None:
            self.live.update(self.table(), refresh=True)

    def table(self) -> Table:
        """The last rows of it."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("target", "load"):
            table.add_column(name, no_wrap=True)
        for name in ("requests", "tokens/s", "TTFT p50", "failed"):
            table.add_column(name, justify="right")
        for row in list(self._rows.values())[-8:]:
            ttft, failed = row.get("ttft_p50"), row.get("failed", 0)
            table.add_row(
                str(row.get("target", "")),
                str(row.get("load", "")),
                str(row.get("done", "")),
                f"{row.get('tokens_per_s', 0):.1f}",
                "" if ttft is None else f"{ttft * 1e3:.0f} ms",
                f"[red]{failed}[/red]" if failed else "0",
            )
        return table
