"""The view of a training in a terminal, in a log and as JSON lines."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

CODE = """
import sys
from miyabi_llm.cli.finetune_live import live
from miyabi_llm.types import Event
row = {"loss": 1.25, "learning_rate": 1e-4, "tokens_per_s": 42.0, "memory": 1 << 30, "eta_s": 90.0}
with live(as_json="--json" in sys.argv) as on_event:
    on_event(Event("phase", "train", "stage 5/17"))
    for step in (1, 2, 3):
        text = "loss 1.2500  lr 1.00e-04  42.0 tokens/s  1.00 GiB  90 s left"
        on_event(Event("progress", "train", text, done=step, total=3, unit="steps", data=row))
    on_event(Event("phase", "merge", "stage 7/17"))
"""


def test_a_terminal_shows_loss_rate_speed_memory_and_the_time_left() -> None:
    parent, child = pty.openpty()
    env = dict(os.environ) | {"TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"}
    done = subprocess.Popen([sys.executable, "-c", CODE], stderr=child, stdin=child, env=env)
    os.close(child)
    seen = b""
    while True:
        try:
            data = os.read(parent, 4096)
        except OSError:
            break
        if not data:
            break
        seen += data
    os.close(parent)
    assert done.wait(60) == 0
    text = seen.decode("utf-8", "replace")
    for word in ("loss 1.2500", "lr 1.00e-04", "42.0 tokens/s", "1.00 GiB", "90 s left", "3/3", "merge"):
        assert word in text, word


def test_as_json_every_event_is_a_line() -> None:
    done = subprocess.run([sys.executable, "-c", CODE, "--json"], capture_output=True, text=True, timeout=60)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [e["kind"] for e in lines] == ["phase", "progress", "progress", "progress", "phase"]
    assert lines[1]["data"]["loss"] == 1.25
    assert (lines[3]["done"], lines[3]["total"]) == (3, 3)


def test_without_a_terminal_a_line_now_and_then_is_enough() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60)
    assert "merge: stage 7/17" in done.stderr
    assert "\x1b" not in done.stderr
