"""Real bugs of other tools, built into our store on purpose: the fault loop must catch each."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress

from miyabi_llm.errors import Corrupt
from miyabi_llm.refs import Digest
from miyabi_llm.store import Fs, Part, Store, StoredBlob, manifest
from miyabi_llm.store.fs import write_all
from miyabi_llm.types import Artifact, StoredFile

from .faulty import Server


class PublishesBeforeItVerifies(Part):
    """Renames to the final name, then hashes."""

    def commit(self, sha256: Digest | None, size: int | None = None) -> StoredBlob:
        if self.present:
            return super().commit(sha256, size)
        assert sha256 is not None
        self._follower.sync()
        target = self._blobs.path(sha256)
        self._fs.rename(self._files.data, target)
        self._fs.fsync_dir(target.parent)
        found = hashlib.sha256(target.read_bytes()).hexdigest()
        self._fs.unlink(self._files.journal)
        if found != sha256:
            self._fs.unlink(target)
            self._close()
            raise Corrupt("wrong bytes")
        self._present = StoredBlob(sha256, target.stat().st_size)
        return self._present


class ChecksTheSizeOnly(Part):
    """Believes any bytes of the right length."""

    def commit(self, sha256: Digest | None, size: int | None = None) -> StoredBlob:
        if self.present or sha256 is None or self._follower.written.total != self.size:
            return super().commit(sha256, size)
        _, length = self._follower.finish()
        found = StoredBlob(sha256, length)
        self._blobs.publish(self._files.data, self._fd, found)
        self._close()
        self._present = found
        return found


class IgnoresWriteErrors(Part):
    """Hashes the network's stream, counts the network's bytes, and drops the disk's errors."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        if self.present:
            return
        self._stream = getattr(self, "_stream", {})
        self._stream[offset] = bytes(data)
        with suppress(OSError):
            write_all(self._fs, self._fd, data, offset)
        self._follower._written.add(offset, offset + len(data))

    def commit(self, sha256: Digest | None, size: int | None = None) -> StoredBlob:
        stream = b"".join(data for _, data in sorted(getattr(self, "_stream", {}).items()))
        if self.present or len(stream) != self.size:  # continued: it has to look at the disk
            return super().commit(sha256, size)
        found = StoredBlob(Digest(hashlib.sha256(stream).hexdigest()), len(stream))
        self._accept(found, sha256, size)
        with suppress(OSError):
            self._fs.fsync(self._fd)
        self._blobs.publish(self._files.data, self._fd, found)
        self._present = found
        return found


class WritesTheManifestInPlace(Store):
    """Truncates the old manifest, then writes the new one."""

    def publish(self, artifact: Artifact) -> None:
        with self.using():
            for file in artifact.files:
                self._tidy(file.sha256)
            path = self.layout.manifest(artifact.ref)
            fd = self.fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                write_all(self.fs, fd, manifest.encode(artifact), 0)
            finally:
                self.fs.close(fd)


def appends_after_200(server: Server, file: StoredFile, part: Part) -> None:
    """Continues, is sent the whole file with status 200, and appends it."""
    if part.present:
        return
    if part.validator != server.etag:
        part.reset(server.etag, None)
    start = part.done[-1][1] if part.done else 0
    if start >= file.size:
        return
    whole = not server.ranges  # a 200 to a request with a Range
    for at, piece in server.pieces(file.name, 0 if whole else start, file.size):
        part.write(start + at if whole else at, piece)


def with_part(kind: type[Part]) -> type[Store]:
    """A store whose parts have that bug."""
    return type(f"Store{kind.__name__}", (Store,), {"part_type": kind})


class NeverSyncs(Fs):
    """Leaves it to the kernel when bytes reach the disk."""

    def fsync(self, fd: int) -> None:
        """No."""

    def fdatasync(self, fd: int) -> None:
        """No."""
