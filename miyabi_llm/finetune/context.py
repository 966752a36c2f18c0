"""What a stage is given and gives back. Stages import this; the table of them is in `stages`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miyabi_llm.config import Settings
from miyabi_llm.engines.base import Engine, Job
from miyabi_llm.errors import MiyabiError
from miyabi_llm.finetune.load import Loaded
from miyabi_llm.finetune.recipe import Recipe
from miyabi_llm.finetune.record import Record
from miyabi_llm.finetune.rundir import RunDir
from miyabi_llm.hardware import Hardware
from miyabi_llm.store import Store
from miyabi_llm.types import Artifact, OnEvent


@dataclass(frozen=True, slots=True)
class Verbs:
    """What other verbs do for a run; a face hands them in, for a verb does not call another.

    `bring` gives the stored model of a name, pulled if it is not here; `convert` its copy in safetensors.
    """

    bring: Callable[[str, OnEvent], Artifact]
    convert: Callable[[Artifact, OnEvent], Artifact]


@dataclass(frozen=True, slots=True)
class Base:
    """The model a run starts from: its HF folder, its name for people, and the hash of all its files.

    `gguf` is the stored GGUF model it was copied from, if it was.
    """

    folder: Path
    label: str
    sha256: str
    gguf: str | None = None


@dataclass(frozen=True, slots=True)
class RunContext:
    """Everything a stage may look at. `record` holds what earlier stages found."""

    loaded: Loaded
    run: RunDir
    record: Record
    settings: Settings
    store: Store
    machine: Hardware
    engine: Engine
    verbs: Verbs
    on_event: OnEvent

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.loaded.recipe

    @property
    def base(self) -> Base:
        """The base model, once the stage `base` is done."""
        told = self.record.figures("base")
        if not told:
            raise MiyabiError("the stage `base` is not done", hint=f"`miyabi-llm finetune resume {self.run.name}`")
        return Base(Path(told["folder"]), told["label"], told["sha256"], told["gguf"])

    @property
    def precision(self) -> str:
        """fp32 or bf16: what `train.precision` means on this machine, as the stage `check` decided."""
        told = self.record.figures("check").get("precision")
        return str(told) if told else precision(self.recipe, self.machine)

    def job(self, kind: str, order: Mapping[str, Any], **more: Any) -> Mapping[str, Any]:
        """Do a job in the engine's environment; its answer. Raises what `worker.run` raises."""
        self.run.work.mkdir(parents=True, exist_ok=True)
        if self.recipe.base.tiny is not None and "OMP_NUM_THREADS" not in self.settings.env:
            # Several threads of a tiny model only wait for each other: on two busy cores ten steps took 58 s, with one
            # thread 5.6 s, and gave the same bytes.
            more["env"] = {"OMP_NUM_THREADS": "1", **(more.get("env") or {})}
        return self.engine.run(Job(kind, order, **more), self.run.work, self.settings, self.on_event)


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage found and made: `figures` as plain JSON, `files` under the run's folder that later ones read."""

    figures: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


def always(ctx: RunContext) -> str:
    """A stage that is never left out."""
    return ""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a run.

    `inputs` names what it depends on, each with a hash or a value: unchanged, a finished stage is not done again.
    `left_out` says why this recipe does not need it, empty when it does. A `fixed` stage whose inputs changed after it
    was done is never done again: the run is refused. `again` is done in every run.
    """

    name: str
    run: Callable[[RunContext], StageResult]
    inputs: Callable[[RunContext], Mapping[str, str]]
    left_out: Callable[[RunContext], str] = always
    fixed: bool = False
    again: bool = False


def digest(value: Any) -> str:
    """A short hash of plain JSON, for `inputs`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def section(ctx: RunContext, *names: str) -> str:
    """The hash of sections of the recipe, for `inputs`."""
    resolved = ctx.loaded.resolved()
    return digest([resolved[name] for name in names])


def made_by(ctx: RunContext, *stages: str) -> dict[str, str]:
    """The hash of what earlier stages made, for `inputs`; a stage that was left out counts by that."""
    found = {}
    for name in stages:
        done = ctx.record.get(name)
        found[name] = digest({k: v.sha256 for k, v in done.outputs.items()}) if done else "left out"
    return found


def listed(folder: Path, names: Iterable[str] | None = None) -> tuple[Path, ...]:
    """The files of a folder that a stage made, for `StageResult.files`."""
    if names is not None:
        return tuple(folder / n for n in names)
    return tuple(sorted(p for p in folder.rglob("*") if p.is_file()))


def precision(recipe: Recipe, machine: Hardware) -> str:
    """What `train.precision` means here. Pure.

    auto is bf16 on cards of compute capability 8.0 or newer and on CPUs with instructions for it (AMX, AVX512-BF16),
    else fp32: without them a CPU computes bf16 by way of fp32, and slower.
    """
    if recipe.train.precision != "auto":
        return recipe.train.precision
    for card in machine.gpus:
        if card.kind == "cuda":
            try:
                return "bf16" if float(card.compute) >= 8.0 else "fp32"
            except ValueError:
                return "fp32"
    return "bf16" if {"amx_bf16", "avx512_bf16"} & machine.cpu_flags else "fp32"
