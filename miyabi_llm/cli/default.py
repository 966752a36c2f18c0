"""A command group of which one command is meant when none is named: `bench MODEL` is `bench run MODEL`."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

DEFAULT = "run"
HELP = ("--help", "-h")
FILES = (".json",)  # what `--json` may be followed by, to be a file's name


class RunFirst(TyperGroup):
    """Words that name none of its commands go to the command `run`.

    `--json` is a flag everywhere; before a name that ends with .json, or with `=`, it says which file to write.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Put the missing name in front."""
        if not args or (args[0] not in self.commands and args[0] not in HELP):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, json_files(args))

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """The options of `run` are its own."""
        command = self.commands[DEFAULT]
        command.format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """As it is called without the name."""
        return self.commands[DEFAULT].collect_usage_pieces(ctx)


def json_files(args: list[str]) -> list[str]:
    """`--json FILE.json` and `--json=FILE` as `--json-file FILE`. Pure."""
    end = args.index("--") if "--" in args else len(args)
    found, i = [], 0
    while i < end:
        if args[i] == "--json" and i + 1 < end and args[i + 1].endswith(FILES):
            found += ["--json-file", args[i + 1]]
            i += 1
        elif args[i].startswith("--json="):
            found += ["--json-file", args[i].partition("=")[2]]
        else:
            found.append(args[i])
        i += 1
    return found + args[end:]
