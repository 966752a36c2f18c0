"""A file on its way into the store: written in any order, continued after a crash, published only when verified."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.errors import Corrupt, MiyabiError, NetworkError
from miyabi_llm.refs import Digest
from miyabi_llm.store import journal
from miyabi_llm.store.blobs import Blobs
from miyabi_llm.store.follow import STEP, Follower
from miyabi_llm.store.fs import Fs, explain, explained, is_regular, open_regular, quietly_unlink, write_all
from miyabi_llm.store.ranges import Ranges
from miyabi_llm.store.values import StoredBlob


class Incomplete(NetworkError):
    """Bytes are missing; what came stays, and the next pull continues."""

    code = "incomplete"


@dataclass(frozen=True, slots=True)
class PartFiles:
    """Where a part lies. `resumable` is False for a private part, which nobody can continue."""

    data: Path
    journal: Path
    resumable: bool


class Part:
    """One file on its way. Made by `Store.part`; `write` may be called from several threads.

    `done` are half-open ranges `(start, end)` that need not come again. When the blob is in the store
    already, `done` is the whole file, writes are dropped and `commit` returns at once.
    """

    def __init__(self, blobs: Blobs, files: PartFiles, size: int | None, *, key: str, step: int = STEP) -> None:
        self._fs: Fs = blobs.fs
        self._blobs, self._files, self._key, self._step = blobs, files, key, step
        self._declared = self._size = size
        self._validator: str | None = None
        self._fd = -1
        self._present: StoredBlob | None = None
        self._follower: Follower
        found = blobs.size(key)
        if found is not None and size in (None, found):
            self._present = StoredBlob(Digest(key), found)
            self._size = found
            if files.resumable:
                tidy(self._fs, files)
        else:
            with explained(files.data, need=size):
                self._open()

    @property
    def present(self) -> bool:
        """Whether the blob is in the store already, so that nothing needs to come."""
        return self._present is not None

    @property
    def size(self) -> int | None:
        """Bytes the whole file has, None while nobody knows."""
        return self._size

    @property
    def validator(self) -> str | None:
        """The strong ETag that `done` belongs to, None when it has none."""
        return f'"sha256:{self._key}"' if self._present else self._validator

    @property
    def done(self) -> list[tuple[int, int]]:
        """What has been written, in order."""
        if self._present:
            return [(0, self._present.size)] if self._present.size else []
        return self._follower.written.pairs()

    def reset(self, validator: str | None, size: int | None) -> None:
        """Forget all bytes; what comes now belongs to `validator` and has `size` bytes. Raises MiyabiError."""
        if self._present:
            return
        with explained(self._files.data, need=size):
            self._validator, self._size = validator, size if size is not None else self._declared
            if self._fs.fstat(self._fd).st_size:
                self._start_over()

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put all of `data` at `offset`. Raises Corrupt beyond the size, DiskFull or MiyabiError from the disk."""
        end = offset + len(data)
        if self._present or not data:
            return
        if offset < 0 or (self._size is not None and end > self._size):
            raise Corrupt(
                f"{self._key[:12]}: {end - (self._size or 0):,} bytes more came than the {self._size:,} declared",
                hint="The source does not send what it lists; try another one.",
            )
        self._follower.before(offset, end)
        try:
            write_all(self._fs, self._fd, data, offset)
        except OSError as e:
            missing = None if self._size is None else self._size - self._follower.written.total
            raise explain(e, self._files.data, need=missing) from e
        self._follower.after(offset, end)

    def commit(self, sha256: Digest | None, size: int | None = None) -> StoredBlob:
        """Sync, hash what is on disk, compare, publish. Raises Incomplete (keeps the bytes) or Corrupt (drops them).

        After Corrupt the part is empty and can be filled again at once.
        """
        if self._present:
            return self._accept(self._present, sha256, size)
        size = size if size is not None else self._size
        done = self._follower.written
        if (size is not None and done.end < size) or done.prefix != done.end:
            raise Incomplete(
                f"{self._key[:12]}: {done.total:,} of {size or done.end:,} bytes came",
                hint="Run the command again: it continues.",
            )
        with explained(self._files.data):
            found = StoredBlob(*self._follower.finish())
            try:
                self._accept(found, sha256, size)
            except Corrupt:
                self._validator = None
                self._start_over()
                raise
            self._blobs.publish(self._files.data, self._fd, found)
            self._fs.close(self._fd)
            self._fd, self._present, self._key = -1, found, found.sha256
            tidy(self._fs, self._files)
        return found

    def close(self) -> None:
        """Keep what is durable for the next time; a private part goes."""
        if self._fd < 0:
            return
        if self._files.resumable:
            # When it fails the journal stays as it was: it claims less, and is right.
            with suppress(OSError, MiyabiError):
                if self._follower.written.total:
                    self._follower.sync()
        self._close()
        if not self._files.resumable or not self._follower.written.total:
            tidy(self._fs, self._files)

    def _accept(self, found: StoredBlob, sha256: Digest | None, size: int | None) -> StoredBlob:
        if size is not None and found.size != size:
            raise Corrupt(f"{self._key[:12]}: {found.size:,} bytes are on disk, {size:,} were expected")
        if sha256 is not None and found.sha256 != sha256:
            raise Corrupt(
                f"the bytes on disk have sha256 {found.sha256}, expected {sha256}",
                hint="The source or the way to it changed the file; nothing was kept. Try again or another source.",
                expected=sha256,
                found=found.sha256,
            )
        return found

    def _open(self) -> None:
        """Open the part as the journal says; without a right journal, from nothing."""
        paths, known = self._files, None
        if paths.resumable:
            known = journal.load(self._fs, paths.journal)
            found = is_regular(self._fs, paths.data)
            if known is not None and not _fits(known, self._size, found.st_size if found else None):
                known = None
            if known is None:
                if is_regular(self._fs, paths.journal):
                    self._fs.unlink(paths.journal)
                    self._fs.fsync_dir(paths.journal.parent)  # it must not come back beside new bytes
                if found:
                    self._fs.unlink(paths.data)
        if known is not None:
            self._validator, self._size = known.validator, known.size if self._size is None else self._size
        self._open_data(Ranges(known.done if known else ()))

    def _open_data(self, done: Ranges) -> None:
        self._fd = open_regular(self._fs, self._files.data, os.O_RDWR | os.O_CREAT)
        self._follower = Follower(self._fs, self._files.data, self._fd, done, self._record, self._step)

    def _start_over(self) -> None:
        """Drop all bytes. The journal goes first: old bytes, or zeros, must never count as the new file's."""
        self._close()
        self._record(Ranges())
        self._fs.unlink(self._files.data)
        self._open_data(Ranges())

    def _record(self, durable: Ranges) -> None:
        if self._files.resumable:
            state = journal.Journal(self._validator, self._size, tuple(durable.pairs()))
            journal.save(self._fs, self._files.journal, state)

    def _close(self) -> None:
        self._follower.stop()
        if self._fd >= 0:
            self._fs.close(self._fd)
            self._fd = -1


def tidy(fs: Fs, files: PartFiles) -> None:
    """Remove what a part may have left. The caller holds the part's lock."""
    for path in (files.data, files.journal, files.journal.with_name(files.journal.name + ".tmp")):
        quietly_unlink(fs, path)


def _fits(known: journal.Journal, size: int | None, on_disk: int | None) -> bool:
    """Whether a journal can be about this file: sizes agree, and the part is as long as it says."""
    if on_disk is None or (size is not None and known.size not in (None, size)):
        return False
    limit = size if size is not None else known.size
    last = 0
    for start, end in known.done:
        if not last <= start < end or (limit is not None and end > limit):
            return False
        last = end
    return last <= on_disk
