"""`finetune check`: everything that would stop a run, known before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command("check")
def check(
    recipe: Path = typer.Argument(..., metavar="RECIPE", help="The recipe, a YAML file."),
    set_: list[str] = typer.Option([], "--set", "-s", metavar="KEY=VALUE", help="Another value for a key."),
    full: bool = typer.Option(False, "--full", help="Also convert the tokenizer to GGUF: ten seconds more."),
    json_: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Say in seconds whether a recipe will run here, and what it will need."""
    import tempfile

    from miyabi_llm import config, hardware
    from miyabi_llm.cli import show
    from miyabi_llm.finetune import check as verb
    from miyabi_llm.finetune import load
    from miyabi_llm.store import Store

    settings = config.load()
    loaded = load.load(recipe, set_)
    with tempfile.TemporaryDirectory(prefix="miyabi-check-") as work:
        place = verb.Place(settings, Store(settings.store), hardware.look(settings.env), Path(work))
        report = verb.check(loaded, place, full=full)
    show.emit({"level": report.level, "report": report}, as_json=json_, render=lambda _: _show(report))
    if report.level == "fail":
        raise typer.Exit(1)


def _show(report: Any) -> None:
    from miyabi_llm.cli.show import note, table

    marks = {"ok": "ok", "warn": "warn", "fail": "FAIL", "unknown": "?"}
    table(("", "WHAT", "HOW IT STANDS"), ((marks[f.level], f.name, f.message) for f in report.findings))
    if todo := [f.fix for f in report.findings if f.level in ("warn", "fail") and f.fix]:
        print("\nTo do:")
        for fix in dict.fromkeys(todo):
            print(f"  {fix}")
    if (told := report.estimate) is not None:
        parts = ("weights", "adapter", "gradients", "optimizer", "activations", "runtime")
        split = ", ".join(f"{p} {getattr(told.memory, p) / 2**30:.2f}" for p in parts)
        note(f"memory in GiB: {split}; {told.trained:,} of {told.parameters:,} weights are trained")
    note(f"checked in {report.seconds:.1f} s")
