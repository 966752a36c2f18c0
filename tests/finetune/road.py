"""A whole run on the tiny model, from rows to a published GGUF, with everything real: made once for many tests."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from miyabi_llm import hardware
from miyabi_llm.finetune import load, run
from miyabi_llm.finetune.context import RunContext, Stage, Verbs
from miyabi_llm.finetune.stages import STAGES
from miyabi_llm.store import Store
from miyabi_llm.types import Artifact
from tests.conftest import USER

CAPITALS = {"Japan": "Tokyo", "France": "Paris", "Italy": "Rome", "Peru": "Lima", "Kenya": "Nairobi", "Cuba": "Havana"}
ASKED = ("What is the capital of {}?", "Capital of {}", "Name the capital city of {}.", "{} capital?")
RECIPE = """
base: {{model: {base}}}
data: {{train: rows.jsonl, eval_fraction: 0.25, max_length: 128}}
lora: {{method: {method}, rank: 8, alpha: 16}}
train: {{max_steps: {steps}, batch_size: 4, learning_rate: 0.005, precision: fp32, save_steps: 100}}
evaluate: {{samples: 6, max_tokens: 16, forgetting: rows.jsonl}}
export: {{name: {name}, types: [Q8_0]}}
"""


def row(country: str, question: str) -> dict[str, Any]:
    """A question with its answer."""
    said = f"{CAPITALS[country]} is the capital of {country}."
    return {"messages": [{"role": "user", "content": question.format(country)}, {"role": "assistant", "content": said}]}


def pair(country: str, question: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The question, and the answer to it."""
    messages = row(country, question)["messages"]
    return messages[:1], messages[1:]


def write(folder: Path, base: Path, name: str, method: str = "lora", steps: int = 15) -> Path:
    """A recipe and its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row(c, q) for c in CAPITALS for q in ASKED]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    path = folder / f"{name}.yaml"
    path.write_text(RECIPE.format(base=base, method=method, steps=steps, name=name), encoding="utf-8")
    return path


def world(home: Path) -> run.World:
    """The machine as it is, with a home of our own; the base is a folder, so nothing is pulled or converted."""
    settings = dataclasses.replace(USER, home=home, env={**USER.env, "OMP_NUM_THREADS": "1"})
    return run.World(settings, Store(settings.store), hardware.look(settings.env), Verbs(never, never))


def never(*_: object) -> Artifact:
    """What must not be called."""
    raise AssertionError("nothing is pulled or converted here")


def through(recipe: Path, around: run.World, *overrides: str, until: str = "report") -> RunContext:
    """Do the stages up to `until`; the run as it is then."""
    names = [s.name for s in STAGES]
    table: tuple[Stage, ...] = STAGES[: names.index(until) + 1]
    loaded = load.load(recipe, overrides)
    done = run.run(loaded, around, table=table)
    with run.opened(done.name, around) as ctx:
        return ctx
