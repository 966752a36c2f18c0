"""What the store's questions answer: frozen values for the faces to show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.refs import Digest, ModelRef


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """Bytes that are in the store: their hash, taken from the disk, and their size in bytes."""

    sha256: Digest
    size: int


@dataclass(frozen=True, slots=True)
class FileCheck:
    """One file of a model, hashed again. `found` is the hash on disk, None when it could not be read."""

    name: str
    sha256: Digest
    size: int
    ok: bool
    found: Digest | None = None
    problem: str = ""
    moved_to: Path | None = None


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """A model's bytes: in all, and those that another model uses too."""

    ref: ModelRef
    bytes: int
    shared: int


@dataclass(frozen=True, slots=True)
class Usage:
    """The store's bytes on disk. `blobs` is the whole of blobs/, of which `unused` belongs to no model."""

    models: tuple[ModelUsage, ...]
    blobs: int
    shared: int
    unused: int
    partial: int
    quarantine: int
    free: int


@dataclass(frozen=True, slots=True)
class Removal:
    """One thing that `prune` or `rm` removes, or would: its path, its bytes, and why."""

    path: Path
    bytes: int
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune removed (or would remove, when `dry_run`), and what it kept although no model needs it."""

    removed: tuple[Removal, ...]
    kept: tuple[Removal, ...]
    dry_run: bool

    @property
    def bytes(self) -> int:
        """Bytes set free."""
        return sum(r.bytes for r in self.removed)


@dataclass(frozen=True, slots=True)
class Removed:
    """A model that is gone; `bytes` were set free at once, `kept` says why others were not."""

    ref: ModelRef
    bytes: int
    kept: str = ""
