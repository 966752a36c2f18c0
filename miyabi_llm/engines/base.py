"""What a training engine is: an environment of its own, and jobs that a child does in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from miyabi_llm.types import OnEvent, silent

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.hardware import Hardware
    from miyabi_llm.tools.envs import Env


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work for a child: `kind` names a module under engines/child, `order` is plain JSON for it.

    Paths in the order are absolute strings. `processes` above 1 starts the child under accelerate, which `launch`
    configures (the strategy, and words for accelerate). `env` is added to the child's environment.
    """

    kind: str
    order: Mapping[str, Any]
    processes: int = 1
    launch: Mapping[str, Any] | None = None
    env: Mapping[str, str] | None = None


class Engine(Protocol):
    """One way to train, in an environment of its own. Never imported into this process: a child does the work."""

    @property
    def name(self) -> str:
        """As recipes write it."""

    def why_not(self, machine: Hardware, method: str = "sft", processes: int = 1) -> str | None:
        """Why it cannot be used on this machine for this method, in one clause; None when it can. Reads no disk."""

    def find(self, settings: Settings) -> Env | None:
        """Its environment, when it is here and whole. Starts no program."""

    def install(self, settings: Settings, on_event: OnEvent = silent) -> Env:
        """Its environment, made from pins if it is not here. Idempotent.

        Raises Missing when the package index does not give the packages, NetworkError when offline by choice.
        """

    def run(self, job: Job, work: Path, settings: Settings, on_event: OnEvent = silent) -> Mapping[str, Any]:
        """Do `job` in a child of the environment, with `work` as its private folder; what it answers.

        Its events are passed on. Raises Missing when the environment is not here, and what `worker.run` raises.
        """
