"""Read a bundle into the store; it is a stranger's file, and refused whole when anything in it is not as due."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from miyabi_llm import catalog, gguf, safetensors
from miyabi_llm.bundle.form import (
    BLOCK,
    CHUNK,
    MANIFEST,
    MAX_MANIFEST,
    NOT_OURS,
    distinct,
    member_name,
    padded,
    room,
)
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, Corrupt, ModelMissing, Unsafe
from miyabi_llm.sources.base import runs_code
from miyabi_llm.store import Store, manifest
from miyabi_llm.types import Artifact, Event, OnEvent, StoredFile, Trust, silent

MAX_FILES = 4096  # members; the largest published models have some hundreds
MAX_END = 10_240  # bytes of zeros after the last member: tar's record


@dataclass(frozen=True, slots=True)
class Imported:
    """A model that came from a bundle; `claimed` is the trust it had where it was exported."""

    artifact: Artifact
    claimed: Trust
    bytes: int


@dataclass(frozen=True, slots=True)
class _Member:
    """One blob inside a bundle: where its bytes start."""

    file: StoredFile
    offset: int


def import_(path: Path, store: Store, settings: Settings, on_event: OnEvent = silent) -> Imported:
    """Read a bundle into the store; refused whole when anything in it is not as `export` writes it.

    The file's layout and every hash are checked before the first byte is written. The bundle vouches for its own bytes
    only: the model becomes `verified` when its hash is pinned by its name or by the catalog here, else `first-use`.
    Raises Corrupt, Unsafe, DiskFull, BadUsage.
    """
    with _open(path) as (file, size):
        claimed, members = _layout(file, size, path)
        artifact = replace(claimed, trust=_trust(claimed, settings), card=_card(claimed, path))
        _not_another(artifact, store)
        missing = [m for m in members if not store.has(m.file.sha256, m.file.size)]
        room(store.root, sum(m.file.size for m in missing), store.free_bytes())
        for member in members:
            _check(file, member, on_event)
        for member in missing:
            _copy(file, member, store, on_event)
        store.publish(artifact)
    return Imported(artifact, claimed.trust, sum(m.file.size for m in missing))


@contextmanager
def _open(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    try:
        # O_NONBLOCK: a named pipe must not hold us before we have seen that it is one
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror}", hint="Name a file that `miyabi-llm export` wrote.") from e
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise BadUsage(f"{path} is not a regular file", hint="Name a file that `miyabi-llm export` wrote.")
    with os.fdopen(fd, "rb") as file:
        yield file, found.st_size


def _layout(file: BinaryIO, size: int, path: Path) -> tuple[Artifact, list[_Member]]:
    """Read the manifest and walk over all headers: nothing else may be in the file. Raises Corrupt, Unsafe."""
    first = _header(file, 0, size, path)
    if first.name != MANIFEST or first.size > MAX_MANIFEST:
        raise Corrupt(f"{path}: {first.name[:80]!r} of {first.size:,} bytes is not a bundle's manifest", hint=NOT_OURS)
    try:
        artifact = manifest.decode(file.read(first.size))
    except (ValueError, KeyError, TypeError, RecursionError, BadUsage) as e:
        raise Corrupt(f"{path}: its manifest cannot be read: {e}", hint=NOT_OURS) from e
    _judge(artifact, path)
    members, at = [], BLOCK + padded(first.size)
    for wanted in distinct(artifact):
        header = _header(file, at, size, path)
        if (header.name, header.size) != (member_name(wanted), wanted.size):
            found = f"{header.name[:80]!r} of {header.size:,} bytes"
            raise Corrupt(f"{path}: {found} where {member_name(wanted)} of {wanted.size:,} bytes is due", hint=NOT_OURS)
        members.append(_Member(wanted, at + BLOCK))
        at += BLOCK + padded(wanted.size)
    _end(file, at, size, path)
    return artifact, members


def _header(file: BinaryIO, at: int, size: int, path: Path) -> tarfile.TarInfo:
    """The member header at `at`: a regular file whose bytes are all there. Leaves `file` at its first byte."""
    file.seek(at)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise _truncated(path, size)
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.TarError, ValueError) as e:
        raise Corrupt(f"{path}: no tar header at byte {at:,}: {e}", hint=NOT_OURS) from e
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.linkname:
        raise Unsafe(f"{path}: {info.name[:80]!r} at byte {at:,} is not a plain file", hint=NOT_OURS)
    if info.size < 0:
        raise Corrupt(f"{path}: {info.name[:80]!r} has a negative size", hint=NOT_OURS)
    if at + BLOCK + info.size > size:
        raise _truncated(path, size, f"{info.name[:80]!r} of {info.size:,} bytes goes past its end")
    return info


def _truncated(path: Path, size: int, what: str = "it ends too early") -> Corrupt:
    return Corrupt(f"{path} has {size:,} bytes: {what}", hint="The copy is not complete: copy it again.")


def _end(file: BinaryIO, at: int, size: int, path: Path) -> None:
    if size < at + 2 * BLOCK:
        raise _truncated(path, size)
    file.seek(at)
    rest = file.read(MAX_END + 1)
    if size - at > MAX_END or any(rest):
        raise Corrupt(f"{path}: {size - at:,} bytes after the last file of the manifest", hint=NOT_OURS)


def _judge(artifact: Artifact, path: Path) -> None:
    """What `pull` would refuse, a bundle may not bring either."""
    names = [f.name for f in artifact.files]
    if not 1 <= len(names) <= MAX_FILES:
        raise Unsafe(f"{path} has {len(names):,} files; 1 to {MAX_FILES:,} are possible", hint=NOT_OURS)
    for name in names:
        if runs_code(name):
            raise Unsafe(f"{path}: refused: {name} can run code when it is loaded")
        if any(part.startswith(".") for part in name.split("/")):
            raise Unsafe(f"{path}: refused: {name!r} is a hidden file")


def _not_another(artifact: Artifact, store: Store) -> None:
    """A bundle does not replace a model that is here by other bytes under its name."""
    try:
        here = store.find(artifact.ref)
    except ModelMissing:
        return
    if [(f.name, f.sha256) for f in here.files] != [(f.name, f.sha256) for f in artifact.files]:
        raise BadUsage(
            f"{artifact.ref} is in the store with other files", hint=f"Run `miyabi-llm rm {artifact.ref}` first."
        )


def _check(file: BinaryIO, member: _Member, on_event: OnEvent) -> None:
    """Compare a member's bytes with its hash, and read its model header within bounds. Raises Corrupt."""
    sha, name = hashlib.sha256(), member.file.name
    for done, chunk in _chunks(file, member):
        sha.update(chunk)
        on_event(Event("progress", name, "checking", done=done + len(chunk), total=member.file.size, unit="bytes"))
    if sha.hexdigest() != member.file.sha256:
        raise Corrupt(
            f"{name} in the bundle has sha256 {sha.hexdigest()}, expected {member.file.sha256}",
            hint="The copy was damaged: copy the bundle again.",
        )
    inner = io.BufferedReader(_Window(file, member))
    if name.endswith(".gguf"):
        gguf.read(inner, member.file.size)
    elif name.endswith(".safetensors"):
        safetensors.read(inner, member.file.size)


