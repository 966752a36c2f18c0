"""`finetune status`: how runs stand."""

from __future__ import annotations

from typing import Any

import typer

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command("status")
def status(
    name: str | None = typer.Argument(None, help="A run; without it all of them."),
    json_: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Say how runs stand: what is finished, and how far training is."""
    from miyabi_llm import config
    from miyabi_llm.cli import show
    from miyabi_llm.finetune import status as verb
    from miyabi_llm.finetune.stages import STAGES

    settings = config.load()
    stages = tuple(s.name for s in STAGES)
    if name is not None:
        show.emit(verb.one(settings.home, name, stages), as_json=json_, render=_one)
    else:
        show.emit(verb.all_of(settings.home, stages), as_json=json_, render=_all)


def _all(value: Any) -> None:
    from miyabi_llm.cli import show

    rows = [(s.name, s.state, s.stage, f"{s.step}/{s.steps}" if s.steps else "-", _loss(s)) for s in value]
    show.table(("RUN", "STATE", "STAGE", "STEP", "LOSS"), rows)


def _one(value: Any) -> None:
    from miyabi_llm.cli import show

    print(f"{value.name}  {value.state}  {value.folder}")
    print(f"finished: {', '.join(value.finished) or 'nothing yet'}")
    if value.last:
        row = value.last
        print(
            f"training: step {value.step} of {value.steps}, loss {row['loss']:.4f}, lr {row['learning_rate']:.2e}, "
            f"{row['tokens_per_s']:.1f} tokens/s, {row['memory'] / 2**30:.2f} GiB"
        )
    if value.checkpoints:
        print(f"checkpoints: {', '.join(f'step-{n}' for n in value.checkpoints)}")
    if value.trouble:
        show.note(value.trouble)
    if value.state == "stopped":
        show.note(f"Run `miyabi-llm finetune resume {value.name}`.")


def _loss(standing: Any) -> str:
    return f"{standing.last['loss']:.4f}" if standing.last else "-"
