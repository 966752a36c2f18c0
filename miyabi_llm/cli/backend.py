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
    name: str = typer.Argument(..., help="The backend's name (see `backend list`)."),
    from_: Source = typer.Option(Source.auto, "--from", help="Take only a published build, or only build from source."),
    tools: bool = typer.Option(False, "--tools", help="Also quantize, bench, perplexity and the other tools."),
    json_: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Install a backend: pinned and checked, or by the package manager of this machine."""
    from miyabi_llm import backends, config
    from miyabi_llm.backends.base import InstallOptions
    from miyabi_llm.cli import progress, show

    settings = config.load()
    with progress.shown(as_json=json_) as on_event:
        program = backends.get(name).install(settings, on_event, InstallOptions(from_.value, tools))
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
    rows = [(s.name, _state(s), s.version, s.how, str(s.path or s.reason)) for s in states]
    show.table(("NAME", "STATE", "VERSION", "FROM", "PROGRAM"), rows)
    print()
    show.table(("NAME", "SERVES", *(title for title, _ in ABILITIES), "TESTED WITH"), [_abilities(s) for s in states])
    for state in states:
        for bad in state.rejected if state.ok else ():
            show.note(f"passed over: {bad.path} {bad.reason}")
        if state.tools:
            show.note(f"{state.name} tools: {', '.join(sorted(state.tools))}")
        if not state.ok:
            show.note(f"Run `miyabi-llm backend install {state.name}`.")


# Heading -> the field of Capabilities.
ABILITIES = (
    ("START", "start"),
    ("ATTACH", "attach"),
    ("KEY", "key"),
    ("SEVERAL", "several"),
    ("LOAD", "load"),
    ("UNLOAD", "unload"),
    ("SLEEP", "sleep"),
    ("LORA", "adapters"),
    ("CTX", "context"),
    ("KV", "kv_type"),
    ("METRICS", "metrics"),
    ("NODES", "nodes"),
)


def _state(status: Status) -> str:
    if status.running is not None:
        return "running"
    return "ready" if status.ok else "not ready"


def _abilities(status: Status) -> tuple[str, ...]:
    can = ("yes" if getattr(status.capabilities, field) else "-" for _, field in ABILITIES)
    tested = {"real": "the program", "stand-in": "a stand-in"}[status.capabilities.verified]
    return (status.name, ", ".join(status.accepts), *can, tested)
