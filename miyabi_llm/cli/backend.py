"""`backend`: list and install the programs that run models."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from miyabi_llm.backends import Status

app = typer.Typer(
    name="backend",
    help="Install and list the programs that run models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Source(StrEnum):
    """Where an installation may come from."""

    auto = "auto"
    release = "release"
    build = "build"


@app.command("list")
def list_(json_: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List the backends: where each was found, which version, and why not if not."""
    from miyabi_llm import backends, config
    from miyabi_llm.cli import show

    show.emit(backends.status(config.load()), as_json=json_, render=_table)


@app.command("install")
def install(
    name: str = typer.Argument(..., help="The backend: llama-cpp."),
    from_: Source = typer.Option(Source.auto, "--from", help="Take only a published build, or only build from source."),
    tools: bool = typer.Option(False, "--tools", help="Also quantize, bench, perplexity and the other tools."),
    json_: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Install a backend: a pinned published build, else a build from pinned source."""
    from miyabi_llm import config
    from miyabi_llm.cli import progress, show
    from miyabi_llm.tools.install import install as run

    settings = config.load()
    with progress.shown(as_json=json_) as on_event:
        program = run(name, settings, on_event, source=from_.value, tools=tools)
    value = {
        "name": name,
        "program": program.path,
        "version": program.version,
        "build": program.build,
        "commit": program.commit,
        "how": program.how,
    }
    show.emit(value, as_json=json_, render=lambda v: print(f"{v['program']}  {v['version']}  ({v['how']})"))


def _table(value: Any) -> None:
    from miyabi_llm.cli import show

    states: list[Status] = value
    rows = [(s.name, "ready" if s.ok else "not ready", s.version, s.how, str(s.path or s.reason)) for s in states]
    show.table(("NAME", "STATE", "VERSION", "FROM", "PROGRAM"), rows)
    for state in states:
        for bad in state.rejected if state.ok else ():
            show.note(f"passed over: {bad.path} {bad.reason}")
        if state.tools:
            show.note(f"{state.name} tools: {', '.join(sorted(state.tools))}")
        if not state.ok:
            show.note(f"Run `miyabi-llm backend install {state.name}`.")
