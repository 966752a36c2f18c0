"""From the merged model to GGUF files: converted and proved by the gates of `quantize`, then made smaller."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miyabi_llm.finetune import divergence, tools
from miyabi_llm.finetune.context import RunContext, StageResult, digest, made_by, section
from miyabi_llm.quantize import convert, original, sizes
from miyabi_llm.quantize import run as quantizing_run
from miyabi_llm.quantize.source import open_source
from miyabi_llm.quantize.work import working
from miyabi_llm.refs import ModelRef
from miyabi_llm.store.adopt import hash_file
from miyabi_llm.tools import quantizing
from miyabi_llm.tools.quantizing import Tools
from miyabi_llm.types import Event

FULL = "F16"
MIB = 1 << 20


def full_file(ctx: RunContext) -> Path:
    """The converted file, in 16 bits."""
    return ctx.run.gguf / f"{word(ctx)}-{FULL}.gguf"


def typed_file(ctx: RunContext, kind: str) -> Path:
    """The file of one type."""
    return ctx.run.gguf / f"{word(ctx)}-{kind}.gguf"


def finished(ctx: RunContext) -> dict[str, Path]:
    """The files that are proved and published, by type: those of the recipe, or the converted one alone."""
    kinds = ctx.recipe.export.types
    return {kind: typed_file(ctx, kind) for kind in kinds} if kinds else {FULL: full_file(ctx)}


def word(ctx: RunContext) -> str:
    """The name under which it is published, as part of a file's name."""
    return convert.word(ctx.loaded.name)


def gguf_inputs(ctx: RunContext) -> Mapping[str, str]:
    """The merged folder."""
    return {**made_by(ctx, "merge"), "name": word(ctx)}


def to_gguf(ctx: RunContext) -> StageResult:
    """Convert the merged folder; the file appears whole and proved, or not at all.

    Raises GateFailed when it is not the merged model, BadUsage for what llama.cpp cannot convert, DiskFull.
    """
    target = full_file(ctx)
    kit = tools.kit(ctx)
    tools.programs(tools.needed(ctx), ctx.settings)  # said before the minutes of converting
    folder = original.open_folder(ModelRef.parse(f"file:{ctx.run.merged}"), ctx.store, ctx.settings.user_home)
    ref = ModelRef.parse(f"{word(ctx)}:f16".lower())
    with working(ctx.store, ctx.settings.cache) as work:
        made, card = convert.written(folder, ref, kit, work)
        place(made, target)
    size = target.stat().st_size
    return StageResult(
        {"told": f"{target.name}, {size / MIB:.1f} MiB", "file": target.name, "size": size, **card}, (target,)
    )


def quantize_inputs(ctx: RunContext) -> Mapping[str, str]:
    """The converted file, the types wanted, and how far they may be from it on the held-out rows."""
    limit = ctx.recipe.export.max_kld
    measured = {} if limit is None else {**made_by(ctx, "data"), "max_kld": str(limit)}
    return {**made_by(ctx, "gguf"), "types": digest(list(ctx.recipe.export.types)), **measured}


def quantize(ctx: RunContext) -> StageResult:
    """Make each type of the recipe; every header is held against the plan of the tool. Raises as `quantize` does.

    With `export.max_kld` each file is measured against the one in 16 bits: GateFailed where one is too far.
    """
    source = open_source(ModelRef.parse(f"file:{full_file(ctx)}"), ctx.store, ctx.settings.user_home)
    told: dict[str, Any] = {}
    made: list[Path] = []
    with working(ctx.store, ctx.settings.cache) as work:
        programs = tools.programs((quantizing.QUANTIZE,), ctx.settings)
        tool = Tools(programs, ctx.settings.env, work.folder)
        for kind in ctx.recipe.export.types:
            target = typed_file(ctx, kind)
            ctx.on_event(Event("phase", "quantize", kind))
            planned = sizes.planned(source.header, tool.dry_run(source.first, kind), kind, 2048, (), None)
            part = work.target()
            tool.quantize(source.first, part, kind, requantize=False, on_event=ctx.on_event)
            quantizing_run.verify_header(source, planned, part)
            place(part, target)
            told[kind] = {"file": target.name, "size": target.stat().st_size, "fallbacks": planned.fallbacks,
                          "tensors": {k: n for k, (n, _) in planned.tensors.items()}}  # fmt: skip
            made.append(target)
    if ctx.recipe.export.max_kld is not None:
        for kind, lost in divergence.measured(ctx, source, dict(zip(told, made, strict=True))).items():
            told[kind]["loss"] = lost
    words = ", ".join(f"{kind} {one['size'] / MIB:.1f} MiB" for kind, one in told.items())
    return StageResult({"told": words or "no types wanted", "types": told}, tuple(made))


def place(made: Path, target: Path) -> None:
    """Give a finished file its name: in one step where it lies on the same disk, else by way of a name beside it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(made, target)
    except OSError:
        part = target.with_name(f".{target.name}.part")
        shutil.move(made, part)
        os.replace(part, target)


def sha256(path: Path) -> str:
    """The hash of a file."""
    return str(hash_file(path))


def wanted(ctx: RunContext) -> str:
    """The recipe's section `export`, for `inputs`."""
    return section(ctx, "export")
