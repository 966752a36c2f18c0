"""Verified bytes by their hash: the only way from a string to a path in the store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.refs import Digest, digest
from miyabi_llm.store.fs import Fs, explained, is_regular, nonce, open_regular
from miyabi_llm.store.layout import Layout
from miyabi_llm.store.values import StoredBlob

FRESH = 600.0  # seconds; a blob that was touched within them is not touched again


@dataclass(frozen=True, slots=True)
class Blobs:
    """The folder of verified bytes."""

    fs: Fs
    layout: Layout

    def path(self, sha256: str) -> Path:
        """Where the blob lies or would lie. Raises BadUsage when `sha256` is not one."""
        return self.layout.blob(digest(sha256))

    def size(self, sha256: str) -> int | None:
        """The blob's size in bytes, None when it is not here. Raises Unsafe on a planted link."""
        path = self.path(sha256)
        with explained(path):
            found = is_regular(self.fs, path)
        return None if found is None else found.st_size

    def has(self, sha256: str, size: int | None = None) -> bool:
        """Whether the blob is here, with `size` bytes when that is known."""
        found = self.size(sha256)
        return found is not None and size in (None, found)

    def publish(self, path: Path, fd: int, found: StoredBlob, *, seal: bool = True) -> None:
        """Give the file `path`, open as `fd` and already verified and synced, its place. Raises MiyabiError.

        `seal` takes away the right to write; not for a file that is another tool's too.
        """
        target = self.path(found.sha256)
        with explained(path):
            if seal:
                self.fs.fchmod(fd, 0o444)
            is_regular(self.fs, target)  # a planted link is refused, not replaced
            self.fs.rename(path, target)
            self.fs.fsync_dir(self.layout.blobs)

    def publish_file(self, path: Path, sha256: Digest, *, seal: bool = True) -> StoredBlob:
        """Sync the verified file at `path` (under parts/, so on this filesystem) and give it its place."""
        with explained(path):
            fd = open_regular(self.fs, path, os.O_RDONLY)
            try:
                self.fs.fsync(fd)
                found = StoredBlob(sha256, self.fs.fstat(fd).st_size)
                self.publish(path, fd, found, seal=seal)
            finally:
                self.fs.close(fd)
        return found

    def quarantine(self, path: Path) -> Path:
        """Move a file out of the way, kept for a look. Raises MiyabiError."""
        target = self.layout.quarantine / f"{path.name}.{nonce()}"
        with explained(path):
            self.fs.rename(path, target)
            self.fs.fsync_dir(self.layout.quarantine)
            self.fs.fsync_dir(path.parent)
        return target
