"""The stage `merge`: the adapter in its base, as safetensors, and how near that is to what was trained."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from miyabi_llm.finetune import evaluate
from miyabi_llm.finetune.context import RunContext, StageResult, listed, made_by
from miyabi_llm.types import Event

POSITIONS = 256  # answer tokens at which merged and unmerged are compared, at most
# Most that merging may change, mean KL divergence in nats. Into the base as trained only rounding is left; the full
# base is another model than the one that was trained on, and is taken only where it was asked for or is nearer.
MOST = {"trained": 1e-3, "auto": 1e-3, "full": 0.1}


def inputs(ctx: RunContext) -> Mapping[str, str]:
    """Adapter, base, the rows it is compared on, and which base is wanted."""
    return {
        **made_by(ctx, "train", "data"), "base": ctx.base.sha256, "merge_base": ctx.recipe.export.merge_base,
        "evaluate": evaluate.words(ctx),
    }  # fmt: skip


def run(ctx: RunContext) -> StageResult:
    """Merge, then measure the merged folder in the same child. Raises GateFailed where it is another model."""
    shutil.rmtree(ctx.run.merged, ignore_errors=True)
    rows = evaluate.write_rows(ctx)
    order: dict[str, Any] = {
        "kind": "merge", "model": evaluate.trained(ctx), "rows": str(rows), "positions": POSITIONS,
        "base": ctx.recipe.export.merge_base, "most": MOST[ctx.recipe.export.merge_base],
        "target": str(ctx.run.merged), "template": evaluate.template(ctx),
    }  # fmt: skip
    score = evaluate.order(ctx, rows, {"merged": {"base": str(ctx.run.merged), "precision": "fp32"}})
    merged, scored = ctx.job("prove", {"jobs": [order, {"kind": "score", **score}]})["answers"]
    if merged["base"] == "full" and len(merged["tried"]) == 1 and merged["kld"] > MOST["trained"]:
        words = f"the full base was asked for: it is {merged['kld']:.1e} nats from what was trained"
        ctx.on_event(Event("warning", "merge", words))
    kept = evaluate.keep(ctx, "merged", scored["stages"]["merged"])
    words = f"{merged['base']} base, {merged['kld']:.1e} nats from the adapter, {merged['dtype']}"
    return StageResult({"told": words, **merged}, (*listed(ctx.run.merged), kept))
