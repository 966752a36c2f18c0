"""A training that is killed, damaged or changed: what goes on bit for bit, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from miyabi_llm.engines import checkpoints
from miyabi_llm.errors import BadUsage
from miyabi_llm.finetune import rundir
from miyabi_llm.finetune.rundir import RunBusy, RunDir
from tests.finetune import trainer

ROOT = Path(__file__).parent.parent.parent
LIMIT = 600.0  # seconds


def home() -> Path:
    return Path(os.environ["MIYABI_HOME"])


def start(recipe: Path, *overrides: str) -> subprocess.Popen[str]:
    """A process of its own that trains."""
    argv = [sys.executable, "-m", "tests.finetune.trainer", str(recipe), *overrides]
    return subprocess.Popen(argv, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, text=True)


def steps_heard(run: RunDir) -> int:
    """The last step that was reported."""
    return max(
        (int(e["done"]) for e in rundir.heard(run) if e["kind"] == "progress" and e["name"] == "train"), default=0
    )


def kill_after(child: subprocess.Popen[str], run: RunDir, step: int, pause: float) -> bool:
    """Kill -9 once `step` was heard and `pause` seconds more are over; False when it was done before."""
    until = time.monotonic() + LIMIT
    while child.poll() is None and steps_heard(run) < step:
        assert time.monotonic() < until, "nothing was heard"
        time.sleep(0.02)
    time.sleep(pause)
    alive = child.poll() is None
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(child.pid).children(recursive=True)
        child.send_signal(signal.SIGKILL)
        _, left = psutil.wait_procs(below, timeout=LIMIT)  # a step more may be done until they are gone
        assert not left
    child.communicate()
    return alive


def finish(recipe: Path, *overrides: str) -> str:
    """Train to the end; what was said."""
    child = start(recipe, *overrides)
    said, _ = child.communicate(timeout=LIMIT)
    assert child.returncode == 0, said
    return said


def adapter(run: RunDir) -> str:
    assert not checkpoints.wrong(run.adapter)
    return checkpoints.sha256(run.adapter / "adapter_model.safetensors")


def again(run: RunDir) -> None:
    """Forget the run: its name is used once more."""
    shutil.rmtree(run.root)


@pytest.mark.timeout(1200)  # three trainings, on a machine that may be busy
def test_killed_at_two_moments_it_ends_with_the_same_bytes(recipe: Path) -> None:
    run = rundir.place(home(), "small")
    finish(recipe)
    straight = adapter(run)
    curve = json.loads(run.stages.read_text())["train"]["figures"]["curve"]
    again(run)
    assert kill_after(start(recipe), run, 3, 0.0)  # while step 4 is computed or written
    # the newest whole checkpoint is damaged too: the one before it serves
    for _, folder in checkpoints.steps(run.checkpoints)[:1]:
        with (folder / "optimizer.pt").open("r+b") as f:
            f.write(b"\x00\x00")
        last = folder.name
    said = finish(recipe)
    assert f"warning {last} passed over: optimizer.pt is not what its hash says" in said
    assert adapter(run) == straight
    resumed = json.loads(run.stages.read_text())["train"]["figures"]["curve"]
    # a step that was done between the parent's death and the child's is in a checkpoint, and nobody wrote its loss down
    heard, whole = [(r["step"], r["loss"]) for r in resumed], [(r["step"], r["loss"]) for r in curve]
    assert heard == [row for row in whole if row in heard]
    assert len(heard) >= len(whole) - 2
    assert heard[-1] == whole[-1]
    # what was done is not done again; what changed since is refused
    assert "train done before" in finish(recipe)
    rows = recipe.parent / "rows.jsonl"
    rows.write_text(rows.read_text() + '{"prompt": "New?", "completion": "Yes, a new row."}\n')
    with pytest.raises(BadUsage, match=r"data\.train changed since data was done"):
        trainer.train(recipe)
    with pytest.raises(BadUsage, match=r"train\.max_steps was 8, now 9"):
        trainer.train(recipe, trainer.show, "train.max_steps=9")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_ten_random_moments_it_ends_with_the_same_bytes(recipe: Path) -> None:
    run = rundir.place(home(), "small")
    wide = ("train.max_steps=24", "train.save_steps=2")
    finish(recipe, *wide)
    straight = adapter(run)
    again(run)
    rng = random.Random(5)
    kills = 0
    for _ in range(40):
        child = start(recipe, *wide)
        # at least one step further each time, so that it ends; then anywhere in a step, a checkpoint or the start
        reached = steps_heard(run)
        wanted = rng.choice((0, reached + 1, reached + 2, reached + 3))
        if not kill_after(child, run, min(wanted, 24), rng.uniform(0.0, 0.6) if wanted else rng.uniform(0.0, 8.0)):
            break
        kills += 1
        if kills == 10:
            break
    finish(recipe, *wide)
    assert kills == 10
    assert adapter(run) == straight


def test_a_second_trainer_is_refused(tmp_path: Path) -> None:
    run = rundir.place(home(), "held")
    with rundir.held(run):
        assert rundir.busy(run)
        code = "import sys; from miyabi_llm.finetune import rundir; from pathlib import Path\n"
        code += "with rundir.held(rundir.place(Path(sys.argv[1]), 'held')): pass"
        done = subprocess.run([sys.executable, "-c", code, str(home())], capture_output=True, text=True, cwd=ROOT)
        assert "RunBusy" in done.stderr
    assert not rundir.busy(run)
    with rundir.held(run):
        pass


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a..b", "x" * 101, "a b"])
def test_odd_names_of_runs_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadUsage):
        rundir.place(tmp_path, name)


def test_busy_says_who_it_is(tmp_path: Path) -> None:
    assert RunBusy("x").code == "run-busy"
