"""Every key of a recipe that concerns training arrives at the trainer; nothing is parsed and then forgotten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from miyabi_llm.finetune import rundir
from miyabi_llm.finetune.recipe import Lora, Train
from tests.finetune import trainer
from tests.finetune.test_resume import home

# Another value than the default for each key, and what the trainer then holds (the same, where nothing is said).
TRAIN: dict[str, tuple[object, object]] = {
    "method": ("sft", "SFTTrainer"),
    "epochs": (2.0, 2.0),
    "max_steps": (2, 2),
    "batch_size": (2, 2),
    "grad_accum": (2, 2),
    "learning_rate": (0.003, 0.003),
    "schedule": ("linear", "linear"),
    "warmup": (1, 1),
    "weight_decay": (0.02, 0.02),
    "max_grad_norm": (0.7, 0.7),
    "optimizer": ("adafactor", "adafactor"),
    "precision": ("bf16", "bf16"),
    "seed": (5, [5, 5]),
    "gradient_checkpointing": (True, True),
    "packing": (True, True),
    "save_steps": (1, 1),
    "keep_checkpoints": (1, 1),
    "eval_steps": (1, 1),
    "tracker": ("tensorboard", ["tensorboard"]),
}
LORA: dict[str, tuple[object, object]] = {
    "method": ("rslora", "rslora"),
    "rank": (2, 2),
    "alpha": (6, 6),
    "dropout": (0.25, 0.25),
    "targets": (["q_proj", "v_proj"], ["q_proj", "v_proj"]),
}
ELSEWHERE = {
    "engine": "tests/engines/test_engines.py: choose",
    "beta": "test_methods: of dpo, kto and orpo",
    "early_stopping": "test_methods: stops",
    "launch": "test_several: two processes",
}


def test_every_key_is_looked_at() -> None:
    assert set(TRAIN) | set(ELSEWHERE) == set(Train.model_fields)
    assert set(LORA) == set(Lora.model_fields)


def test_every_key_arrives(recipe: Path) -> None:
    keys = {f"train.{k}": v for k, v in TRAIN.items()} | {f"lora.{k}": v for k, v in LORA.items()}
    overrides = [f"{key}={json.dumps(value)}" for key, (value, _) in keys.items()]
    trainer.train(recipe, trainer.show, *overrides)
    run = rundir.place(home(), "small")
    figures = json.loads(run.stages.read_text())["train"]["figures"]
    found = figures["effective"]
    for key, (_, expected) in keys.items():
        held = found[key]
        assert pytest.approx(expected) == held if isinstance(expected, float) else expected == held, key
    assert found["data.max_length"] == 128  # packing is told how long a sequence may be
    # and is used: one checkpoint is left, two losses on held-out rows were taken, curves lie where they can be seen
    assert [p.name for p in run.checkpoints.iterdir() if p.name.startswith("step")] == ["step-2"]
    assert len(figures["evals"]) == 2
    assert list((run.root / "tensorboard").rglob("events*"))
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (2, 6, True)
    assert str(recipe.parent) not in (run.adapter / "adapter_config.json").read_text()
