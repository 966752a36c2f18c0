"""The output file: whole rows appended, a torn end mended, every row there once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from miyabi_llm.batch.disk import explained
from miyabi_llm.batch.reading import digest
from miyabi_llm.batch.scan import Scan
from miyabi_llm.errors import MiyabiError
from miyabi_llm.store.fs import Fs
from miyabi_llm.store.locks import Lock, take

SYNC_S = 1.0  # a power cut costs at most the rows of this time; a killed process costs none


class Journal:
    """The output file, open for appending. Use `opened`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained(path):
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._size = os.fstat(self._fd).st_size
        self._unsynced = 0.0

    def append(self, document: Mapping[str, Any]) -> None:
        """Write one row in one piece; a part of it is taken back. Raises DiskFull, MiyabiError."""
        data = encode(document)
        with explained(self.path):
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
            except OSError:
                with suppress(OSError):  # else the next run mends it
                    os.ftruncate(self._fd, self._size)
                raise
        self._size += len(data)
        self._unsynced = self._unsynced or time.monotonic()

    @property
    def due(self) -> bool:
        """Whether rows have waited for `sync` long enough."""
        return bool(self._unsynced) and time.monotonic() - self._unsynced >= SYNC_S

    def sync(self) -> None:
        """Return when all rows are durable. Raises DiskFull, MiyabiError."""
        if self._unsynced:
            self._unsynced = 0.0
            with explained(self.path):
                Fs().fdatasync(self._fd)

    def close(self) -> None:
        """Close the file; call `sync` before."""
        os.close(self._fd)


def encode(document: Mapping[str, Any]) -> bytes:
    """One row as a line."""
    try:
        return json.dumps(document, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, as a model may write it
        return json.dumps(document).encode() + b"\n"


@contextmanager
def locked(target: Path) -> Iterator[Lock]:
    """Keep a second command away from `target`. Raises MiyabiError when one is at work on it."""
    path = target.with_name(target.name + ".lock")
    with explained(path):
        lock = take(Fs(), path, exclusive=True, timeout=0)
    if lock is None:
        raise MiyabiError(
            f"{target} is being written by another command",
            hint="Wait for it, end it, or write to another file with -o.",
        )
    try:
        yield lock
    finally:
        lock.release(remove=True)


def sweep(target: Path) -> None:
    """Remove what a killed run left half written beside `target`. The caller holds the lock."""
    with suppress(OSError):
        _part(target).unlink(missing_ok=True)


def mend(target: Path, scan: Scan) -> None:
    """Make `target` hold just the rows that `scan` keeps, each ended by a newline. Raises DiskFull, MiyabiError."""
    if scan.drop:
        rewrite(target, ((a, b) for a, b in _between(scan.drop, scan.size)), whole=not scan.open_end)
    elif scan.torn is not None:
        with explained(target), target.open("r+b") as file:
            file.truncate(scan.torn)
            os.fsync(file.fileno())
    elif scan.open_end:
        with explained(target), target.open("ab") as file:
            file.write(b"\n")
            file.flush()
            os.fsync(file.fileno())


def rewrite(target: Path, spans: Iterator[tuple[int, int]], *, whole: bool = True) -> None:
    """Replace `target`, atomically, by these spans of its own bytes. Raises DiskFull, MiyabiError.

    With `whole` False the last span lacks its newline and gets one.
    """
    part = _part(target)
    with explained(part):
        try:
            with target.open("rb") as old, part.open("wb") as new:
                os.fchmod(new.fileno(), os.fstat(old.fileno()).st_mode & 0o777)
                for start, end in spans:
                    old.seek(start)
                    new.write(old.read(end - start))
                if not whole:
                    new.write(b"\n")
                new.flush()
                os.fsync(new.fileno())
            os.replace(part, target)
            Fs().fsync_dir(target.parent)
        except OSError:
            part.unlink(missing_ok=True)
            raise


def order(target: Path, ids: Iterator[bytes]) -> bool:
    """Put the rows of `target` in the order of `ids`, atomically; False when they were. Raises as `rewrite`."""
    places: dict[bytes, tuple[int, int]] = {}
    at = 0
    with explained(target), target.open("rb") as file:
        for line in file:
            places[digest(json.loads(line)["custom_id"])] = (at, at + len(line))
            at += len(line)
    spans = [places[i] for i in ids if i in places]
    if spans == sorted(spans):
        return False
    rewrite(target, iter(spans))
    return True


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _between(drop: list[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """What is left of `size` bytes without the spans of `drop`, which are in order; in pieces of a mebibyte."""
    at = 0
    for start, end in [*drop, (size, size)]:
        for a in range(at, start, 1 << 20):
            yield a, min(a + (1 << 20), start)
        at = end
