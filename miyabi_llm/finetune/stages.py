"""The table of stages, in their order. A stage is a function and what it depends on; see `context.Stage`."""

from __future__ import annotations

from miyabi_llm.finetune import (
    base,
    card,
    checking,
    evaluate,
    export,
    gating,
    merge,
    parity_stage,
    publish,
    report,
    rows,
    training,
)
from miyabi_llm.finetune.context import Stage

STAGES: tuple[Stage, ...] = (
    Stage("base", base.run, base.inputs, fixed=True),
    Stage("check", checking.run, checking.inputs),
    Stage("data", rows.run, rows.inputs, fixed=True),
    Stage("names", publish.foresee, publish.foresee_inputs),
    Stage("evaluate-base", evaluate.run_base, evaluate.base_inputs),
    Stage("train", training.run, training.inputs, fixed=True),
    Stage("evaluate-adapter", evaluate.run_adapter, evaluate.adapter_inputs),
    Stage("merge", merge.run, merge.inputs),
    Stage("evaluate-merged", evaluate.run_merged, evaluate.merged_inputs),
    Stage("gguf", export.to_gguf, export.gguf_inputs),
    Stage("quantize", export.quantize, export.quantize_inputs),
    Stage("parity", parity_stage.run, parity_stage.inputs, parity_stage.left_out),
    Stage("evaluate-gguf", evaluate.run_gguf, evaluate.gguf_inputs),
    Stage("gates", gating.run, gating.inputs),
    Stage("publish", publish.run, publish.inputs),
    Stage("ollama", publish.to_running_ollama, publish.ollama_inputs, publish.ollama_left_out),
    Stage("card", card.run, card.inputs, again=True),
    Stage("report", report.run, report.inputs, again=True),
)
