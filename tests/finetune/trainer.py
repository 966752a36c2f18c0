"""Run a recipe as far as the adapter, in a process that a test may kill: `python -m tests.finetune.trainer RECIPE`."""

from __future__ import annotations

import sys
from pathlib import Path

from miyabi_llm import config, hardware
from miyabi_llm.errors import MiyabiError
from miyabi_llm.finetune import load, run
from miyabi_llm.finetune.context import Verbs
from miyabi_llm.finetune.stages import STAGES
from miyabi_llm.store import Store
from miyabi_llm.types import Artifact, Event, OnEvent

TABLE = tuple(s for s in STAGES if s.name in ("base", "data", "train"))


def world() -> run.World:
    """The machine as it is; the base is a folder, so nothing is pulled or converted."""
    settings = config.load()
    return run.World(settings, Store(settings.store), hardware.look(settings.env), Verbs(_never, _never))


def _never(*_: object) -> Artifact:
    raise AssertionError("nothing is pulled or converted here")


def show(event: Event) -> None:
    """One line an event."""
    print(event.kind, event.name, event.message, flush=True)


def train(recipe: Path, on_event: OnEvent = show, *overrides: str) -> run.Outcome:
    """Every stage up to the adapter."""
    return run.run(load.load(recipe, overrides), world(), on_event, table=TABLE)


if __name__ == "__main__":
    try:
        train(Path(sys.argv[1]), show, *sys.argv[2:])
    except MiyabiError as e:
        print(f"{e.code}: {e.message}\n{e.hint}", flush=True)
        raise SystemExit(e.exit_code) from None
