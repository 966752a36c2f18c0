"""`finetune preview` and `finetune schema`: rows as the model will see them, and what a recipe may hold."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
_SET = typer.Option([], "--set", "-s", metavar="KEY=VALUE", help="Another value for a key: data.max_length=512.")
LIMIT = 4000  # tokens of a row that are shown


@app.command("preview")
def preview(
    recipe: Path = typer.Argument(..., metavar="RECIPE", help="The recipe, a YAML file."),
    set_: list[str] = _SET,
    rows: int = typer.Option(3, "--rows", "-n", min=1, max=100, help="How many rows."),
    json_: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Show rows as tokens, coloured by what is trained, and what is noticed."""
    from miyabi_llm import config
    from miyabi_llm.cli import finetune_run, progress, show
    from miyabi_llm.finetune import data, load
    from miyabi_llm.finetune import preview as verb

    settings = config.load()
    loaded = load.load(recipe, set_)
    world = finetune_run.world(settings)
    with progress.shown(as_json=json_) as on_event:
        found = verb.look(loaded, world, on_event, keep=rows)
    told = {
        "figures": data.figures(found),
        "findings": found.report.findings,
        "rows": found.kept,
        "tokens_changed": verb.changed(found, loaded, world),
    }
    show.emit(told, as_json=json_, render=_shown)


@app.command("schema")
def schema(
    output: Path | None = typer.Option(None, "--output", "-o", metavar="FILE", help="Write it to a file."),
    json_: bool = typer.Option(False, "--json", help="It is JSON always."),
) -> None:
    """Print the JSON Schema of recipes, for the completion of an editor."""
    from miyabi_llm.cli import show
    from miyabi_llm.finetune.schema import schema as made

    if output is None:
        show.emit(made(), as_json=True, render=print)
        return
    output.write_text(show.document(made()) + "\n", encoding="utf-8")
    show.note(f"In a recipe, for editors with a YAML language server: # yaml-language-server: $schema={output}")


def _shown(told: Any) -> None:
    from miyabi_llm.cli import data, show

    colour = sys.stdout.isatty()
    for row in told["rows"]:
        print(f"row {row['row']} ({row['id']}): {len(row['ids'])} tokens, {len(row['ids']) - row['start']} trained")
        if colour:
            coloured(row)
        else:
            print(marked(row))
        print()
    data.findings(told["findings"])
    data.tokens(told["figures"]["tokens"])
    if told["tokens_changed"]:
        show.note(f"warning: {len(told['tokens_changed'])} rows have other tokens than in the run before")


def marked(row: Mapping[str, Any]) -> str:
    """A row as text, the trained part between « and ». Pure."""
    before, after = "".join(row["pieces"][: row["start"]]), "".join(row["pieces"][row["start"] : LIMIT])
    return f"{before}«{after}»"


def coloured(row: Mapping[str, Any]) -> None:
    """A row on a terminal: what is trained in green, its tokens in two shades; the rest grey."""
    from rich.console import Console
    from rich.text import Text

    text = Text()
    for i, piece in enumerate(row["pieces"][:LIMIT]):
        trained = i >= row["start"]
        style = ("green", "bright_green")[i % 2] if trained else "bright_black"
        text.append(piece.replace("\n", "⏎\n") if trained else piece, style)
    Console().print(text, highlight=False, soft_wrap=True)
