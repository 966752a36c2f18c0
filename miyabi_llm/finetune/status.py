"""How runs stand: what is finished, what goes on, how far. Reads files only."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miyabi_llm.engines import checkpoints
from miyabi_llm.errors import BadUsage, MiyabiError
from miyabi_llm.finetune import rundir
from miyabi_llm.finetune.record import Record
from miyabi_llm.finetune.rundir import RunDir


@dataclass(frozen=True, slots=True)
class Standing:
    """One run. `state` is running, finished, stopped or damaged; `stage` the one it is in or was in last.

    `step` and `steps` of the training, `last` its newest row of figures; `checkpoints` are steps one can go on from;
    `heard` is how many seconds ago it last said something.
    """

    name: str
    folder: Path
    state: str
    stage: str
    finished: tuple[str, ...]
    step: int = 0
    steps: int = 0
    last: Mapping[str, Any] | None = None
    checkpoints: tuple[int, ...] = ()
    heard: float | None = None
    trouble: str = ""


def all_of(home: Path, stages: tuple[str, ...]) -> list[Standing]:
    """Every run; `stages` are the names of the table."""
    return [of(run, stages) for run in rundir.all_of(home)]


def one(home: Path, name: str, stages: tuple[str, ...]) -> Standing:
    """The run `name`. Raises BadUsage when there is none."""
    run = rundir.place(home, name)
    if not run.root.is_dir():
        names = ", ".join(r.name for r in rundir.all_of(home)) or "none yet"
        raise BadUsage(f"there is no run {name}", hint=f"Runs: {names}.")
    return of(run, stages)


def of(run: RunDir, stages: tuple[str, ...]) -> Standing:
    """How a run stands."""
    try:
        done = Record(run).all()
    except MiyabiError as e:
        return Standing(run.name, run.root, "damaged", "", (), trouble=e.message)
    events = rundir.heard(run)
    step = next((e for e in reversed(events) if e["kind"] == "progress" and "loss" in (e.get("data") or {})), None)
    finished = tuple(s for s in stages if s in done)
    left = [s for s in stages if s not in done]
    state = "running" if rundir.busy(run) else "stopped" if left else "finished"
    stage = str(events[-1].get("stage", "")) if events else ""
    return Standing(
        run.name,
        run.root,
        state,
        stage,
        finished,
        int(step["done"]) if step else 0,
        int(step["total"] or 0) if step else 0,
        step["data"] if step else None,
        tuple(n for n, _ in checkpoints.steps(run.checkpoints)),
        round(time.time() - float(events[-1].get("at", time.time())), 1) if events else None,
    )
