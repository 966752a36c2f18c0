"""Checkpoints that are there whole or not at all: a manifest with the hash of every file, written last.

Standard library only: children in training environments use it too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A checkpoint that was passed over, and why."""

    folder: Path
    why: str


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file under `folder` but the manifest, by its path with slashes."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST:
            found[name] = sha256(path)
    return found


def sha256(path: Path) -> str:
    """The hash of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def seal(folder: Path, **more: object) -> dict[str, str]:
    """Make every file durable and write the manifest last; the hashes. Raises OSError."""
    for path in (p for p in folder.rglob("*") if p.is_file()):
        _sync(path)
    files = hashes(folder)
    part = folder / f".{MANIFEST}.part"
    with part.open("w", encoding="utf-8") as f:
        json.dump({"files": files, **more}, f, indent=1)
        f.flush()
        os.fsync(f.fileno())
    part.replace(folder / MANIFEST)
    _sync(folder)
    return files


def publish(staged: Path, target: Path, **more: object) -> dict[str, str]:
    """Seal `staged` and rename it to `target`; what stood there is replaced. Raises OSError."""
    files = seal(staged, **more)
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        staged.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        staged.rename(target)
    _sync(target.parent)
    return files


def wrong(folder: Path) -> str:
    """What is wrong with a published folder, in one clause; empty when every file is as its manifest says."""
    try:
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        if not isinstance(told, dict):
            return "its manifest cannot be read"
    except FileNotFoundError:
        return "it has no manifest: it was never finished"
    except (OSError, ValueError, KeyError, TypeError):
        return "its manifest cannot be read"
    for name, expected in told.items():
        try:
            if sha256(folder / name) != expected:
                return f"{name} is not what its hash says"
        except OSError:
            return f"{name} is missing"
    extra = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - set(told) - {MANIFEST}
    return f"{min(extra)} does not belong to it" if extra else ""


def manifest(folder: Path) -> Mapping[str, object]:
    """What its manifest says. Raises OSError, ValueError."""
    told: dict[str, object] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return told


def steps(root: Path) -> list[tuple[int, Path]]:
    """The published checkpoints under `root` with their step, the newest first. Their bytes are not looked at."""
    if not root.is_dir():
        return []
    found = [(int(m[1]), p) for p in root.iterdir() if (m := _STEP.fullmatch(p.name)) and p.is_dir()]
    return sorted(found, reverse=True)


def newest(root: Path) -> tuple[Path | None, tuple[Skipped, ...]]:
    """The newest checkpoint that is whole, and those that were passed over."""
    skipped: list[Skipped] = []
    for _, folder in steps(root):
        if not (why := wrong(folder)):
            return folder, tuple(skipped)
        skipped.append(Skipped(folder, why))
    return None, tuple(skipped)


def prune(root: Path, keep: int) -> None:
    """Remove all but the `keep` newest, and what an earlier removal left."""
    for _, folder in steps(root)[keep:]:
        gone = folder.with_name(f".{folder.name}.gone")
        folder.rename(gone)  # first out of the way: a half-removed one must not look like a checkpoint
        shutil.rmtree(gone, ignore_errors=True)
    if root.is_dir():
        for left in root.glob(".step-*"):
            shutil.rmtree(left, ignore_errors=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
