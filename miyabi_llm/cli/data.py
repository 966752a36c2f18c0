"""The group `data`: look at rows before they are trained on, and make rows of what one owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

app = typer.Typer(name="data", no_args_is_help=True, add_completion=False, rich_markup_mode=None,
                  pretty_exceptions_enable=False)  # fmt: skip
FAULTS = 5  # exit code when rows must not be trained on


@app.callback()
def _group() -> None:
    """Look at rows before they are trained on, and make rows of a git history."""


@app.command("lint")
def lint(
    source: str = typer.Argument(..., metavar="FILE|RECIPE", help="Rows (.jsonl, .json, .csv, ...), or a recipe."),
    model: str | None = typer.Option(
        None, "--model", "-m", metavar="REF", help="Model whose tokenizer counts; without one, no tokens."
    ),
    set_: list[str] = typer.Option([], "--set", "-s", metavar="KEY=VALUE", help="A key: data.roles.human=user."),
    strict: bool = typer.Option(False, "--strict", help="Warnings fail too."),
    json_: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Say what is wrong with rows, by their numbers: text, tokens, copies, secrets; exit code 5 for faults."""
    from miyabi_llm import config
    from miyabi_llm.cli import finetune_run, progress, show
    from miyabi_llm.finetune import data, load, preview

    settings = config.load()
    path = Path(source)
    if path.suffix.lower() in (".yaml", ".yml"):
        over = (*set_, f"base.model={model}", "base.tiny=") if model else tuple(set_)
        loaded, tokens = load.load(path, over), True
    else:
        loaded, tokens = preview.of_file(path, model, tuple(set_)), model is not None
    with progress.shown(as_json=json_) as on_event:
        found = preview.look(loaded, finetune_run.world(settings), on_event, tokens=tokens)
    show.emit({"report": found.report, "figures": data.figures(found)}, as_json=json_, render=_shown)
    worst = {f.level for f in found.report.findings}
    if "error" in worst or (strict and "warning" in worst):
        raise typer.Exit(FAULTS)


def _shown(told: Any) -> None:
    report = told["report"]
    print(f"{report.total:,} rows: {report.rows:,} read ({report.format or 'no form'}), {report.bad:,} not")
    tokens(report.tokens)
    findings(report.findings)


def findings(found: Sequence[Any]) -> None:
    """The findings as a table, the worst first."""
    from miyabi_llm.cli import show
    from miyabi_llm.finetune import data

    rows = [(f.level, f.check, data.shown(f) + (f" ({f.fix})" if f.fix else "")) for f in found]
    show.table(("LEVEL", "CHECK", "WHAT"), rows or [("fine", "-", "nothing was found")])


def tokens(found: Mapping[str, Any]) -> None:
    """What the rows are like as tokens: how many, how many of them trained, how long rows are."""
    if not found:
        return
    print(
        f"{found['total']:,} tokens, {found['trained']:,} trained ({found['trained_ratio']:.0%}); a row has "
        f"{found['shortest']:,} to {found['longest']:,}, half of them {found['median']:,} or less"
    )
    most = max(count for _, count in found["histogram"])
    for longest, count in found["histogram"]:
        print(f"  to {longest:>6,} tokens {'▇' * max(1, round(40 * count / most))} {count:,}")
