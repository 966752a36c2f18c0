"""The command `switch`: another model of a running server, loaded now."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import typer

from miyabi_llm.cli import stored

if TYPE_CHECKING:
    from miyabi_llm.serve.many.values import Switched

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

REF = typer.Argument(help="A model of the server: its alias there, or its name.", autocompletion=stored.complete)
NAME = typer.Option(None, "--name", metavar="NAME", help="The server, when several have the model.")
JSON = typer.Option(False, "--json", help="Print one JSON document.")


@app.command("switch")
def switch(ref: str = REF, name: str | None = NAME, json_: bool = JSON) -> None:
    """Load a model of a server of many now, unloading others if it must."""
    from miyabi_llm import config
    from miyabi_llm.cli import progress, show
    from miyabi_llm.errors import MiyabiError
    from miyabi_llm.serve.many import look
    from miyabi_llm.types import Event

    settings = config.load()
    wanted = [ref]
    with suppress(MiyabiError):  # an alias need not be a model's name
        wanted.append(str(stored.parse(ref, settings)))
    with progress.shown(as_json=json_) as on_event:
        on_event(Event("phase", "switch", ref))
        done = look.switch(settings, wanted, name)
    show.emit(done, as_json=json_, render=_show)


def _show(done: Switched) -> None:
    from miyabi_llm.cli.show import human

    for name in done.evicted:
        print(f"unloaded {name}")
    how = f"loaded in {done.seconds:.2f} s" if done.seconds else "was loaded already"
    print(f"{done.model} {how}, {human(done.memory)}  ({done.server})")
