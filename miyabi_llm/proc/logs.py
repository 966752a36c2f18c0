"""A server's log on disk: its last words, its last lines, and what comes next."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LIMIT = 8 << 20  # bytes of each of the two files
TAIL = 8 << 10  # bytes that go into an error

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def older(log: Path) -> Path:
    """The file the log was turned over to."""
    return log.with_name(log.name + ".1")


def tail(log: Path, size: int = TAIL) -> str:
    """The last `size` bytes of the log as text without control characters. Empty when there is none."""
    data = _last(log, size)
    if len(data) < size:
        data = _last(older(log), size - len(data)) + data
    return clean(data)


def last_lines(log: Path, count: int) -> list[str]:
    """The last `count` lines, over both files."""
    data = _last(older(log), LIMIT * 2) + _last(log, LIMIT * 2)
    return clean(data).splitlines()[-count:] if count > 0 else []


def clean(data: bytes) -> str:
    """Bytes as a terminal may safely show them."""
    return _CONTROL.sub("", data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n"))


def size(log: Path) -> tuple[int, int]:
    """(file number, bytes): changes whenever the server says something."""
    try:
        stat = log.stat()
    except OSError:
        return 0, 0
    return stat.st_ino, stat.st_size


def follow(log: Path, done: Callable[[], bool], *, pause: float = 0.2) -> Iterator[str]:
    """What is appended from now on, across turn-overs, until `done()` and nothing more comes."""
    file = _open(log)
    if file is not None:
        file.seek(0, os.SEEK_END)
    try:
        while True:
            finished = done()
            data = file.read(1 << 16) if file is not None else b""
            if data:
                yield clean(data)
                continue
            if file is None or os.fstat(file.fileno()).st_ino != size(log)[0]:
                fresh = _open(log)
                if fresh is not None:
                    if file is not None:
                        file.close()
                    file = fresh
                    continue
            if finished:
                return
            time.sleep(pause)
    finally:
        if file is not None:
            file.close()


def _open(path: Path):  # type: ignore[no-untyped-def]
    try:
        return path.open("rb", buffering=0)
    except OSError:
        return None


def _last(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size))
            return file.read(size)
    except OSError:
        return b""
