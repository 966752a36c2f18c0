"""The log of decisions: append-only lines, each sealed together with the one before; no content of anybody's."""

from __future__ import annotations

import fcntl
import hmac
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miyabi_llm.errors import MiyabiError
from miyabi_llm.route.keys import seal

FIRST = "0" * 64
_CHAIN = "audit-line"
_HEAD = "audit-head"


class AuditFailed(MiyabiError):
    """The log cannot be written: nothing may leave this machine."""

    code = "audit-failed"


@dataclass(frozen=True, slots=True)
class Verified:
    """What a check of the log found: `lines` that hold, and what is wrong (empty: nothing)."""

    lines: int
    problems: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems


class Audit:
    """The log, open for appending. One process writes it; a second one gets AuditFailed."""

    def __init__(self, path: Path, key: bytes, clock: Callable[[], float] = time.time) -> None:
        """Open or make it, and go on behind its last line. Raises AuditFailed when it does not verify to its end."""
        self._path, self._key, self._clock = path, key, clock
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            head = _head(path)
            self._head = os.open(head, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            os.close(self._fd)
            raise AuditFailed(
                f"{path}: another gateway writes it", hint="Stop it, or give this one its own home."
            ) from e
        except OSError as e:
            raise AuditFailed(f"{path}: {e.strerror}", hint="Nothing goes to a cloud without a log.") from e
        self._count, self._last = self._end = self._resume()

    def _resume(self) -> tuple[int, str]:
        data = self._path.read_bytes()
        whole, _, torn = data.rpartition(b"\n")
        found = verify(self._path, self._key)
        if any(not p.startswith(_TORN) for p in found.problems):
            self.close()
            raise AuditFailed(
                f"{self._path}: {found.problems[0]}",
                hint="See: miyabi-llm route audit verify. Move the file away to begin a new log; keep it.",
            )
        if torn:  # the machine stopped while a line was written: nothing was sent for it
            os.ftruncate(self._fd, len(data) - len(torn))
        lines = whole.split(b"\n") if whole else []
        return len(lines), str(json.loads(lines[-1])["hash"]) if lines else FIRST

    def append(self, event: Mapping[str, Any], *, sync: bool = True) -> int:
        """Add one event; returns its number. With `sync` it is durable when this returns. Raises AuditFailed.

        An event holds names, counts and hashes; text of a request has no place in it.
        """
        number = self._count + 1
        body = _canonical({"n": number, "at": round(self._clock(), 3), **event, "prev": self._last})
        line = seal(self._key, body, _CHAIN)
        data = b'%b,"hash":"%b"}\n' % (body[:-1], line.encode())
        try:
            if os.write(self._fd, data) != len(data):
                raise OSError(28, "the disk is full")
        except OSError as e:
            raise AuditFailed(f"{self._path}: {e.strerror}", hint="Nothing was sent.") from e
        self._count, self._last = self._end = (number, line)
        if sync:
            self.sync()
        return number

    def sync(self) -> None:
        """Make everything that was appended durable; the head file may lag behind until then. Raises AuditFailed.

        May be called from another thread than `append`.
        """
        number, line = self._end
        try:
            if number:
                os.pwrite(self._head, _head_line(self._key, number, line), 0)
            getattr(os, "fdatasync", os.fsync)(self._fd)
        except OSError as e:
            raise AuditFailed(f"{self._path}: {e.strerror}", hint="Nothing was sent.") from e

    def close(self) -> None:
        """Close the files, the head file up to date."""
        with suppress(AuditFailed, AttributeError):  # AttributeError: it never came to be open
            self.sync()
        for fd in (self._fd, self._head):
            os.close(fd)


_TORN = "the last line is cut"


def verify(path: Path, key: bytes) -> Verified:
    """Check every line, its seal, its place in the chain, and that no line is missing at the end."""
    problems: list[str] = []
    last, count = FIRST, 0
    seen: dict[int, str] = {}
    try:
        data = path.read_bytes()
    except OSError as e:
        return Verified(0, (f"cannot be read: {e.strerror}",))
    whole, _, torn = data.rpartition(b"\n")
    for raw in whole.split(b"\n") if data[: len(data) - len(torn)] else ():
        count += 1
        try:
            body = json.loads(raw)
            line = body.pop("hash")
            sealed = hmac.compare_digest(str(line), seal(key, _canonical(body), _CHAIN))
            canonical = json.dumps(body | {"hash": line}, ensure_ascii=True, separators=(",", ":")).encode() == raw
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            problems.append(f"line {count} is no line of the log")
            break
        if not sealed or not canonical:
            problems.append(f"line {count} was changed")
        elif body.get("n") != count or body.get("prev") != last:
            problems.append(f"line {count} does not follow the one before it: lines are missing or moved")
        if problems:
            break
        last = line
        seen[count] = line
    if not problems:
        problems += _ending(path, key, count, seen)
    if torn:
        problems.append(f"{_TORN} ({len(torn)} bytes)")
    return Verified(count - bool(problems and not torn), tuple(problems))


def _ending(path: Path, key: bytes, count: int, seen: Mapping[int, str]) -> list[str]:
    """The head file says how many lines there were at least: a log cut at a line's end is shorter than that."""
    try:
        text = _head(path).read_bytes().decode("ascii")
        number, line, sealed = text.split()
        known = int(number)
    except (OSError, ValueError):
        return [] if count == 0 else ["the head file is missing or damaged: lines at the end may be missing"]
    if not hmac.compare_digest(sealed, seal(key, f"{known} {line}".encode(), _HEAD)):
        return ["the head file was changed"]
    if known > count:
        return [f"{known - count} lines are missing at the end"]
    return [] if seen.get(known, FIRST) == line else ["the head file belongs to another log"]


def _head(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _head_line(key: bytes, number: int, line: str) -> bytes:
    return f"{number:012d} {line} {seal(key, f'{number} {line}'.encode(), _HEAD)}\n".encode("ascii")


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=True, separators=(",", ":"), sort_keys=True).encode()
