"""The group `finetune`: its verbs, each imported only when it is called; `finetune RECIPE` is `finetune run RECIPE`."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperGroup

# name -> (module under miyabi_llm.cli, what `--help` says). A test holds these lines against the docstrings.
VERBS: dict[str, tuple[str, str]] = {
    "check": ("finetune_check", "Say in seconds whether a recipe will run here, and what it will need."),
    "run": ("finetune_run", "Do every stage of a recipe; a run that was interrupted goes on."),
    "resume": ("finetune_run", "Go on with a run that was interrupted, from its last whole checkpoint."),
    "status": ("finetune_status", "Say how runs stand: what is finished, and how far training is."),
    "preview": (
        "finetune_preview",
        "Show rows as tokens, coloured by what is trained, and what is noticed.",
    ),
    "new": ("finetune_new", "Write a recipe for your own rows: it looks at them, and asks what it cannot see."),
    "schema": ("finetune_preview", "Print the JSON Schema of recipes, for the completion of an editor."),
    "merge": ("finetune_export", "Merge the adapter of a run into its base, and measure what came out."),
    "export": (
        "finetune_export",
        "Make GGUF files of a run, prove them, and publish them; or write its adapter alone.",
    ),
    "compare": ("finetune_proof", "Compare two runs, stages or models on the same rows."),
    "verify": ("finetune_proof", "Hold a run against its card: every hash, and the served files against the trainer."),
    "reproduce": ("finetune_proof", "Train a run again from its beginning and compare the bytes of the adapter."),
    "install": ("finetune_install", "Make the environment that trains, once."),
}
DEFAULT = "run"


class VerbGroup(TyperGroup):
    """Knows its verbs without importing them; what is no verb is a recipe to run."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """The names, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """Import the module that holds `cmd_name` and return its command."""
        entry = VERBS.get(cmd_name)
        if entry is None:
            return None
        command = typer.main.get_command(importlib.import_module(f"miyabi_llm.cli.{entry[0]}").app)
        return getattr(command, "commands", {}).get(cmd_name, command)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default verb before a recipe, and before options that are not the group's own."""
        if args and args[0] not in VERBS and args[0] not in ("-h", "--help") and DEFAULT in VERBS:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """The list of verbs, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


app = typer.Typer(
    cls=VerbGroup,
    name="finetune",
    help="Train a model from a recipe, and prove what came out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _group() -> None:
    """Train a model from a recipe, and prove what came out."""
