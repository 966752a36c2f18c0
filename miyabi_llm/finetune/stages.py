"""The table of stages, in their order. A stage is a function and what it depends on; see `context.Stage`."""

from __future__ import annotations

from miyabi_llm.finetune import base, checking, rows, training
from miyabi_llm.finetune.context import Stage

STAGES: tuple[Stage, ...] = (
    Stage("base", base.run, base.inputs, fixed=True),
    Stage("check", checking.run, checking.inputs),
    Stage("data", rows.run, rows.inputs, fixed=True),
    Stage("train", training.run, training.inputs, fixed=True),
)
