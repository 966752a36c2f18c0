"""Where a finished quantization goes beside the store: a report, a running Ollama; both looked at before the work."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from miyabi_llm import gguf, plots
from miyabi_llm.config import Settings
from miyabi_llm.errors import MiyabiError
from miyabi_llm.quantize import report, to_ollama
from miyabi_llm.quantize.run import Shop
from miyabi_llm.quantize.values import Handed, Made
from miyabi_llm.tools import llama_cpp
from miyabi_llm.tools.moment import Kitchen
from miyabi_llm.types import Event, OnEvent


@dataclass(frozen=True, slots=True)
class Outputs:
    """A report's path, and a name at Ollama; None: not wanted."""

    report: Path | None = None
    ollama: str | None = None


def check(place: Path | None, to: str | None, settings: Settings) -> Outputs:
    """What is wanted, as far as it can be checked before hours of work. Raises BadUsage, NetworkError, Missing."""
    if place is not None:
        plots.check(place)
    name = to_ollama.parse(to) if to is not None else None
    if name is not None:
        to_ollama.running(settings)
    return Outputs(place, name)


def deliver(made: Made, wanted: Outputs, shop: Shop, on_event: OnEvent) -> Made:
    """Hand the model over and write the report. The model stays published whatever fails here; the error says so."""
    try:
        if wanted.ollama is not None:
            made = replace(made, handed=_hand(made, wanted.ollama, shop, on_event))
        if wanted.report is not None:
            plots.save(wanted.report, report.picture(made), report.page(made))
            on_event(Event("done", "report", str(wanted.report)))
    except MiyabiError as e:
        on_event(Event("warning", "quantize", f"{made.artifact.ref} is published all the same"))
        raise e
    return made


def _hand(made: Made, name: str, shop: Shop, on_event: OnEvent) -> Handed:
    artifact, settings = made.artifact, shop.settings
    files = shop.store.files(artifact)
    first = files[min(n for n in files if n.endswith(".gguf"))]
    with shop.store.lease(artifact), first.open("rb") as f, tempfile.TemporaryDirectory() as folder:
        header = gguf.read(f, first.stat().st_size)
        server = shop.programs.get(llama_cpp.SERVER) or llama_cpp.find(llama_cpp.SERVER, settings)
        kitchen = Kitchen(server, settings.env, Path(folder), shop.threads)
        wanted = to_ollama.Wanted(name, made.plan.ctx, header, settings)
        return to_ollama.hand(artifact, files, wanted, kitchen, on_event)
