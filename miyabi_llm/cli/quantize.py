"""The command `quantize`: a smaller file of a model, with the proof of what it lost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from miyabi_llm.cli.stored import complete

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.quantize import Made, Plan, Planned, Source
    from miyabi_llm.refs import ModelRef
    from miyabi_llm.store import Store

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command("quantize")
def quantize(
    ref: str = typer.Argument(help="A stored model, or the path of a GGUF file.", autocompletion=complete),
    types: list[str] = typer.Option([], "--type", "-t", metavar="TYPE", help="Q4_K_M, ...; several to choose from."),
    fit: str | None = typer.Option(
        None, "--fit", metavar="SIZE|auto", help="Memory it may take: 4GiB; auto: what is free."
    ),
    max_kld: float | None = typer.Option(
        None, "--max-kld", min=0, help="Most it may lose: mean KL divergence in nats."
    ),
    eval_: Path | None = typer.Option(
        None, "--eval", metavar="FILE", help="Text to measure on (default: a short own one)."
    ),
    name: str | None = typer.Option(None, "--output", "-o", metavar="NAME", help="Name in the store."),
    ctx: int = typer.Option(8192, "--ctx", min=1, metavar="TOKENS", help="Context to plan the memory for."),
    chunks: int = typer.Option(16, "--chunks", min=1, max=4096, help="Windows of 256 tokens to measure on, at most."),
    threads: int | None = typer.Option(None, "--threads", min=1, help="Threads of the tools (default: theirs)."),
    requantize: bool = typer.Option(False, "--requantize", help="Go on with a source that was quantized before."),
    plan: bool = typer.Option(False, "--plan", help="Print the sizes and the memory, then stop."),
    json_: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Quantize a model, measure the loss, and keep the best that fits."""
    from miyabi_llm import config, hardware
    from miyabi_llm import fit as fitting
    from miyabi_llm import quantize as verb
    from miyabi_llm.cli import progress, show
    from miyabi_llm.quantize.run import Shop
    from miyabi_llm.store import Store
    from miyabi_llm.tools import install, quantizing

    settings = config.load()
    store = Store(settings.store)
    source = _source(ref, store, settings)
    order = verb.Order(
        types=tuple(types), budget=budget(fit, settings), max_kld=max_kld, text=eval_, name=_name(name), ctx=ctx,
        requantize=requantize, window=quantizing.Window(chunks=chunks),
    )  # fmt: skip
    with progress.shown(as_json=json_) as on_event:
        programs = install.install_programs(quantizing.PROGRAMS, settings, on_event)
        flags = hardware.cpu_flags()
        if not fitting.server_uses_amx(settings):
            flags = frozenset(f for f in flags if not f.startswith("amx"))
        shop = Shop(store, settings, programs, flags, threads)
        found = verb.plan(source, order, shop, on_event) if plan else verb.quantize(source, order, shop, on_event)
    show.emit(found, as_json=json_, render=_plan if plan else _made)


def _source(text: str, store: Store, settings: Settings) -> Source:
    from miyabi_llm.cli import stored
    from miyabi_llm.errors import ModelMissing
    from miyabi_llm.quantize import open_source

    ref = stored.parse(text, settings)
    try:
        return open_source(ref, store, settings.user_home)
    except ModelMissing as e:
        raise e if e.details.get("damaged") or ref.scheme == "file" else stored.missing(ref, store, settings) from e


def _name(text: str | None) -> ModelRef | None:
    from miyabi_llm.refs import ModelRef

    return ModelRef.parse(text) if text is not None else None


def budget(text: str | None, settings: Settings) -> int | None:
    """Bytes of memory out of 4GiB, 300MiB, 2.5G or auto. Raises BadUsage, MachineLimit when auto cannot be told."""
    from miyabi_llm import hardware
    from miyabi_llm.cli.sizes import memory
    from miyabi_llm.errors import MachineLimit
    from miyabi_llm.memory import MARGIN

    if text is None:
        return None
    if text.lower() == "auto":
        machine = hardware.look(settings.env)
        if not machine.ram_total:
            raise MachineLimit("the memory of this machine cannot be told", hint="Say it: --fit 4GiB.")
        return max(0, machine.ram_available - MARGIN)
    return memory(text, "--fit")


def _plan(plan: Plan) -> None:
    from miyabi_llm.cli.show import human, note, table

    rows = []
    for p in sorted(plan.types, key=lambda p: -p.size):
        fits = "" if p.fits is None else "fits" if p.fits else "does not fit"
        saved, bits = f"{100 * p.saved:.1f}%", f"{p.bits:.2f}"
        rows.append((p.type, human(p.size), saved, bits, human(p.needed), fits, _remark(p)))
    table(("TYPE", "SIZE", "SAVED", "BITS", f"MEMORY AT {plan.ctx}", "", ""), rows)
    note(f"source: {plan.source}, {human(plan.source_size)}; {plan.provenance.evidence}")
    if plan.budget is not None:
        note(f"to be made, in this order, until one passes: {', '.join(plan.order) or 'none fits'}")
    note(f"disk while it works: at most {human(sum(plan.disk.values()))}")


def _remark(p: Planned) -> str:
    if p.needs_imatrix:
        return "needs an importance matrix"
    if p.dominated:
        return f"not smaller than {p.dominated}, and expected to be worse"
    return f"tensors of another type: {p.fallbacks}" if p.fallbacks else ""


def _made(made: Made) -> None:
    from miyabi_llm.cli.show import human, note, table

    rows = []
    for m in made.measured:
        q = m.quality
        word = "given up" if q.stopped else "too much" if m.passed is False else ""
        mark = "chosen" if m.type == made.chosen.type else word
        rows.append(
            (
                *(m.type, human(m.size), f"{q.kld:.6f}", f"{q.low:.6f} to {q.high:.6f}"),
                *(f"{q.p999:.4f}" if q.p999 is not None else "", f"{q.same_top:.1f}%"),
                *(f"{q.ppl_ratio:.4f}" if q.ppl_ratio is not None else "", "*" if m.best else "", mark),
            )
        )
    table(("TYPE", "SIZE", "MEAN KLD", "95% INTERVAL", "99.9% KLD", "SAME TOP", "PPL RATIO", "FRONT", ""), rows)
    q = made.quality
    print(f"\n{made.artifact.ref}  {human(made.artifact.size)}  {q.kld:.6f} nats\nagainst {q.against}")
    used = f"memory {human(made.chosen.needed)} at {made.plan.ctx} tokens"
    print(f"measured on {q.tokens} tokens in {q.chunks} windows; {used}")
    if s := made.speed:
        writing, reading = f"{s.speed:.1f} ± {s.spread:.1f}", f"{s.prompt_speed:.1f} ± {s.prompt_spread:.1f}"
        print(f"{writing} tokens/s writing, {reading} reading, {s.threads} threads")
    for line in made.notes:
        note(f"note: {line}")
