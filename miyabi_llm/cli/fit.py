"""The command `fit`: whether a model fits this machine, before it is pulled or served."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from miyabi_llm.cli.sizes import memory

if TYPE_CHECKING:
    from miyabi_llm.fit import Fit

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command("fit")
def fit(
    ref: str = typer.Argument(
        help="A model in the store, a file, or a name; of one that is not here the header is fetched."
    ),
    ctx: int | None = typer.Option(None, "--ctx", metavar="TOKENS", help="Context to plan for (default: 8192)."),
    backend: str | None = typer.Option(
        None, "--backend", metavar="NAME", help="The program that would serve it (see `backend list`)."
    ),
    kv: str = typer.Option("f16", "--kv", metavar="TYPE", help="Type of the cache: f16, q8_0, q4_0."),
    parallel: int | None = typer.Option(None, "--parallel", min=1, help="Requests at a time, each with its part."),
    target: str | None = typer.Option(
        None, "--target-memory", metavar="SIZE", help="Judge a machine of 16GiB, say, instead of this one."
    ),
    json_: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Say whether a model fits this machine, and how."""
    from miyabi_llm import config, hardware
    from miyabi_llm import fit as verb
    from miyabi_llm.cli import show
    from miyabi_llm.refs import ModelRef
    from miyabi_llm.store import Store

    settings, name = config.load(), ModelRef.parse(ref)
    found = verb.find(name, Store(settings.store), settings)
    machine = hardware.look(settings.env)
    how = replace(verb.how_here(settings, verb.backend_for(found, backend), kv), parallel=parallel)
    if target is not None:
        machine, how = verb.machine_of(machine, memory(target, "--target-memory")), verb.elsewhere(how)
    verdict = verb.report(found, machine, ctx, how)
    show.emit(verdict, as_json=json_, render=_show)
    if verdict.fits is False:
        raise typer.Exit(4)


def _show(verdict: Fit) -> None:
    from miyabi_llm.cli.show import human, table

    facts, needed = verdict.facts, verdict.needed
    types = ", ".join(f"{kind} {human(size)}" for kind, size in list(facts.types.items())[:3])
    print(f"{facts.architecture or 'unknown architecture'}  {facts.parameters / 1e9:.2f} B parameters  {types}")
    table(
        ("MEMORY", "", ""),
        (
            ("weights", human(needed.weights), ""),
            ("copy for this CPU", human(needed.repack), ""),
            ("context", human(needed.kv), f"{verdict.ctx} tokens in {verdict.kv_type}"),
            ("working memory", human(needed.compute), ""),
            ("program", human(needed.runtime), ""),
            ("needed", human(verdict.total), f"of {human(verdict.available)} on the {verdict.device}"),
            *([("earlier prompts", human(verdict.prompts), "at most, as it is used")] if verdict.prompts else []),
        ),
    )
    word = {True: "fits", False: "does not fit", None: "cannot be told: the memory of this machine is unknown"}
    most = f"; largest context {verdict.largest_ctx} tokens" if verdict.largest_ctx else ""
    print(f"{word[verdict.fits]}{most}")
    for line in verdict.advice:
        print(f"  {line}")
    for line in verdict.notes:
        print(f"note: {line}")
    if verdict.choices:
        _show_choices(verdict)
    elif verdict.fits is False and verdict.quants:
        table(
            ("OTHER FILES", "ABOUT", ""),
            ((q.name, human(q.total), "fits" if q.fits else "does not fit") for q in verdict.quants),
        )


def _show_choices(verdict: Fit) -> None:
    from miyabi_llm.cli.show import human, table

    table(
        ("FILES OF THE REPOSITORY", "SIZE", "NEEDS ABOUT", "", "LARGEST CONTEXT"),
        (
            (
                c.name,
                human(c.size),
                human(c.total),
                "fits: the largest that does" if c.best else "fits" if c.fits else "does not fit",
                str(c.largest_ctx or ""),
            )
            for c in verdict.choices
        ),
    )
