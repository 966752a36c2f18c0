"""The real 1.5B model: the recipe for code review, twenty steps, NF4 on the CPU, from the store's GGUF to served files.

An hour on two cores, and some 10 GB of disk; `MIYABI_TEST_STEPS` sets fewer steps.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from miyabi_llm import hardware
from miyabi_llm.cli.finetune_run import verbs
from miyabi_llm.config import Settings
from miyabi_llm.engines.base import Engine
from miyabi_llm.finetune import load, run, rundir
from miyabi_llm.store import Store
from miyabi_llm.types import Artifact
from tests.conftest import USER

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "code-review.yaml"
STEPS = int(os.environ.get("MIYABI_TEST_STEPS", "20"))
SETS = (f"train.max_steps={STEPS}", "gates.min_gain=null", "export.types=[\"Q4_K_M\"]")  # fmt: skip


@pytest.fixture(scope="module")
def real_home(tmp_path_factory: pytest.TempPathFactory, qwen: Artifact, qwen_gguf: Path) -> Settings:
    """A home of its own: the real model is shared with it, not copied, and so is its copy in safetensors if there is
    one."""
    settings = replace(USER, home=tmp_path_factory.mktemp("real"))
    own, users = Store(settings.store), Store(USER.store)
    shared = [(qwen, {qwen.files[0].name: qwen_gguf})]
    for artifact in users.list():
        made = artifact.card.get("converted")
        if isinstance(made, dict) and made.get("sha256") == qwen.files[0].sha256:
            shared.append((artifact, users.files(artifact)))
    for artifact, files in shared:
        for file in artifact.files:
            own.adopt(files[file.name], file.sha256)
        own.publish(artifact)
    return settings


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_the_real_model_learns_and_is_served(real_home: Settings, engine: Engine, real_server: Path) -> None:
    store = Store(real_home.store)
    world = run.World(real_home, store, hardware.look(real_home.env), verbs(real_home, store))
    outcome = run.run(load.load(RECIPE, SETS), world, name="real")
    told = outcome.stages["train"].figures
    assert told["effective"]["lora.nf4"] is True
    assert told["trained"] == 18_464_768
    assert told["steps"] == STEPS
    assert told["curve"][-1]["loss"] < told["curve"][0]["loss"]
    place = rundir.place(real_home.home, "real")
    card = json.loads(place.card.read_text(encoding="utf-8"))
    assert card
    assert outcome.stages["parity"].figures
    assert {"evaluate-base", "evaluate-adapter", "evaluate-merged", "evaluate-gguf"} <= set(outcome.stages)
