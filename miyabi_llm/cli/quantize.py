"""The command `quantize`: a smaller file of a model, with the proof of what it lost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from miyabi_llm.cli.stored import complete

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.refs import ModelRef

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command("quantize")
def quantize(
    ref: str = typer.Argument(help="A stored model, or the path of a GGUF or an HF folder.", autocompletion=complete),
    types: list[str] = typer.Option([], "--type", "-t", metavar="TYPE", help="Q4_K_M, ...; several to choose from."),
    fit: str | None = typer.Option(
        None, "--fit", metavar="SIZE|auto", help="Memory it may take: 4GiB; auto: what is free."
    ),
    max_kld: float | None = typer.Option(
        None, "--max-kld", min=0, help="Most it may lose: mean KL divergence in nats."
    ),
    max_p999: float | None = typer.Option(
        None, "--max-p999", min=0, help="Most that one token in a thousand may differ (default: 50 x --max-kld)."
    ),
    min_top: float | None = typer.Option(
        None, "--min-top", min=0, max=100, help="Per cent of tokens whose likeliest stays (default: from --max-kld)."
    ),
    eval_: Path | None = typer.Option(
        None, "--eval", metavar="FILE", help="Text, or a .jsonl of conversations, to measure on (default: our own)."
    ),
    name: str | None = typer.Option(None, "--output", "-o", metavar="NAME", help="Name in the store."),
    ctx: int = typer.Option(8192, "--ctx", min=1, metavar="TOKENS", help="Context to plan the memory for."),
    chunks: int = typer.Option(16, "--chunks", min=1, max=4096, help="Windows of 256 tokens to measure on, at most."),
    threads: int | None = typer.Option(None, "--threads", min=1, help="Threads of the tools (default: theirs)."),
    requantize: bool = typer.Option(False, "--requantize", help="Go on with a source that was quantized before."),
    report: Path | None = typer.Option(
        None, "--report", metavar="FILE", help="Write a page or plot: .html, .svg, .png."
    ),
    to: str | None = typer.Option(None, "--to", metavar="ollama:NAME", help="Give it to the Ollama that runs here."),
    imatrix: str | None = typer.Option(
        None, "--imatrix", metavar="auto|FILE", help="Importance matrix: made here (of a text FILE), or a ready one."
    ),
    lora: Path | None = typer.Option(None, "--lora", metavar="PATH", help="Merge this adapter in first."),
    tensor_type: list[str] = typer.Option([], "--tensor-type", metavar="REGEX=TYPE", help="Another type for some."),
    output_type: str | None = typer.Option(None, "--output-tensor-type", metavar="TYPE", help="For the output."),
    embedding: str | None = typer.Option(None, "--token-embedding-type", metavar="TYPE", help="For the embeddings."),
    pure: bool = typer.Option(False, "--pure", help="One type for all matrices."),
    keep_split: bool = typer.Option(False, "--keep-split", help="As many files as the source has."),
    pull: bool = typer.Option(False, "--pull", help="Pull the model first when it is not here."),
    plan: bool = typer.Option(False, "--plan", help="Print sizes and memory, then stop. Needs only a header."),
    json_: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Quantize a model, measure the loss, and keep the best that fits."""
    from miyabi_llm import config, hardware
    from miyabi_llm import fit as fitting
    from miyabi_llm import quantize as verb
    from miyabi_llm.cli import progress, show, sources
    from miyabi_llm.cli import quantize_views as views
    from miyabi_llm.quantize import outputs
    from miyabi_llm.quantize.passing import Passing
    from miyabi_llm.quantize.run import Shop
    from miyabi_llm.store import Store
    from miyabi_llm.tools import install, llama_cpp, quantizing

    settings = config.load()
    store = Store(settings.store)
    wanted = outputs.check(report, to, settings)
    order = verb.Order(
        types=tuple(types), budget=budget(fit, settings), max_kld=max_kld, max_p999=max_p999,
        min_top=min_top, text=eval_, name=_name(name), ctx=ctx,
        requantize=requantize, window=quantizing.Window(chunks=chunks), imatrix=imatrix,
        passing=Passing(pure, tuple(tensor_type), output_type, embedding, keep_split),
    )  # fmt: skip
    with progress.shown(as_json=json_) as on_event:
        more = (*((quantizing.IMATRIX,) if imatrix else ()), *((quantizing.SPLIT,) if keep_split else ()))
        programs = install.install_programs((*quantizing.PROGRAMS, llama_cpp.SERVER, *more), settings, on_event)
        flags = hardware.cpu_flags()
        if not fitting.server_uses_amx(settings):
            flags = frozenset(f for f in flags if not f.startswith("amx"))
        shop = Shop(store, settings, programs, flags, threads)
        if plan:
            with sources.to_plan(ref, store, settings, on_event, lora, pull=pull) as source:
                found = verb.plan(source, order, shop, on_event)
            show.emit(found, as_json=json_, render=views.plan)
            return
        source = sources.open_source(ref, store, settings, on_event, lora, pull=pull)
        made = outputs.deliver(verb.quantize(source, order, shop, on_event), wanted, shop, on_event)
    show.emit(made, as_json=json_, render=views.made)


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
