"""A small recipe over the tiny base model, and its rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from miyabi_llm.finetune.context import RunContext
from tests.finetune import road

RECIPE = """
base: {{model: {base}}}
data: {{train: rows.jsonl, eval_fraction: 0.25, max_length: 128}}
lora: {{rank: 4, alpha: 8, dropout: 0.1}}
train: {{max_steps: 8, batch_size: 2, learning_rate: 0.002, save_steps: 2, precision: fp32, eval_steps: 4}}
"""


def row(number: int) -> dict[str, object]:
    """A question with its answer."""
    words = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel")
    question = f"Which word has the number {number * 37 % 101} in list {words[number % 8]}?"
    return {"prompt": question, "completion": f"It is {words[number * 3 % 8]}-{number}."}


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model is fastest, and gives the same bytes everywhere, with one thread."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def recipe(tmp_path: Path, tiny_base: Path, one_thread: None) -> Path:
    """A recipe of eight steps with a checkpoint every second one."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(32)), encoding="utf-8")
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(base=tiny_base), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tuned(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory, real_server: Path) -> RunContext:
    """A whole LoRA run."""
    place = tmp_path_factory.mktemp("road")
    return road.through(road.write(place, tiny_base, "tuned"), road.world(place / "home"))


@pytest.fixture(scope="session")
def packed(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory, real_server: Path) -> RunContext:
    """A QLoRA run as far as what its trainer says."""
    place = tmp_path_factory.mktemp("packed")
    recipe = road.write(place, tiny_base, "packed", "qlora")
    return road.through(recipe, road.world(place / "home"), until="evaluate-adapter")
