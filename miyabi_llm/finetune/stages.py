"""The table of stages, in their order. A stage is a function and what it depends on; see `context.Stage`."""

from __future__ import annotations

from miyabi_llm.finetune import base, training
from miyabi_llm.finetune.context import Stage

STAGES: tuple[Stage, ...] = (
    Stage("base", base.run, base.inputs, fixed=True),
    Stage("train", training.run, training.inputs, fixed=True),
)
