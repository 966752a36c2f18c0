"""`finetune merge` and `finetune export`: what comes after the training, by itself."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from miyabi_llm.finetune.alone import Alone

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
_RUN = typer.Argument(..., metavar="RUN", help="The run (see `finetune status`).")
_JSON = typer.Option(False, "--json", help="Events as JSON lines on stderr, the outcome on stdout.")
MERGE = ("merge", "evaluate-merged")
EXPORT = (*MERGE, "gguf", "quantize", "parity", "evaluate-gguf", "gates", "publish", "ollama", "card", "report")


class MergeBase(StrEnum):
    """Into which weights an adapter is merged."""

    auto = "auto"
    trained = "trained"
    full = "full"


@app.command("merge")
def merge(
    name: str = _RUN,
    base: MergeBase | None = typer.Option(None, "--base", help="Weights merged into (default: as in the recipe)."),
    json_: bool = _JSON,
) -> None:
    """Merge the adapter of a run into its base, and measure what came out."""
    words = [f"export.merge_base={base.value}"] if base is not None else []
    _redo(name, MERGE, words, as_json=json_)


@app.command("export")
def export(
    name: str = _RUN,
    types: list[str] = typer.Option([], "--type", "-t", metavar="TYPE", help="GGUF types (default: the recipe's)."),
    ollama: str | None = typer.Option(None, "--ollama", metavar="NAME", help="Name to give it in the running Ollama."),
    adapter: Path | None = typer.Option(
        None, "--adapter", metavar="DIR", help="Only the adapter: a GGUF for --lora, a peft folder for vLLM."
    ),
    json_: bool = _JSON,
) -> None:
    """Make GGUF files of a run, prove them, and publish them; or write its adapter alone."""
    if adapter is not None:
        _alone(name, adapter, as_json=json_)
        return
    words = [f"export.types=[{', '.join(types)}]"] if types else []
    words += [f"export.ollama={ollama}"] if ollama else []
    _redo(name, EXPORT, words, as_json=json_)


def _redo(name: str, stages: tuple[str, ...], words: list[str], *, as_json: bool) -> None:
    from miyabi_llm import config
    from miyabi_llm.cli import finetune_run, show
    from miyabi_llm.cli.finetune_live import live
    from miyabi_llm.finetune import run

    with live(as_json=as_json) as on_event:
        outcome = run.redo(name, finetune_run.world(config.load()), stages, words, on_event)
    show.emit(finetune_run.told(outcome), as_json=as_json, render=finetune_run._told)


def _alone(name: str, target: Path, *, as_json: bool) -> None:
    from miyabi_llm import config
    from miyabi_llm.cli import finetune_run, show
    from miyabi_llm.cli.finetune_live import live
    from miyabi_llm.finetune import alone, run

    with live(as_json=as_json) as on_event, run.opened(name, finetune_run.world(config.load()), on_event) as ctx:
        made = alone.write(ctx, target)
    show.emit(made, as_json=as_json, render=_written)


def _written(made: Alone) -> None:
    from miyabi_llm.cli.show import note

    print(f"{made.gguf}  for llama-server: miyabi-llm serve BASE --lora {made.gguf}")
    print(f"{made.peft}  for vLLM: miyabi-llm serve BASE --backend vllm --lora {made.peft}")
    print(f"the server with it: at most {made.delta:.3g} nats from the trainer; it moves the base by {made.moved:.3g}")
    if made.note:
        note(f"note: {made.note}")
    note(f"base: {made.base}")
