"""`finetune run` and `finetune resume`: every stage of a recipe, shown while it goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.finetune.context import Verbs
    from miyabi_llm.finetune.run import Outcome, World
    from miyabi_llm.store import Store

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
_SET = typer.Option([], "--set", "-s", metavar="KEY=VALUE", help="Another value for a key: train.max_steps=20.")


@app.command("run")
def run(
    recipe: Path = typer.Argument(..., metavar="RECIPE", help="The recipe, a YAML file."),
    set_: list[str] = _SET,
    name: str | None = typer.Option(None, "--name", help="Name of the run (default: the recipe's)."),
    json_: bool = typer.Option(False, "--json", help="Events as JSON lines on stderr, the outcome on stdout."),
) -> None:
    """Do every stage of a recipe; a run that was interrupted goes on."""
    from miyabi_llm import config
    from miyabi_llm.cli import show
    from miyabi_llm.cli.finetune_live import live
    from miyabi_llm.finetune import load
    from miyabi_llm.finetune import run as verb

    settings = config.load()
    loaded = load.load(recipe, set_)
    with live(as_json=json_) as on_event:
        outcome = verb.run(loaded, world(settings), on_event, name=name)
    show.emit(told(outcome), as_json=json_, render=_told)


@app.command("resume")
def resume(
    name: str = typer.Argument(..., help="The run (see `finetune status`)."),
    json_: bool = typer.Option(False, "--json", help="Events as JSON lines on stderr, the outcome on stdout."),
) -> None:
    """Go on with a run that was interrupted, from its last whole checkpoint."""
    from miyabi_llm import config
    from miyabi_llm.cli import show
    from miyabi_llm.cli.finetune_live import live
    from miyabi_llm.finetune import run as verb

    settings = config.load()
    with live(as_json=json_) as on_event:
        outcome = verb.resume(name, world(settings), on_event)
    show.emit(told(outcome), as_json=json_, render=_told)


def world(settings: Settings) -> World:
    """What a run takes from outside, with pull and convert handed in."""
    from miyabi_llm import hardware
    from miyabi_llm.finetune.run import World
    from miyabi_llm.store import Store

    store = Store(settings.store)
    return World(settings, store, hardware.look(settings.env), verbs(settings, store))


def verbs(settings: Settings, store: Store) -> Verbs:
    """The other verbs, as a run uses them."""
    from miyabi_llm import convert as converting
    from miyabi_llm.cli import stored
    from miyabi_llm.errors import ModelMissing
    from miyabi_llm.finetune.context import Verbs
    from miyabi_llm.pull import pull
    from miyabi_llm.types import Artifact, OnEvent

    def bring(name: str, on_event: OnEvent) -> Artifact:
        ref = stored.parse(name, settings)
        try:
            return store.find(ref)
        except ModelMissing:
            return pull(ref, store, settings, on_event)

    def convert(artifact: Artifact, on_event: OnEvent) -> Artifact:
        return converting.convert(artifact, store, settings, on_event)

    return Verbs(bring, convert)


def told(outcome: Outcome) -> dict[str, Any]:
    """The outcome as `--json` prints it."""
    from miyabi_llm.types import plain

    stages = {
        name: {"seconds": done.seconds, "skipped": done.skipped or None, "figures": plain(done.figures)}
        for name, done in outcome.stages.items()
    }
    return {"run": outcome.name, "folder": str(outcome.folder), "seconds": outcome.seconds, "stages": stages}


def _told(value: Any) -> None:
    from miyabi_llm.cli import show

    rows = [
        (name, f"{s['seconds']:.1f} s", s["skipped"] or summary(name, s["figures"]))
        for name, s in value["stages"].items()
    ]
    show.table(("STAGE", "TIME", "FOUND"), rows)
    show.note(f"{value['run']}: {value['seconds']:.0f} s, in {value['folder']}")


def summary(name: str, figures: Any) -> str:
    """One stage in a few words: what it said itself, or the figures a person looks for."""
    if "told" in figures:
        return str(figures["told"])
    if name == "train" and "loss" in figures:
        speed = f", {figures['tokens_per_s']:.0f} tokens/s" if figures.get("tokens_per_s") else ""
        return f"{figures['steps']} steps, loss {figures['loss']:.4f}{speed}, {figures['memory'] / 2**30:.2f} GiB"
    if name == "base" and "label" in figures:
        return str(figures["label"])
    return ", ".join(f"{k} {v}" for k, v in figures.items() if isinstance(v, str | int | float) and len(str(v)) < 30)
