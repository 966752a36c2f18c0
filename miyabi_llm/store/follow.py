"""Two threads behind a part that is being written: one makes its bytes durable, one hashes what is durable."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from miyabi_llm.errors import MiyabiError
from miyabi_llm.refs import Digest
from miyabi_llm.store.fs import Fs, explain
from miyabi_llm.store.ranges import Ranges

STEP = 64 << 20  # bytes between two syncs: a crash costs at most this much of a download again
PAUSE = 5.0  # seconds between two syncs of a slow download
CHUNK = 4 << 20  # bytes hashed at a time; hashlib lets other threads run meanwhile
_SMALL = 1 << 20  # a file below this needs no threads


class Follower:
    """Follows the writers of one file. `save` is called with ranges that are durable, from any thread.

    The hash is always taken from the file, never from what came over the network: the hasher reads the
    contiguous prefix back after it was synced. Bytes that are written twice make it start over.
    """

    def __init__(
        self, fs: Fs, path: Path, fd: int, done: Ranges, save: Callable[[Ranges], None], step: int = STEP
    ) -> None:
        self._fs, self._path, self._fd, self._save, self._step = fs, path, fd, save, step
        self._written, self._durable = done.copy(), done.copy()
        self._cond = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._error: BaseException | None = None
        self._pending = 0
        self._stopped = False
        self._hash, self._hashed, self._reading = hashlib.sha256(), 0, 0
        self._stale = False  # bytes that are in the hash were written again
        self._redone = Ranges()  # written again since the last look at what to sync

    @property
    def written(self) -> Ranges:
        """What has been written so far, durable or not."""
        with self._cond:
            return self._written.copy()

    def before(self, start: int, end: int) -> None:
        """A writer is about to write `[start, end)`. Raises what a background thread ran into."""
        with self._cond:
            if self._error is not None:
                raise self._error
            if self._written.meets(start, end):
                self._written.discard(start, end)
                self._durable.discard(start, end)
                self._redone.add(start, end)
                self._stale = self._stale or start < self._reading

    def after(self, start: int, end: int) -> None:
        """A writer has written `[start, end)`."""
        with self._cond:
            self._written.add(start, end)
            self._pending += end - start
            if not self._threads and not self._stopped and self._pending >= min(self._step, _SMALL):
                self._start()
            if self._pending >= self._step:
                self._cond.notify_all()

    def stop(self) -> None:
        """End the threads; what they did stays."""
        with self._cond:
            self._stopped = True
            self._cond.notify_all()
        for thread in self._threads:
            thread.join()

    def sync(self) -> None:
        """Make everything durable, from the calling thread, and save it. Raises OSError, MiyabiError.

        Not after a failed sync: the kernel reports lost bytes once, and a second sync would seem to succeed.
        """
        self.stop()
        if self._error is not None:
            raise self._error
        self._fs.fdatasync(self._fd)
        self._save(self._written.copy())

    def finish(self) -> tuple[Digest, int]:
        """Stop, sync all, and return the sha256 and the length of what is on disk. Raises OSError, MiyabiError."""
        self.stop()
        if self._error is not None:
            raise self._error
        try:
            self._fs.fsync(self._fd)
        except OSError as e:
            self._error = explain(e, self._path)
            raise
        if self._stale:
            self._hash, self._hashed = hashlib.sha256(), 0
        end = self._fs.fstat(self._fd).st_size
        buffer = memoryview(bytearray(min(CHUNK, max(end - self._hashed, 1))))
        while self._hashed < end and self._feed(buffer, end):
            pass
        return Digest(self._hash.hexdigest()), self._hashed

    def _start(self) -> None:
        for work in (self._flush, self._follow):
            thread = threading.Thread(target=self._guarded, args=(work,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, MiyabiError) as e:
            with self._cond:
                self._error = explain(e, self._path) if isinstance(e, OSError) else e
                self._stopped = True
                self._cond.notify_all()

    def _flush(self) -> None:
        """Sync whenever a step is full, or after a while."""
        while True:
            with self._cond:
                self._cond.wait_for(lambda: self._stopped or self._pending >= self._step, timeout=PAUSE)
                if self._stopped:
                    return
                if not self._pending:
                    continue
                durable = self._written.copy()
                self._pending, self._redone = 0, Ranges()
            self._fs.fdatasync(self._fd)
            with self._cond:
                for start, end in self._redone.pairs():
                    durable.discard(start, end)
                self._durable = durable
                self._cond.notify_all()
            self._save(durable)

    def _follow(self) -> None:
        """Hash the durable prefix as it grows."""
        buffer = memoryview(bytearray(CHUNK))
        while True:
            with self._cond:
                self._cond.wait_for(lambda: self._stopped or self._stale or self._durable.prefix > self._hashed)
                if self._stopped or self._stale:
                    return
                end = self._reading = min(self._durable.prefix, self._hashed + CHUNK)
            if not self._feed(buffer, end):
                return

    def _feed(self, buffer: memoryview, end: int) -> bool:
        """Hash one chunk that ends at `end` or before; False at the end of the file."""
        want = min(len(buffer), end - self._hashed)
        count = self._fs.pread(self._fd, buffer[:want], self._hashed)
        self._hash.update(buffer[:count])
        self._hashed += count
        return count > 0


def hash_file(fs: Fs, path: Path, fd: int, on_bytes: Callable[[int], None] | None = None) -> tuple[Digest, int]:
    """The sha256 and the length of an open file; `on_bytes` hears how many are done. Raises OSError."""
    digest, position = hashlib.sha256(), 0
    buffer = memoryview(bytearray(CHUNK))
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    while count := fs.pread(fd, buffer, position):
        digest.update(buffer[:count])
        position += count
        if on_bytes is not None:
            on_bytes(position)
    return Digest(digest.hexdigest()), position
