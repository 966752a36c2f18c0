"""Two processes on the CPU from the same recipe, by accelerate's launcher; and the file that it is told in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.engines import checkpoints, launching
from miyabi_llm.errors import BadUsage
from miyabi_llm.finetune import load, rundir, training
from miyabi_llm.hardware import Gpu
from tests.finetune import trainer
from tests.finetune.test_resume import home


@pytest.mark.slow
def test_two_processes_train_one_adapter(recipe: Path) -> None:
    more = ("train.launch.strategy=ddp", "train.launch.processes=2", "train.max_steps=4")
    told = trainer.train(recipe, trainer.show, *more).stages["train"].figures
    assert told["effective"]["processes"] == 2
    assert told["effective"]["distributed"] == "MULTI_CPU"
    assert told["steps"] == 4
    run = rundir.place(home(), "small")
    assert not checkpoints.wrong(run.adapter)
    assert not checkpoints.wrong(run.checkpoints / "step-4")
    assert (run.adapter / "adapter_model.safetensors").stat().st_size > 10_000
    # every process keeps its random state
    assert {p.name for p in (run.checkpoints / "step-4").glob("rng*")} == {"rng_state_0.pth", "rng_state_1.pth"}


@pytest.mark.parametrize("strategy", ["fsdp", "zero2", "zero3"])
def test_what_needs_cards_is_refused_on_a_cpu(recipe: Path, strategy: str) -> None:
    """accelerate would copy the model instead, and say nothing."""
    from miyabi_llm import hardware

    loaded = load.load(recipe, (f"train.launch.strategy={strategy}", "train.launch.processes=2"))
    machine = replace(hardware.look({}), gpus=())
    assert "among cards" in (training.cannot_share(loaded.recipe, machine) or "")
    assert training.cannot_share(loaded.recipe, replace(machine, gpus=(Gpu("cuda", "L4"),))) is None


@given(
    st.integers(1, 64),
    st.sampled_from(launching.STRATEGIES[1:]),
    st.booleans(),
    st.integers(1, 4),
    st.sampled_from(["fp32", "bf16"]),
)
def test_the_launcher_is_told_all_of_it(processes: int, strategy: str, cpu: bool, nodes: int, precision: str) -> None:
    launch = {"strategy": strategy, "cpu": cpu, "machines": nodes, "rank": nodes - 1, "precision": precision}
    told = launching.configuration(processes, launch | {"address": "10.0.0.1", "port": 29500})
    assert told["num_processes"] == processes * nodes
    assert told["machine_rank"] == nodes - 1
    assert (told["main_process_ip"], told["main_process_port"]) == ("10.0.0.1", 29500)
    assert told["mixed_precision"] == ("bf16" if precision == "bf16" else "no")
    assert ("fsdp_config" in told) == (strategy == "fsdp")
    if strategy.startswith("zero"):
        assert told["deepspeed_config"]["zero_stage"] == int(strategy[-1])


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(BadUsage):
        launching.configuration(2, {"strategy": "magic"})
