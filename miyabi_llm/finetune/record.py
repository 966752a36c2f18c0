"""What is finished in a run: each stage with what it was made from, what it made and what it found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from miyabi_llm.errors import Corrupt
from miyabi_llm.finetune.rundir import RunDir, write_json


@dataclass(frozen=True, slots=True)
class Output:
    """A file a stage made: its hash, and its size and time, which save hashing it again."""

    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A stage that is done. `inputs` are what it was made from (name -> hash or value); paths of `outputs` are
    relative to the run; `figures` are what it found, as plain JSON; `seconds` it took.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, Output] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    finished_at: str = ""
    skipped: str = ""


class Record:
    """The table of finished stages, on disk after every change. Raises Corrupt when it cannot be read."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self._stages = _read(run.stages)

    def get(self, stage: str) -> Finished | None:
        """What is known of a finished stage."""
        return self._stages.get(stage)

    def figures(self, stage: str) -> Mapping[str, Any]:
        """What a finished stage found; empty when it is not finished."""
        done = self._stages.get(stage)
        return done.figures if done else {}

    def put(self, stage: str, done: Finished) -> None:
        """Say that a stage is finished."""
        self._stages[stage] = done
        self._write()

    def drop(self, *stages: str) -> None:
        """Forget stages: they are to be done again."""
        if any(self._stages.pop(s, None) for s in stages):
            self._write()

    def all(self) -> Mapping[str, Finished]:
        """Every finished stage, in the order they were finished."""
        return dict(self._stages)

    def _write(self) -> None:
        write_json(self.run.stages, {name: asdict(done) for name, done in self._stages.items()})


def _read(path: Path) -> dict[str, Finished]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(name): Finished(
                dict(told["inputs"]),
                {str(k): Output(v["sha256"], v["size"], v["mtime_ns"]) for k, v in told["outputs"].items()},
                dict(told["figures"]),
                float(told["seconds"]),
                str(told["finished_at"]),
                str(told.get("skipped", "")),
            )
            for name, told in body.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise Corrupt(f"{path} cannot be read", hint=f"Remove {path}: what can be found again is used again.") from e


def output(run: RunDir, path: Path) -> tuple[str, Output]:
    """The name and the state of a file under the run's folder. Raises OSError."""
    seen = path.stat()
    with path.open("rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    return path.relative_to(run.root).as_posix(), Output(found, seen.st_size, seen.st_mtime_ns)


def changed(run: RunDir, done: Finished) -> str:
    """The first output of a finished stage that is no longer what it was; empty when all are."""
    for name, known in done.outputs.items():
        path = run.root / name
        try:
            seen = path.stat()
            if (seen.st_size, seen.st_mtime_ns) != (known.size, known.mtime_ns) and output(run, path)[
                1
            ].sha256 != known.sha256:
                return name
        except OSError:
            return name
    return ""
