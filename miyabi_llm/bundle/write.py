"""Write a model to one file, which appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from miyabi_llm.bundle.form import BLOCK, CHUNK, MANIFEST, MAX_MANIFEST, distinct, member_name, padded, room
from miyabi_llm.errors import BadUsage, Corrupt
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.store import Fs, Store, manifest
from miyabi_llm.store.fs import explained
from miyabi_llm.types import Event, OnEvent, StoredFile, silent


@dataclass(frozen=True, slots=True)
class Exported:
    """A written bundle: `size` in bytes, `sha256` of the whole file, to be compared on the other side."""

    ref: ModelRef
    path: Path
    size: int
    sha256: Digest
    files: int


def export(ref: ModelRef, target: Path, store: Store, on_event: OnEvent = silent, *, force: bool = False) -> Exported:
    """Write the model `ref` to the file `target`, which appears whole or not at all.

    Every blob is hashed on its way out. Raises ModelMissing, BadUsage (the file is there and not `force`), DiskFull,
    Corrupt.
    """
    artifact = store.find(ref)
    head = manifest.encode(artifact)
    if len(head) > MAX_MANIFEST:
        raise BadUsage(f"{ref} has a card of {len(head):,} bytes; {MAX_MANIFEST:,} at most")
    if target.is_dir() or (target.exists() and not force):
        what = "is a directory" if target.is_dir() else "is there already"
        raise BadUsage(f"{target} {what}", hint="Name another file with -o, or add --force.")
    blobs = distinct(artifact)
    need = sum(BLOCK + padded(n) for n in (len(head), *(f.size for f in blobs))) + 2 * BLOCK
    try:
        free = shutil.disk_usage(target.parent).free
    except OSError as e:
        raise BadUsage(f"{target.parent}: {e.strerror}", hint="Name a file in a directory that is there.") from e
    room(target.parent, need, free)
    with store.lease(artifact), _draft(target, force=force) as out:
        tar = _Writer(out)
        tar.member(MANIFEST, len(head), iter([head]))
        for file in blobs:
            with store.blob(file.sha256).open("rb") as blob:
                tar.member(member_name(file), file.size, _checked(blob, file, on_event))
        tar.raw(bytes(2 * BLOCK))
    return Exported(ref, target, tar.size, Digest(tar.sha.hexdigest()), len(artifact.files))


class _Writer:
    """A tar file as it grows, and its hash."""

    def __init__(self, out: BinaryIO) -> None:
        self._out, self.size, self.sha = out, 0, hashlib.sha256()

    def raw(self, data: bytes) -> None:
        self._out.write(data)
        self.sha.update(data)
        self.size += len(data)

    def member(self, name: str, size: int, chunks: Iterator[bytes]) -> None:
        info = tarfile.TarInfo(name)  # mode 0644, owner 0, time 0
        info.size = size
        self.raw(info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict"))
        for chunk in chunks:
            self.raw(chunk)
        self.raw(bytes(padded(size) - size))


@contextmanager
def _draft(target: Path, *, force: bool) -> Iterator[BinaryIO]:
    """A file that gets the name `target` at the end of the block, durably, and is gone after an error."""
    draft = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    with explained(target):
        try:
            with draft.open("xb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            if not force and target.exists():
                raise BadUsage(f"{target} appeared meanwhile", hint="Name another file with -o.")
            draft.replace(target)
            if os.name == "posix":
                Fs().fsync_dir(target.parent)
        finally:
            draft.unlink(missing_ok=True)


def _checked(blob: BinaryIO, file: StoredFile, on_event: OnEvent) -> Iterator[bytes]:
    """The bytes of a blob; Corrupt at the end when they are not what the manifest says."""
    sha, done = hashlib.sha256(), 0
    while chunk := blob.read(CHUNK):
        sha.update(chunk)
        done += len(chunk)
        if done > file.size:
            break
        yield chunk
        on_event(Event("progress", file.name, done=done, total=file.size, unit="bytes"))
    if done != file.size or sha.hexdigest() != file.sha256:
        raise Corrupt(
            f"{file.name}: the stored bytes have sha256 {sha.hexdigest()}, expected {file.sha256}",
            hint="Run `miyabi-llm verify --all`, then pull the model again.",
        )
