"""The adapter alone: as GGUF for llama-server, in peft's layout for vLLM; heard in the server before it is written.

llama.cpp's converter leaves out what rsLoRA and alpha patterns scale by; `quantize` puts that in. The proof is the
server's: with the adapter off it must speak as the base does, with it on as the trainer did.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miyabi_llm.errors import BadUsage, GateFailed
from miyabi_llm.finetune import evaluate, export, parity, tools
from miyabi_llm.finetune.context import RunContext
from miyabi_llm.finetune.server import Server
from miyabi_llm.quantize import adapters, convert, merging, original
from miyabi_llm.quantize.gates import failed
from miyabi_llm.quantize.work import working
from miyabi_llm.refs import ModelRef
from miyabi_llm.tools.moment import moment
from miyabi_llm.types import Adapter, Event, Finding

PEFT = ("adapter_config.json", "adapter_model.safetensors")
LEAST = 1e-4  # nats: an adapter that moves less does nothing


@dataclass(frozen=True, slots=True)
class Alone:
    """What was written: the GGUF and peft's folder, what had to be corrected, and what the server said with it."""

    gguf: Path
    peft: Path
    note: str
    sha256: str
    moved: float
    delta: float
    kl: float
    base: str


def write(ctx: RunContext, target: Path) -> Alone:
    """Write `NAME.gguf` and the folder `NAME` into `target`, which is made.

    Raises BadUsage for what no adapter file can hold (DoRA, whole modules, a full training), GateFailed when the
    server with the adapter is not the trained model.
    """
    if ctx.recipe.lora.method == "full":
        raise BadUsage("every weight was trained: there is no adapter", hint="Serve the published GGUF.")
    refuse(*adapters.read(ctx.run.adapter))
    kit = tools.kit(ctx)
    name = export.word(ctx)
    with working(ctx.store, ctx.settings.cache) as work:
        folder = original.open_folder(ModelRef.parse(f"file:{ctx.base.folder}"), ctx.store, ctx.settings.user_home)
        made, note = merging.converted(ctx.run.adapter, folder, kit, work)
        ctx.on_event(Event("phase", "adapter", "the base as GGUF, to hear it with the adapter"))
        model, _ = convert.written(folder, ModelRef.parse(f"{name}-base:f16".lower()), kit, work)
        try:
            moved, table = heard(ctx, model, made)
        finally:
            model.unlink(missing_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        file = target / f"{name}.gguf"
        export.place(made, file)
    peft = target / name
    peft.mkdir(exist_ok=True)
    for part in PEFT:
        shutil.copyfile(ctx.run.adapter / part, peft / part)
    return Alone(file, peft, note, export.sha256(file), moved, table.delta, table.kl, ctx.base.label)


def refuse(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> None:
    """Raise BadUsage for what no adapter file of llama.cpp can hold. Pure."""
    adapters.refuse(config, tensors)
    if why := adapters.merge_first(config, tensors):
        raise BadUsage(
            f"the adapter {why}: no adapter file of llama.cpp can hold that", hint="Serve the published GGUF."
        )


def heard(ctx: RunContext, model: Path, adapter: Path) -> tuple[float, parity.Parity]:
    """How far the adapter moves the server, in nats, and the table of the server with it. Raises GateFailed."""
    told: Mapping[str, Any] = json.loads(evaluate.proof(ctx, evaluate.PROBES).read_text(encoding="utf-8"))
    want = parity.trainer(told)
    kitchen, size = tools.kitchen(ctx), evaluate.context(ctx, parity.TOKENS)
    asked = [p for p in told["asked"] if p["answered"]]
    want = {p["name"]: want[p["name"]] for p in asked}
    with moment(model, kitchen, size) as running:
        off = parity.server(Server(running, evaluate.template(ctx)), asked, want)
    with moment(model, kitchen, size, (Adapter("adapter", adapter),)) as running:
        on = parity.server(Server(running, evaluate.template(ctx)), asked, want)
        begin = running.begin()
    moved = max((parity.delta(a, b) for n in want for a, b in zip(off[n].steps, on[n].steps, strict=True)), default=0.0)
    if moved < LEAST:
        raise GateFailed("the adapter changes nothing in what the server says", hint="Nothing was written.")
    kind = "F16" if ctx.recipe.lora.method != "qlora" else "Q4_K_M"  # it was trained on a base rounded to 4 bits
    table = parity.judge(kind, want, on, (), begin)
    if wrong := failed(table.findings):
        raise GateFailed(
            f"the server with the adapter is not the trained model: {_said(wrong[0])}",
            hint="Nothing was written. The merged model is measured in the run.",
        )
    return moved, table


def _said(one: Finding) -> str:
    return f"{one.name.removeprefix('parity: ')}: {one.message}"
