"""The command `doctor`: what stands in the way of serving a model here, and what to type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from miyabi_llm.types import Finding

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

MARKS = {"ok": "ok", "warn": "warn", "fail": "FAIL", "unknown": "?"}


@app.command("doctor")
def doctor(json_: bool = typer.Option(False, "--json", help="Print one JSON document.")) -> None:
    """Judge this machine and say what to type."""
    from miyabi_llm import config, serve
    from miyabi_llm import doctor as verb
    from miyabi_llm.cli import show
    from miyabi_llm.errors import BadUsage

    error = None
    try:
        settings = config.load()
    except BadUsage as e:
        error, settings = e, config.load(file=False)
    findings = verb.examine(settings, servers=lambda: serve.ps(settings), config_error=error)
    level = verb.worst(findings)
    show.emit({"level": level, "findings": findings}, as_json=json_, render=lambda _: _show(findings))
    if level == "fail":
        raise typer.Exit(1)


def _show(findings: Sequence[Finding]) -> None:
    from miyabi_llm.cli.show import table

    table(("", "WHAT", "HOW IT STANDS"), ((MARKS[f.level], f.name, f.message) for f in findings))
    if todo := [f for f in findings if f.level != "ok" and f.fix]:
        print("\nTo type:")
        for fix in dict.fromkeys(f.fix for f in todo if f.fix):
            print(f"  {fix}")
