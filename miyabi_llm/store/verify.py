"""Hash a model's bytes again; what is wrong goes to quarantine, so that the next pull repairs it."""

from __future__ import annotations

import os
from pathlib import Path

from miyabi_llm.refs import Digest
from miyabi_llm.store.blobs import Blobs
from miyabi_llm.store.follow import hash_file
from miyabi_llm.store.fs import open_regular
from miyabi_llm.store.values import FileCheck
from miyabi_llm.types import Artifact, Event, OnEvent, StoredFile


def verify(blobs: Blobs, artifact: Artifact, on_event: OnEvent) -> list[FileCheck]:
    """Check every file of `artifact`. Raises Unsafe on a planted link, MiyabiError when quarantine fails."""
    return [check(blobs, file, on_event) for file in artifact.files]


def check(blobs: Blobs, file: StoredFile, on_event: OnEvent) -> FileCheck:
    """Hash one file's blob and compare; a wrong or unreadable blob is moved to quarantine."""
    path = blobs.path(file.sha256)

    def result(*, ok: bool, found: Digest | None, problem: str = "", moved: Path | None = None) -> FileCheck:
        return FileCheck(file.name, file.sha256, file.size, ok, found, problem, moved)

    def tell(done: int) -> None:
        on_event(Event("progress", file.name, "hashing", done=done, total=file.size, unit="bytes"))

    try:
        fd = open_regular(blobs.fs, path, os.O_RDONLY)
    except FileNotFoundError:
        return result(ok=False, found=None, problem="missing")
    except OSError as e:
        return result(ok=False, found=None, problem=f"cannot be opened: {e.strerror}")
    try:
        before = blobs.fs.fstat(fd)
        sha256, size = hash_file(blobs.fs, path, fd, tell)
        problem = "" if (sha256, size) == (file.sha256, file.size) else "other bytes than its name says"
        if size != file.size:
            problem = f"{size:,} bytes instead of {file.size:,}"
        found: Digest | None = sha256
    except OSError as e:
        problem, found = f"cannot be read: {e.strerror}", None
    finally:
        blobs.fs.close(fd)
    if not problem:
        return result(ok=True, found=found)
    now = blobs.fs.lstat(path)
    if (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
        return check(blobs, file, on_event)  # repaired by a pull while we hashed the old one
    return result(ok=False, found=found, problem=problem, moved=blobs.quarantine(path))
