"""The engine `unsloth`: one NVIDIA card, in an environment of its own. It was not run where this was built.

Its pins cannot live beside those of `trl` (it wants trl 1.15 or older). Its calls are in child/train_unsloth.py; a
test holds them against the signatures in its published wheel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miyabi_llm.engines import environment, worker
from miyabi_llm.engines.base import Job
from miyabi_llm.engines.environment import Pins
from miyabi_llm.types import OnEvent, silent

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.hardware import Hardware
    from miyabi_llm.tools.envs import Env

PINS = Pins(
    "train-unsloth",
    (
        "unsloth==2026.10.9",
        "unsloth_zoo==2026.10.9",
        "trl==1.15.0",
        "transformers==5.17.0",
        "gguf==0.19.0",
        "tensorboardX==2.6.5",
    ),
    size="8 GB",
)
COMPUTE = 7.0  # the oldest CUDA compute capability unsloth's README names
METHODS = ("sft", "dpo", "kto", "orpo")


@dataclass(frozen=True, slots=True)
class Unsloth:
    """Unsloth's kernels on one NVIDIA card."""

    name: str = "unsloth"

    def why_not(self, machine: Hardware, method: str = "sft", processes: int = 1) -> str | None:
        """It needs one NVIDIA card with compute capability 7.0 or newer, on Linux."""
        if machine.system != "Linux":
            return f"it is not used on {machine.system}"
        cards = [g for g in machine.gpus if g.kind == "cuda"]
        if not cards:
            return "it needs an NVIDIA card"
        if method not in METHODS:
            return f"it does not do {method}"
        if processes > 1:
            return "it is used for one process only"
        if not any(_number(g.compute) >= COMPUTE for g in cards):
            return f"it needs compute capability {COMPUTE}"
        return None

    def find(self, settings: Settings) -> Env | None:
        """See Engine."""
        return environment.find(PINS, settings)

    def install(self, settings: Settings, on_event: OnEvent = silent) -> Env:
        """See Engine."""
        return environment.install(PINS, settings, on_event, gpu=True)

    def run(self, job: Job, work: Path, settings: Settings, on_event: OnEvent = silent) -> Mapping[str, Any]:
        """See Engine."""
        return worker.run(environment.need(PINS, settings), job, work, settings, on_event)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
