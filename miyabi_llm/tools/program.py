"""A program that was looked at: what it is, what it understands, or why it cannot be used."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from miyabi_llm.proc import group

How = Literal["path", "release", "build", "environment"]

TIMEOUT = 3.0  # seconds a program may take to say its version
OUTPUT = 1 << 20  # bytes of its answer that are kept; the rest is not read


@dataclass(frozen=True, slots=True)
class Program:
    """A usable program. `argv` starts it (`llama serve` is two words); `flags` is what its own --help lists.

    `environment` holds the variables --help names. `build` and `commit` are None where the program does not say.
    """

    name: str
    path: Path
    argv: tuple[str, ...]
    version: str
    how: How
    build: int | None = None
    commit: str | None = None
    flags: frozenset[str] = frozenset()
    environment: frozenset[str] = frozenset()

    def has(self, flag: str) -> bool:
        """Whether its --help lists `flag` (with its dashes)."""
        return flag in self.flags


@dataclass(frozen=True, slots=True)
class Unusable:
    """A program that is there and must not be used, and why."""

    name: str
    path: Path
    reason: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class Ran:
    """What a short run gave: `code` None when it never ended or never started; `trouble` says why."""

    code: int | None
    text: str
    trouble: str | None = None


def run_briefly(
    argv: Sequence[str], *, timeout: float = TIMEOUT, limit: int = OUTPUT, env: Mapping[str, str] | None = None
) -> Ran:
    """Run a program that ought to answer at once; stdout and stderr together, at most `limit` bytes.

    Its whole process group is killed at the deadline (seconds) or when it has said too much. Never raises.
    """
    read_end, write_end = os.pipe()
    try:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=write_end,
            stderr=write_end,
            env=None if env is None else dict(env),
            start_new_session=os.name == "posix",
        )
    except (OSError, ValueError) as e:
        os.close(read_end)
        return Ran(None, "", _cannot_start(e))
    finally:
        os.close(write_end)
    chunks: list[bytes] = []
    reader = threading.Thread(target=_read, args=(read_end, limit, chunks), daemon=True)
    reader.start()
    deadline = time.monotonic() + timeout
    reader.join(timeout)
    trouble = None
    try:
        code: int | None = child.wait(max(0.05, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        code = None
        trouble = f"did not end within {timeout:g} s" if reader.is_alive() else f"did not end after {limit} bytes"
    group.kill(child)
    child.wait()
    reader.join(0.5)  # a grandchild that left the group may hold the pipe; the thread is a daemon and bounded
    text = b"".join(chunks)[:limit].decode("utf-8", "replace")
    if code is not None and code < 0:
        trouble = f"died of signal {-code}"
    return Ran(code, text, trouble)


def _read(fd: int, limit: int, chunks: list[bytes]) -> None:
    left = limit
    try:
        while left > 0 and (data := os.read(fd, min(65536, left))):
            chunks.append(data)
            left -= len(data)
    finally:
        os.close(fd)


def _cannot_start(e: OSError | ValueError) -> str:
    import errno

    code = getattr(e, "errno", None)
    if code == errno.ENOEXEC or getattr(e, "winerror", None) in (193, 216):
        return "is not a program of this machine (another processor or system?)"
    if code == errno.ENOENT:
        return "cannot be started: it, or the interpreter or loader it names, is missing"
    return f"cannot be started: {getattr(e, 'strerror', None) or e}"


_FLAG_LINE = re.compile(r"^\s{0,4}(-{1,2}[A-Za-z][\w.-]*(?:,\s*-{1,2}[A-Za-z][\w.-]*)*)")
_ENV = re.compile(r"\(env: ([A-Z][A-Z0-9_]+)\)")


def parse_flags(help_text: str) -> frozenset[str]:
    """The flags a --help text lists, at the start of its lines."""
    heads = (m.group(1) for line in help_text.splitlines() if (m := _FLAG_LINE.match(line)))
    return frozenset(flag for head in heads for flag in re.split(r",\s*", head))


def parse_environment(help_text: str) -> frozenset[str]:
    """The environment variables a --help text names as `(env: NAME)`."""
    return frozenset(_ENV.findall(help_text))
