"""The command `convert`: a stored model in another format."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import typer

from miyabi_llm.cli.stored import complete

if TYPE_CHECKING:
    from miyabi_llm.types import Artifact

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


class Format(StrEnum):
    """What a model can be converted to."""

    safetensors = "safetensors"


@app.command("convert")
def convert(
    ref: str = typer.Argument(help="A GGUF model in the store.", autocompletion=complete),
    to: Format = typer.Option(..., "--to", help="The format: safetensors, which vLLM reads."),
    as_: str | None = typer.Option(None, "--as", metavar="NAME", help="Name in the store."),
    json_: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Make a copy of a GGUF model in safetensors, for vLLM and for training."""
    from miyabi_llm import config
    from miyabi_llm import convert as verb
    from miyabi_llm.cli import progress, show, stored
    from miyabi_llm.refs import ModelRef
    from miyabi_llm.store import Store

    settings = config.load()
    store = Store(settings.store)
    artifact = stored.find(ref, store, settings)
    name = ModelRef.parse(as_) if as_ else None
    with progress.shown(as_json=json_) as on_event:
        made = verb.convert(artifact, store, settings, on_event, name=name)
    show.emit(made, as_json=json_, render=_made)


def _made(made: Artifact) -> None:
    from miyabi_llm.cli.show import human, note

    print(f"{made.ref}  {human(made.size)}  {len(made.files)} files")
    note(made.card["converted"]["note"])
    note(f"serve it: miyabi-llm serve {made.ref} --backend vllm")
