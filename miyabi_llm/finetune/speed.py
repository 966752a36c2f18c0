"""How fast this machine trains: by earlier trainings, else by small matrix products for a fifth of a second."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from miyabi_llm.config import Settings
from miyabi_llm.finetune.rundir import write_json
from miyabi_llm.hardware import Hardware

# Part of a multiplication's speed that a training reached, for models of a billion weights and more; see
# docs/explanation/finetune-engines.md for the runs.
PART = {"fp32": 0.5, "bf16": 0.25}
SIZE, SPENT = 64, 0.2  # small enough for one thread and a few microseconds: some of them meet nobody else here


@dataclass(frozen=True, slots=True)
class Speed:
    """Operations a second, and whether an earlier training gave it."""

    flops: float
    measured: bool


def known(machine: Hardware, way: str, settings: Settings) -> Speed | None:
    """What is known: `way` names method, precision and about how large the model is (see `way`)."""
    if (told := _read(settings).get(_key(machine, way))) is not None:
        return Speed(float(told), True)
    if machine.gpus:
        return None  # a card's speed is not guessed
    precision = "bf16" if "bf16" in way else "fp32"
    return Speed(multiply() * machine.usable_cores * PART[precision], False)


def way(method: str, precision: str, parameters: int) -> str:
    """Trainings that are alike: a model ten times as large is another. Pure."""
    return f"{method} {precision} 1e{len(str(max(1, parameters))) - 1}"


def learn(machine: Hardware, way: str, flops: float, settings: Settings) -> None:
    """Keep what a training reached; the newest counts half."""
    told = _read(settings)
    key = _key(machine, way)
    old = told.get(key)
    told[key] = flops if old is None else (float(old) + flops) / 2
    write_json(settings.cache / "finetune-speed.json", told)


def multiply() -> float:
    """Operations a second of one core at products of small float32 matrices: the best of a fifth of a second."""
    import numpy as np

    a, made = np.ones((SIZE, SIZE), np.float32), np.empty((SIZE, SIZE), np.float32)
    best, until = 0.0, time.perf_counter() + SPENT
    while time.perf_counter() < until or not best:
        started = time.perf_counter()
        np.matmul(a, a, out=made)
        best = max(best, 2 * SIZE**3 / (time.perf_counter() - started))
    return best


def _key(machine: Hardware, way: str) -> str:
    cards = ",".join(g.name for g in machine.gpus)
    return f"{cards or machine.cpu} x{len(machine.gpus) or machine.usable_cores} {way}"


def _read(settings: Settings) -> dict[str, Any]:
    try:
        told = json.loads((settings.cache / "finetune-speed.json").read_text(encoding="utf-8"))
        return {str(k): v for k, v in told.items() if isinstance(v, int | float) and v > 0}
    except (OSError, ValueError, AttributeError):
        return {}
