"""`finetune install`: the environment that trains."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import typer

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


class EngineName(StrEnum):
    """The engines."""

    auto = "auto"
    trl = "trl"
    unsloth = "unsloth"


@app.command("install")
def install(
    engine: EngineName = typer.Option(EngineName.auto, "--engine", help="auto: the one this machine would train with."),
    json_: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Make the environment that trains, once."""
    from miyabi_llm import config, engines, hardware
    from miyabi_llm.cli import progress, show
    from miyabi_llm.engines import environment

    settings = config.load()
    with progress.shown(as_json=json_) as on_event:
        chosen = engines.choose(engine.value, hardware.look(settings.env))
        env = chosen.install(settings, on_event)
    value = {"engine": chosen.name, "folder": str(env.folder), "packages": environment.installed(env)}
    show.emit(value, as_json=json_, render=_told)


def _told(value: Any) -> None:
    names = ("torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth")
    versions = ", ".join(f"{n} {value['packages'][n]}" for n in names if n in value["packages"])
    print(f"{value['engine']}  {value['folder']}  ({versions})")
