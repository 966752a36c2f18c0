"""The engine `trl`: transformers, peft and trl, on a CPU, CUDA or Metal."""

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
    "train-trl",
    (
        "torch==2.13.0",
        "transformers==5.17.0",
        "trl==1.16.0",
        "peft==0.21.2",
        "bitsandbytes==0.50.2",
        "accelerate==1.15.0",
        "datasets==5.2.0",
        "gguf==0.19.0",  # `convert` reads GGUF files here
        "tensorboardX==2.6.5",
        "sentencepiece==0.2.3",
        "protobuf==7.36.2",
    ),
    "train_cpu_lock.txt",
)


@dataclass(frozen=True, slots=True)
class Trl:
    """peft and trl: runs everywhere, slowest on a CPU."""

    name: str = "trl"

    def why_not(self, machine: Hardware, method: str = "sft", processes: int = 1) -> str | None:
        """It runs wherever its environment can be made."""
        return None

    def find(self, settings: Settings) -> Env | None:
        """See Engine."""
        return environment.find(PINS, settings)

    def install(self, settings: Settings, on_event: OnEvent = silent) -> Env:
        """See Engine. With an NVIDIA card the index's own torch is taken, else the CPU's build by its hash."""
        if (env := self.find(settings)) is not None:
            return env
        from miyabi_llm import hardware

        return environment.install(PINS, settings, on_event, gpu=bool(hardware.look(settings.env).gpus))

    def run(self, job: Job, work: Path, settings: Settings, on_event: OnEvent = silent) -> Mapping[str, Any]:
        """See Engine."""
        return worker.run(environment.need(PINS, settings), job, work, settings, on_event)
