"""The command `fit`: whether a model fits this machine, before it is pulled or served."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from miyabi_llm.fit import Fit

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command("fit")
def fit(
    ref: str = typer.Argument(
        help="A model in the store, a file, or a name; of one that is not here the header is fetched."
    ),
    ctx: int | None = typer.Option(None, "--ctx", metavar="TOKENS", help="Context to plan for (default: 8192)."),
    kv: str = typer.Option("f16", "--kv", metavar="TYPE", help="Type of the cache: f16, q8_0, q4_0."),
    parallel: int | None = typer.Option(None, "--parallel", help="Requests at a time, each with its part."),
    json_: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Say whether a model fits this machine, and how."""
    from miyabi_llm import config, hardware
    from miyabi_llm import fit as verb
    from miyabi_llm.cli import show
    from miyabi_llm.refs import ModelRef
    from miyabi_llm.store import Store

    settings = config.load()
    header, _ = verb.find_header(ModelRef.parse(ref), Store(settings.store), settings)
    machine, amx = hardware.look(settings.env), verb.server_uses_amx(settings)
    verdict = verb.judge(header, machine, ctx, verb.How(kv_type=kv, parallel=parallel, amx=amx))
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
        ),
    )
    word = {True: "fits", False: "does not fit", None: "cannot be told: the memory of this machine is unknown"}
    most = f"; largest context {verdict.largest_ctx} tokens" if verdict.largest_ctx else ""
    print(f"{word[verdict.fits]}{most}")
    for line in verdict.advice:
        print(f"  {line}")
    for line in verdict.notes:
        print(f"note: {line}")
    if verdict.fits is False and verdict.quants:
        table(
            ("OTHER FILES", "ABOUT", ""),
            ((q.name, human(q.total), "fits" if q.fits else "does not fit") for q in verdict.quants),
        )
