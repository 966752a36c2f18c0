"""State files of servers: who serves what where, written whole, believed only as far as the processes agree."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from miyabi_llm.errors import BadUsage, DiskFull, MachineLimit, ServerFailed, Unsafe
from miyabi_llm.proc import Identity, identity, logs
from miyabi_llm.serve.values import Kind, State
from miyabi_llm.types import Endpoint, Secret

SCHEMA = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_LIMIT = 1 << 20  # bytes of a state file


@dataclass(frozen=True, slots=True)
class Record:
    """What one state file says. `nonce` marks the processes of the current launch, `supervisor` guards them.

    `fit` is the estimate of its memory beside what was measured when it was ready, in bytes; `alarms` what was wrong.
    """

    name: str
    ref: str
    sha256: tuple[str, ...]
    backend: str
    kind: Kind
    state: State
    base_url: str
    model: str
    dialects: tuple[str, ...]
    port: int
    started: str
    supervisor: Identity
    keyed: bool = False
    ctx: int | None = None
    pid: int = 0
    nonce: str = ""
    restarts: int = 0
    error: str | None = None
    fit: Mapping[str, Any] | None = None
    alarms: tuple[str, ...] = ()

    @property
    def alive(self) -> bool:
        """Whether the supervisor that wrote this still runs."""
        return self.supervisor.alive


class RunDir:
    """The folder of state, key, lock and log files, for this user only. Making one touches no disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, name: str) -> Path:
        """Where the server `name` writes."""
        return self._file(name, ".log")

    def supervisor_log(self, name: str) -> Path:
        """Where the supervisor of a detached server writes when it breaks."""
        return self._file(name, ".supervisor.log")

    def key(self, name: str) -> Path:
        """Where the key of the server `name` lies."""
        return self._file(name, ".key")

    def ensure(self) -> None:
        """Make the folder, 0700. Raises Unsafe when it belongs to another user."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.path.stat()
        if found.st_uid != os.getuid():
            raise Unsafe(f"{self.path} belongs to another user", hint="Set MIYABI_HOME to a folder of your own.")
        if found.st_mode & 0o077:
            self.path.chmod(0o700)

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Hold the name while a server has it. Raises Running when another process holds it."""
        self.ensure()
        fd = os.open(self._file(name, ".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                there = self.read(name)
                where = f" at {there.base_url}" if there is not None else ""
                raise Running(f"{name} runs already{where}", hint=f"`miyabi-llm stop {name}` ends it.") from None
            except OSError:
                pass  # a file system without locks: the record alone must do
            yield
        finally:
            os.close(fd)

    def write(self, record: Record) -> None:
        """Replace the state file, atomically, 0600."""
        self.ensure()
        body = asdict(record) | {"schema": SCHEMA}
        write_private(self._file(record.name, ".json"), json.dumps(body, indent=1).encode())

    def read(self, name: str) -> Record | None:
        """The record of that name; None when there is none, or it is not one of ours."""
        try:
            path = self._file(name, ".json")
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            with os.fdopen(fd, "rb") as file:
                record = _parse(json.loads(file.read(_LIMIT)))
            return record if record.name == name else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None  # half-written by an older version, or forged: nothing in it is believed

    def all(self) -> list[Record]:
        """Every readable record, by name."""
        with suppress(OSError):
            names = sorted(p.stem for p in self.path.glob("*.json"))
            return [r for name in names if _NAME.fullmatch(name) and (r := self.read(name)) is not None]
        return []

    def forget(self, name: str, *, log: bool = False) -> None:
        """Remove what is on disk about `name`; its log too when asked."""
        paths = [self._file(name, suffix) for suffix in (".json", ".key")]
        if log:
            paths += [self.log(name), logs.older(self.log(name)), self.supervisor_log(name)]
            paths += [self._file(name, ".lock")]
        for path in paths:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def fresh_log(self, name: str) -> None:
        """Begin a new log; the last one of that name stays as the older file."""
        with suppress(OSError):
            self.log(name).replace(logs.older(self.log(name)))

    def endpoint(self, record: Record) -> Endpoint:
        """The record's endpoint, with its key when there is one and it can be read."""
        key, file = None, None
        if record.keyed:
            file = self.key(record.name)
            with suppress(OSError):
                key = Secret(file.read_text(encoding="ascii").strip())
        return Endpoint(record.base_url, record.model, record.dialects, key, file)  # type: ignore[arg-type]

    def sweep(self) -> list[Record]:
        """Kill what dead supervisors left running, by launch mark; returns the records of the dead.

        The pids in a state file are never signalled: a process is ours only if its environment carries the mark.
        Records of detached servers stay, marked dead, so that `ps` can tell; the others are removed.
        """
        dead = [r for r in self.all() if not r.alive]
        for record in dead:
            if record.nonce:
                identity.kill_marked(record.nonce)
            if record.kind != "detached":
                self.forget(record.name, log=record.kind == "temporary")
            elif record.state != "dead":
                with suppress(OSError):  # a full disk must not keep `ps` from telling
                    self.write(replace(record, state="dead", pid=0, nonce="", error=record.error or LOST))
        return dead

    def _file(self, name: str, suffix: str) -> Path:
        if not _NAME.fullmatch(name):
            raise BadUsage(f"{name!r} is no name for a server", hint="Use letters, digits, '.', '_' and '-'.")
        return self.path / f"{name}{suffix}"


LOST = "its supervisor was killed"


class Running(ServerFailed):
    """A server of that name runs already."""

    code = "already-running"


def name_for(model: str) -> str:
    """A server's name out of a model's: `qwen2.5-coder:1.5b` becomes `qwen2.5-coder-1.5b`. Pure."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.removesuffix(":latest")).strip("-._")[-64:].lstrip("-._")
    return name or "model"


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError about our own files at `path` into an error with its cause. Raises DiskFull, MachineLimit."""
    try:
        yield
    except OSError as e:
        text = f"{e.filename or path}: {e.strerror or e}"
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(text, hint="Free some space, then run the command again.") from e
        raise MachineLimit(text, hint=f"{path} must be writable for you; MIYABI_HOME moves it.") from e


def write_private(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, readable by its owner only."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _parse(body: dict[str, Any]) -> Record:
    if body.pop("schema") != SCHEMA:
        raise ValueError("another version's file")
    who = body.pop("supervisor")
    body["supervisor"] = Identity(int(who["pid"]), int(who["start"]), str(who["boot"]))
    for key in ("sha256", "dialects", "alarms"):
        body[key] = tuple(body.get(key, ()))
    if not {f.name for f in fields(Record)} >= set(body) or not isinstance(body["nonce"], str):
        raise ValueError("not a state file")
    return Record(**body)
