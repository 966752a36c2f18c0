"""The folder of one run: where everything lies, who holds it, and what was said while it ran."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miyabi_llm.errors import BadUsage, DiskFull, MiyabiError
from miyabi_llm.store.fs import Fs
from miyabi_llm.store.locks import take
from miyabi_llm.types import Event, plain

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class RunBusy(MiyabiError):
    """Another process works in the run's folder."""

    code = "run-busy"


@dataclass(frozen=True, slots=True)
class RunDir:
    """Where the parts of a run lie. Making one touches no disk."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The recipe as it was given."""
        return self.root / "recipe.yaml"

    @property
    def resolved(self) -> Path:
        """Every key with its value, and what was set besides."""
        return self.root / "resolved.json"

    @property
    def lock(self) -> Path:
        """Held while a process works here."""
        return self.root / "lock"

    @property
    def stages(self) -> Path:
        """What is finished."""
        return self.root / "stages.json"

    @property
    def events(self) -> Path:
        """What was said while it ran."""
        return self.root / "events.jsonl"

    @property
    def data(self) -> Path:
        """The rows as they are trained on."""
        return self.root / "data"

    @property
    def train_rows(self) -> Path:
        """Rows to learn from."""
        return self.root / "data" / "train.jsonl"

    @property
    def eval_rows(self) -> Path:
        """Rows held out."""
        return self.root / "data" / "eval.jsonl"

    @property
    def forget_rows(self) -> Path:
        """Rows it should still know."""
        return self.root / "data" / "forget.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints, `step-N`."""
        return self.root / "checkpoints"

    @property
    def adapter(self) -> Path:
        """What was trained."""
        return self.root / "adapter"

    @property
    def merged(self) -> Path:
        """The base with it merged in."""
        return self.root / "merged"

    @property
    def gguf(self) -> Path:
        """GGUF files."""
        return self.root / "gguf"

    @property
    def card(self) -> Path:
        """The lineage card."""
        return self.root / "card.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.root / "report.html"

    @property
    def work(self) -> Path:
        """Private folders and logs of children."""
        return self.root / "work"

    @property
    def name(self) -> str:
        """The run's name."""
        return self.root.name


def place(home: Path, name: str) -> RunDir:
    """The folder of the run `name` under the user's data. Raises BadUsage for a name that is no word."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise BadUsage(f"{name!r} cannot be the name of a run", hint="Letters, digits, dots and dashes; see --name.")
    return RunDir(home / "runs" / name)


def all_of(home: Path) -> list[RunDir]:
    """Every run, by name."""
    root = home / "runs"
    if not root.is_dir():
        return []
    return [RunDir(p) for p in sorted(root.iterdir()) if p.is_dir() and _NAME.fullmatch(p.name)]


@contextmanager
def held(run: RunDir) -> Iterator[None]:
    """Hold the run: a second process is refused. Raises RunBusy."""
    run.root.mkdir(parents=True, exist_ok=True)
    lock = take(Fs(), run.lock, exclusive=True, timeout=0)
    if lock is None:
        raise RunBusy(
            f"another process works on the run {run.name}", hint=f"`miyabi-llm finetune status {run.name}` shows it."
        )
    try:
        yield
    finally:
        lock.release()


def busy(run: RunDir) -> bool:
    """Whether another process works in it. The lock is taken and given back at once; nothing is written."""
    if not run.lock.exists():
        return False
    lock = take(Fs(), run.lock, exclusive=True, timeout=0)
    if lock is None:
        return True
    lock.release()
    return False


def write_json(path: Path, body: Any) -> None:
    """Write JSON so that it is whole or as before. Raises DiskFull."""
    write_text(path, json.dumps(body, indent=1, ensure_ascii=False, sort_keys=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text so that it is whole or as before. Raises DiskFull."""
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise DiskFull(f"{path}: {e.strerror}", hint="Free some space, then `miyabi-llm finetune resume`.") from e


def note(run: RunDir, stage: str, event: Event) -> None:
    """Append an event to the run's own list; a full disk does not stop the run for it."""
    line = json.dumps({"at": round(time.time(), 3), "stage": stage, **plain(event)}, ensure_ascii=False)
    try:
        with run.events.open("a", encoding="utf-8") as f:
            f.write(line + "\n")
    except OSError:
        pass


def heard(run: RunDir, most: int = 1 << 18) -> list[dict[str, Any]]:
    """The last events, as they were noted; half a line is left out."""
    try:
        with run.events.open("rb") as f:
            f.seek(0, os.SEEK_END)
            f.seek(max(0, f.tell() - most))
            lines = f.read().split(b"\n")
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if isinstance(told, dict) and "kind" in told:
            found.append(told)
    return found
