"""Every way to train that a recipe names, for real on the tiny model, and the ways it stops."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from miyabi_llm.engines import checkpoints
from miyabi_llm.errors import BadUsage, Missing, MiyabiError, NetworkError
from miyabi_llm.finetune import rundir
from miyabi_llm.types import Event
from tests.finetune import trainer
from tests.finetune.conftest import row
from tests.finetune.test_resume import ROOT, home

pytestmark = pytest.mark.slow
SHORT = ("train.max_steps=3", "train.save_steps=3")


def write(recipe: Path, method: str) -> None:
    """Rows of the kind a method learns from."""
    rows: list[dict[str, object]] = [row(i) for i in range(32)]
    if method == "kto":
        rows = [r | {"label": i % 2 == 0} for i, r in enumerate(rows)]
    elif method != "sft":
        rows = [
            {"prompt": r["prompt"], "chosen": r["completion"], "rejected": f"I do not know number {i}."}
            for i, r in enumerate(rows)
        ]
    (recipe.parent / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo"])
def test_preferences(recipe: Path, method: str) -> None:
    write(recipe, method)
    more = (f"train.method={method}", "train.beta=0.3", "evaluate.metric=loss")
    told = trainer.train(recipe, trainer.show, *SHORT, *more).stages["train"].figures
    assert told["effective"]["train.beta"] == pytest.approx(0.3)
    assert told["effective"]["train.method"] == f"{method.upper()}Trainer"
    assert told["steps"] == 3
    assert math.isfinite(told["loss"])


@pytest.mark.parametrize(
    ("method", "precision"),
    [("qlora", "bf16"), ("qlora", "fp32"), ("dora", "fp32"), ("rslora", "bf16"), ("full", "bf16")],
)
def test_ways_of_training(recipe: Path, method: str, precision: str) -> None:
    more = (f"lora.method={method}", f"train.precision={precision}")
    told = trainer.train(recipe, trainer.show, *SHORT, *more).stages["train"].figures
    assert told["effective"]["lora.method"] == method
    assert told["kind"] == ("model" if method == "full" else "adapter")
    run = rundir.place(home(), "small")
    assert not checkpoints.wrong(run.adapter)
    assert {p.suffix for p in run.adapter.iterdir()} <= {".json", ".jinja", ".safetensors"}  # no pickle leaves a run


def test_it_stops_when_the_held_out_loss_falls_no_more(recipe: Path) -> None:
    more = ('train.early_stopping={"patience": 1, "min_delta": 9.0}', "train.eval_steps=1", "train.max_steps=8")
    told = trainer.train(recipe, trainer.show, *more).stages["train"].figures
    assert told["steps"] == 2


def test_numbers_that_are_none_stop_it_with_the_last_checkpoint_kept(recipe: Path) -> None:
    wild = ("train.learning_rate=1.0", "train.optimizer=sgd", "train.max_grad_norm=1e30", "lora.alpha=4096")
    more = (*wild, "train.warmup=0", "train.max_steps=200", "train.save_steps=1", "train.schedule=constant")
    with pytest.raises(MiyabiError, match="is no number at step") as caught:
        trainer.train(recipe, trainer.show, *more, "lora.method=full", "train.weight_decay=1.0")
    assert "learning_rate" in (caught.value.hint or "")
    found, _ = checkpoints.newest(rundir.place(home(), "small").checkpoints)
    assert found is not None


def test_a_run_says_how_it_goes(recipe: Path) -> None:
    events: list[Event] = []
    trainer.train(recipe, events.append, *SHORT)
    rows = [e for e in events if e.kind == "progress" and e.name == "train"]
    assert [e.done for e in rows] == [1, 2, 3]
    for event in rows:
        assert set(event.data) >= {"loss", "learning_rate", "tokens_per_s", "memory", "eta_s"}
        assert event.total == 3
        assert event.data["tokens_per_s"] > 0


def test_unknown_trackers_and_odd_recipes_are_refused_before_a_process_starts(recipe: Path) -> None:
    with pytest.raises(BadUsage):
        trainer.train(recipe, trainer.show, "train.tracker=mlflow")


FULL = """
mount -t tmpfs -o size=30m tmpfs "$MIYABI_HOME" || exit 77
"$PYTHON" -m tests.finetune.trainer "$RECIPE"; echo "code $?"
ls "$MIYABI_HOME/runs/small/checkpoints"
mount -o remount,size=300m "$MIYABI_HOME"
"$PYTHON" -m tests.finetune.trainer "$RECIPE"; echo "code $?"
sha256sum "$MIYABI_HOME/runs/small/adapter/adapter_model.safetensors"
"""


def test_a_full_disk_stops_it_with_the_last_checkpoint_kept(recipe: Path) -> None:
    """A real disk of 30 MB, full at the third checkpoint; with more room it ends as if nothing had been."""
    folder = home()
    folder.mkdir(parents=True, exist_ok=True)
    env = dict(os.environ) | {"PYTHON": sys.executable, "RECIPE": str(recipe)}
    argv = ["unshare", "-Urm", "sh", "-c", FULL]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr[-200:]}")
    first, _, second = done.stdout.partition("code 4")
    assert "disk-full: train: no space left on the disk" in first, done.stdout
    assert "the last whole checkpoint is kept" in first
    assert "phase resume step-4" in second
    assert "code 0" in second
    trainer.train(recipe)
    straight = checkpoints.sha256(rundir.place(folder, "small").adapter / "adapter_model.safetensors")
    assert straight in second


@pytest.mark.parametrize("tracker", ["trackio", "wandb"])
def test_a_tracker_is_brought_by_one_key_and_writes_beside_the_run(
    recipe: Path, tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    try:
        told = trainer.train(recipe, trainer.show, *SHORT, f"train.tracker={tracker}").stages["train"].figures
    except (Missing, NetworkError) as e:
        pytest.skip(f"no {tracker} to be had: {e.message}")
    assert told["effective"]["train.tracker"] == [tracker]
    run = rundir.place(home(), "small")
    found = {"trackio": run.root / "trackio", "wandb": run.work}[tracker]
    assert [p for p in found.rglob("*") if p.suffix in (".db", ".wandb", ".parquet")]
