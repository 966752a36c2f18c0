"""The environment, the child and its parent: what they say to each other, and how a bad end is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm import engines
from miyabi_llm.config import Settings
from miyabi_llm.engines import environment, worker
from miyabi_llm.engines.base import Engine, Job
from miyabi_llm.engines.trl import PINS
from miyabi_llm.errors import BadUsage, DiskFull, MachineLimit, Missing, MiyabiError, NetworkError
from miyabi_llm.hardware import Gpu, Hardware
from miyabi_llm.proc import Exit
from miyabi_llm.types import Event

GIB = 1 << 30
PLAIN = Hardware("Linux", "x86_64", "cpu", 2, 2, 2, frozenset(), 24 * GIB, 20 * GIB, None, 0, ())
CARD = Gpu("cuda", "NVIDIA L4", 24 * GIB, 23 * GIB, "550", "8.9")


def test_the_environment_has_what_is_pinned(engine: Engine, small_threads: Settings, tmp_path: Path) -> None:
    events: list[Event] = []
    told = engine.run(Job("describe", {}), tmp_path, small_threads, events.append)
    for name in ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets"):
        assert told["versions"][name].split("+")[0] == PINS.versions[name]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".job")]


def test_an_unknown_job_and_a_failing_one_are_told(engine: Engine, small_threads: Settings, tmp_path: Path) -> None:
    with pytest.raises(MiyabiError, match="No module named"):
        engine.run(Job("nothing_such", {}), tmp_path, small_threads)
    with pytest.raises(BadUsage, match="no job is called"):
        engine.run(Job("../x", {}), tmp_path, small_threads)


def test_without_the_environment_the_hint_says_what_to_type(small_threads: Settings, tmp_path: Path) -> None:
    elsewhere = replace(small_threads, cache=tmp_path, offline=True)
    with pytest.raises(Missing) as caught:
        engines.get("trl").run(Job("describe", {}), tmp_path, elsewhere)
    assert "finetune install" in (caught.value.hint or "")
    with pytest.raises(NetworkError, match="offline"):
        engines.get("trl").install(elsewhere)


@pytest.mark.parametrize(
    ("machine", "method", "processes", "expected"),
    [
        (PLAIN, "sft", 1, "trl"),
        (replace(PLAIN, gpus=(CARD,)), "sft", 1, "unsloth"),
        (replace(PLAIN, gpus=(CARD,)), "sft", 2, "trl"),
        (replace(PLAIN, gpus=(replace(CARD, compute="6.1"),)), "sft", 1, "trl"),
        (replace(PLAIN, gpus=(replace(CARD, kind="rocm"),)), "sft", 1, "trl"),
        (replace(PLAIN, system="Darwin", gpus=(Gpu("metal", "M3"),)), "sft", 1, "trl"),
    ],
)
def test_auto_takes_unsloth_only_where_it_can_run(
    machine: Hardware, method: str, processes: int, expected: str
) -> None:
    assert engines.choose("auto", machine, method, processes).name == expected


def test_a_named_engine_that_cannot_run_is_refused_with_its_reason() -> None:
    with pytest.raises(MachineLimit, match="needs an NVIDIA card"):
        engines.choose("unsloth", PLAIN)
    with pytest.raises(BadUsage, match="no engine"):
        engines.get("axolotl")


@pytest.mark.parametrize(
    ("ended", "text", "kind", "word"),
    [
        (Exit(signal=9), "", MachineLimit, "lack of memory"),
        (Exit(code=1), "OSError: [Errno 28] No space left on device", DiskFull, "could not write"),
        (Exit(code=1), "torch.OutOfMemoryError: CUDA out of memory.", MachineLimit, "memory"),
        (Exit(code=1), "ValueError: odd", MiyabiError, "failed"),
        (Exit(signal=11), "", MiyabiError, "signal 11"),
    ],
)
def test_a_bad_end_is_explained(ended: Exit, text: str, kind: type[MiyabiError], word: str) -> None:
    error = worker.explain("train", ended, text, Path("/x/train.log"))
    assert type(error) is kind
    assert word in error.message + (error.hint or "")


@given(st.text(max_size=50), st.floats(allow_nan=False, allow_infinity=False))
def test_an_event_comes_through_as_it_was_said(text: str, done: float) -> None:
    said = {"kind": "progress", "name": text, "message": text, "done": done, "total": None, "unit": "steps"}
    assert worker.event(json.loads(json.dumps(said))) == Event("progress", text, text, done, None, "steps")


def test_the_lock_pins_what_the_packages_say() -> None:
    text = environment.importlib.resources.files("miyabi_llm.data").joinpath(PINS.lock or "").read_text("utf-8")
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert all(words[1].startswith("--hash=sha256:") and len(words[1]) == 14 + 64 for words in rows)
    locked = dict(words[0].split("==") for words in rows)
    for name, version in PINS.versions.items():
        assert locked[name.lower()].split("+")[0] == version
