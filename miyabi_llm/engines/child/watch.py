"""What watches a training: says how it goes, publishes checkpoints whole, stops on numbers that are none."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from miyabi_llm.engines import checkpoints
from miyabi_llm.engines.child.common import Failed, main_process

ADVICE = "Lower train.learning_rate, raise train.warmup, or use train.precision: fp32. The last checkpoint is kept."
# What the trainer writes and nobody needs: a card with nobody's name in it, and a pickle.
UNWANTED = ("README.md", "training_args.bin")


class Watch(TrainerCallback):  # type: ignore[misc]
    """The callback of every training here. `say` hears of each step; `root` is the folder of checkpoints."""

    def __init__(self, say: Any, root: Path, keep: int, identity: str, patience: tuple[int, float] | None) -> None:
        self._say, self._root, self._keep, self._identity, self._patience = say, root, keep, identity, patience
        self._started = self._tokens = self._cpu = 0.0
        self.began = 0
        self.curve: list[dict[str, float]] = []
        self.peak = 0
        self.stopped = False

    def stop(self) -> None:
        """Ask for an end after the step that is going on, with a checkpoint of it. Safe in a signal's handler."""
        self.stopped = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The place where a wish to stop is granted."""
        if self.stopped:
            control.should_save = control.should_training_stop = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock starts."""
        self._started, self._cpu, self.began = time.monotonic(), time.process_time(), state.global_step
        self._say("phase", "train", f"{state.max_steps} steps from {state.global_step}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """One step: its loss, learning rate, tokens a second, memory, and when it will be done."""
        logs = logs or {}
        if "loss" not in logs:
            return
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm") or 0.0)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = "loss" if not math.isfinite(loss) else "gradient"
            raise Failed(
                "failed", f"the {what} is no number at step {state.global_step}", ADVICE, step=state.global_step
            )
        spent, done = time.monotonic() - self._started, state.global_step - self.began
        self._tokens = float(logs.get("num_tokens") or 0.0)
        used = memory()
        self.peak = max(self.peak, used)
        row: dict[str, float] = {
            "step": state.global_step,
            "loss": loss,
            "learning_rate": float(logs.get("learning_rate") or 0.0),
            "grad_norm": norm,
            "epoch": float(logs.get("epoch") or state.epoch or 0.0),
            "tokens_per_s": round(self._tokens / spent, 2) if spent > 0 else 0.0,
            "memory": used,
            "eta_s": round((state.max_steps - state.global_step) * spent / done, 1) if done else 0.0,
        }
        self.curve.append(row)
        self._say("progress", "train", _line(row), done=state.global_step, total=state.max_steps, unit="steps", **row)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        """The loss on held-out rows; stop when it falls no more."""
        losses = [float(row["eval_loss"]) for row in state.log_history if "eval_loss" in row]
        if not losses:
            return
        self._say("log", "eval", f"loss {losses[-1]:.4f}", step=state.global_step, eval_loss=losses[-1])
        if self._patience and stale(losses, self._patience[1]) >= self._patience[0]:
            self._say("warning", "train", f"stopped at step {state.global_step}: the held-out loss falls no more")
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The trainer has written a checkpoint into staging: publish it whole, then forget the oldest."""
        together()  # every process writes its random state
        if main_process():
            staged = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            clean(staged)
            checkpoints.publish(
                staged, self._root / f"step-{state.global_step}", step=state.global_step, identity=self._identity
            )
            checkpoints.prune(self._root, self._keep)
            self._say("log", "checkpoint", f"step-{state.global_step}")

    @property
    def figures(self) -> dict[str, float]:
        """Tokens, seconds and processor seconds of this process's training, checkpoints included."""
        spent, cpu = time.monotonic() - self._started, time.process_time() - self._cpu
        speed = round(self._tokens / spent, 2)
        return {"tokens": self._tokens, "seconds": round(spent, 3), "cpu_s": round(cpu, 3), "tokens_per_s": speed}


def together() -> None:
    """Wait for the other processes, where there are any."""
    import torch.distributed as distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def stale(losses: list[float], least: float) -> int:
    """How many evaluations ago the loss last fell by more than `least` under its lowest. Pure."""
    best, count = math.inf, 0
    for loss in losses:
        if loss < best - least:
            best, count = loss, 0
        else:
            count += 1
    return count


def clean(folder: Path) -> None:
    """Remove what nobody needs; no pickle of arguments stays. Optimizer and random states stay: they are ours."""
    for name in UNWANTED:
        (folder / name).unlink(missing_ok=True)


def memory() -> int:
    """Bytes in use: of the card where there is one, else of this process."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import psutil

    return int(psutil.Process(os.getpid()).memory_info().rss)


def _line(row: dict[str, float]) -> str:
    left = f"{row['eta_s'] / 60:.0f} min left" if row["eta_s"] >= 120 else f"{row['eta_s']:.0f} s left"
    speed = f"{row['tokens_per_s']:.1f} tokens/s  " if row["tokens_per_s"] else ""  # orpo does not count tokens
    return f"loss {row['loss']:.4f}  lr {row['learning_rate']:.2e}  {speed}{row['memory'] / 2**30:.2f} GiB  {left}"