def _copy(file: BinaryIO, member: _Member, store: Store, on_event: OnEvent) -> None:
    """Put a member into the store, which hashes it again from its own disk."""
    wanted = member.file
    with store.part(wanted.sha256, wanted.size) as part:
        part.reset(None, wanted.size)
        for done, chunk in _chunks(file, member):
            part.write(done, chunk)
            on_event(Event("progress", wanted.name, "copying", done=done + len(chunk), total=wanted.size, unit="bytes"))
        part.commit(wanted.sha256, wanted.size)


class _Window(io.RawIOBase):
    """A member's bytes as a file of their own."""

    def __init__(self, file: BinaryIO, member: _Member) -> None:
        self._file, self._start, self._size, self._at = file, member.offset, member.file.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        data = self._file.read(max(min(len(buffer), self._size - self._at), 0))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _chunks(file: BinaryIO, member: _Member) -> Iterator[tuple[int, bytes]]:
    """(offset in the member, bytes), to its end. Raises Corrupt when the file became shorter."""
    file.seek(member.offset)
    done = 0
    while done < member.file.size:
        chunk = file.read(min(CHUNK, member.file.size - done))
        if not chunk:
            raise Corrupt(f"{member.file.name}: the bundle changed while it was read")
        yield done, chunk
        done += len(chunk)


def _trust(artifact: Artifact, settings: Settings) -> Trust:
    """How far an imported model can be trusted: a stranger can write any manifest. Raises Unsafe against a pin."""
    ref, pin = artifact.ref, artifact.ref.sha256
    if ref.scheme == "catalog":
        try:
            pin = catalog.load(settings).find(ref).sha256
        except ModelMissing:
            pin = None
    if pin is None:
        return "local" if artifact.trust == "local" else "first-use"
    if [f.sha256 for f in artifact.files] != [pin]:
        raise Unsafe(
            f"the bundle says it is {ref}, but that name is pinned to the sha256 {pin}",
            hint="Do not use this file: it is another model under a known name.",
        )
    return "verified"


def _card(artifact: Artifact, path: Path) -> dict[str, object]:
    step = {"step": "import", "from": path.name, "claimed_trust": artifact.trust}
    lineage = artifact.card.get("lineage")
    return dict(artifact.card) | {"lineage": [*(lineage if isinstance(lineage, list) else []), step]}
