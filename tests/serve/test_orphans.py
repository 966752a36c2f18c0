"""P10: `kill -9` of a supervisor leaves nobody alive."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from miyabi_llm.types import LaunchPlan

from .conftest import all_gone, fake_plan, free_port, processes
from .test_supervision import finish, foreground, ready

WITHIN = 2.0  # seconds


def kill_foreground(plan: LaunchPlan, home: Path, how: str = "forever") -> None:
    process = foreground(plan, home, how)
    ready(process)
    process.kill()
    assert finish(process) == -signal.SIGKILL
    assert all_gone(plan.endpoint.model, WITHIN)


def kill_detached(plan: LaunchPlan, home: Path) -> None:
    process = foreground(plan, home, "detach")
    supervisor = int(ready(process))
    assert finish(process) == 0
    time.sleep(0.1)
    assert processes(plan.endpoint.model)
    os.kill(supervisor, signal.SIGKILL)
    assert all_gone(plan.endpoint.model, WITHIN)


@pytest.mark.parametrize("how", ["forever", "running"])
def test_p10_foreground(tmp_path: Path, alias: str, how: str) -> None:
    kill_foreground(fake_plan(free_port(), alias, "grandchild"), tmp_path, how)


def test_p10_detached(tmp_path: Path, alias: str) -> None:
    kill_detached(fake_plan(free_port(), alias, "grandchild"), tmp_path)


def test_p10_at_any_moment_of_the_start(tmp_path: Path, alias: str) -> None:
    """Before, while and after the server is forked, loaded and proven."""
    rng = random.Random(7)
    for _ in range(4):
        process = foreground(fake_plan(free_port(), alias, "grandchild"), tmp_path)
        time.sleep(rng.uniform(0.1, 0.8))
        process.kill()
        finish(process)
        assert all_gone(alias, WITHIN)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_p10_twenty_times_each(tmp_path: Path, alias: str) -> None:
    for _ in range(20):
        kill_foreground(fake_plan(free_port(), alias, "grandchild"), tmp_path)
        kill_detached(fake_plan(free_port(), alias, "grandchild"), tmp_path)


def test_p10_the_real_server(real_plan: LaunchPlan, tmp_path: Path) -> None:
    kill_foreground(real_plan, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_p10_the_real_server_twenty_times_each(real_plan: LaunchPlan, tmp_path: Path) -> None:
    for _ in range(20):
        kill_foreground(real_plan, tmp_path)
        kill_detached(real_plan, tmp_path)
