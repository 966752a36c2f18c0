"""The parent's side of a training child: start it, pass on its events, take its answer, explain its end."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miyabi_llm import proc
from miyabi_llm.engines import launching
from miyabi_llm.errors import BadUsage, Corrupt, DiskFull, GateFailed, MachineLimit, MiyabiError
from miyabi_llm.proc import logs
from miyabi_llm.types import Event, OnEvent, silent

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.engines.base import Job
    from miyabi_llm.tools.envs import Env

CHILD = Path(__file__).parent / "child" / "main.py"
POLL = 0.1  # seconds between looks at what the child has said
GRACE = 5.0  # seconds an interrupted child gets to end
SAID = 8  # lines of the child that go into an error
LOG_LIMIT = 16 << 20  # bytes
# No question to the internet, no telemetry, no bars into the log. TRACKIO, WANDB: only where a recipe names them.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "ACCELERATE_DISABLE_RICH": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
ERRORS: Mapping[str, type[MiyabiError]] = {
    "usage": BadUsage,
    "corrupt": Corrupt,
    "disk-full": DiskFull,
    "machine-limit": MachineLimit,
    "gate-failed": GateFailed,
}
_FULL = re.compile(r"No space left|Disk quota exceeded|ENOSPC|Errno 28")
_MEMORY = re.compile(r"OutOfMemoryError|out of memory|MemoryError|can't allocate memory|Cannot allocate memory")


def run(env: Env, job: Job, work: Path, settings: Settings, on_event: OnEvent = silent) -> Mapping[str, Any]:
    """Do `job` in a child of `env`; its answer. `work` keeps the log (`KIND.log`); the rest is removed again.

    The child dies with us, whatever kills us. Raises what the child says is wrong (BadUsage, Corrupt, DiskFull,
    MachineLimit, ...), MachineLimit when it was killed for lack of memory, MiyabiError with its last lines else.
    """
    work.mkdir(parents=True, exist_ok=True)
    log = work / f"{job.kind}.log"
    log.unlink(missing_ok=True)
    with _place(work) as place:
        order, answer, events = place / "order.json", place / "answer.json", place / "events"
        events.touch()
        said = {"job": job.kind, "answer": str(answer), "events": str(events), **job.order}
        order.write_text(json.dumps(said), encoding="utf-8")
        argv, more = launching.command(env, CHILD, order, job, place, settings.env)
        child = proc.launch(argv, settings.env, QUIET | more | dict(job.env or {}), log, limit=LOG_LIMIT)
        heard = _Heard(events, on_event)
        try:
            while child.wait(POLL) is None:
                heard.listen()
        finally:
            ended = child.stop(GRACE)  # how it really ended, when it has; else it ends here
        heard.listen()
        if heard.failed is not None:
            raise failure(heard.failed)
        if ended.code or ended.signal or ended.errno or ended.lost or not answer.is_file():
            raise explain(job.kind, ended, child.tail(), log)
        told: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return told


@contextlib.contextmanager
def _place(work: Path) -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix=".job-", dir=work))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


class _Heard:
    """Reads the events a child appends to a file of its own."""

    def __init__(self, file: Path, on_event: OnEvent) -> None:
        self._file, self._on_event, self._seen = file, on_event, 0
        self.failed: Mapping[str, Any] | None = None

    def listen(self) -> None:
        """Pass on what was said since the last time; only whole lines count."""
        try:
            with self._file.open("rb") as f:
                f.seek(self._seen)
                data = f.read()
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._seen += len(whole)
        for line in whole.splitlines():
            said = json.loads(line)
            if said["kind"] == "failed":
                self.failed = said
            else:
                self._on_event(event(said))


def event(said: Mapping[str, Any]) -> Event:
    """One line of a child as an event. Pure."""
    return Event(
        said["kind"],
        said["name"],
        said.get("message", ""),
        said.get("done", 0),
        said.get("total"),
        said.get("unit", ""),
        said.get("data", {}),
    )


def failure(said: Mapping[str, Any]) -> MiyabiError:
    """The error a child names itself: its code, message and hint. Pure."""
    kind = ERRORS.get(said.get("code", ""), MiyabiError)
    return kind(said["message"], hint=said.get("hint") or None, **said.get("data", {}))


def explain(name: str, ended: proc.Exit, text: str, log: Path) -> MiyabiError:
    """The error behind a child's end. Pure."""
    advice = "Use a smaller train.batch_size (and a larger grad_accum), data.max_length or model, or lora.method qlora."
    if ended.out_of_memory:
        return MachineLimit(f"{name} was killed, most likely for lack of memory", hint=advice)
    last = "\n".join(text.splitlines()[-SAID:])
    if _FULL.search(last):
        return DiskFull(f"{name} could not write all of its files", hint="Free some space, then `finetune resume`.")
    if _MEMORY.search(last):
        return MachineLimit(f"{name} ran out of memory", hint=advice)
    lines = [line[:300] for line in logs.clean(text.encode()).splitlines() if line.strip()][-SAID:]
    how = f"died of signal {ended.signal}" if ended.signal else f"failed ({ended.code or ended.errno})"
    hint = "\n".join((f"Its last lines, all of them in {log}:", *(f"  | {line}" for line in lines)))
    return MiyabiError(f"{name} {how}", hint=hint)
