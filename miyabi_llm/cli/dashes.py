"""A command whose last words, after `--`, are for another program: told apart from arguments of its own."""

from __future__ import annotations

import typer
from typer.core import TyperCommand

EXTRA = "miyabi_llm.extra"  # the key in `context.meta`


class BeforeDashes(TyperCommand):
    """Its own parser sees nothing of what follows the first `--`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Keep what follows the first `--` in `ctx.meta`."""
        at = args.index("--") if "--" in args else len(args)
        ctx.meta[EXTRA] = tuple(args[at + 1 :])
        return super().parse_args(ctx, args[:at])

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """The usage names them."""
        return [*super().collect_usage_pieces(ctx), "[-- ARGS...]"]
