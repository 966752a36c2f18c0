"""The form of a bundle: a plain tar file with `manifest.json`, then `blobs/sha256-HEX` in the manifest's order."""

from __future__ import annotations

from pathlib import Path

from miyabi_llm.errors import Corrupt, DiskFull
from miyabi_llm.refs import Digest
from miyabi_llm.types import Artifact, StoredFile

BLOCK = 512  # bytes: tar's unit
CHUNK = 1 << 20  # bytes copied at a time
MANIFEST = "manifest.json"
MAX_MANIFEST = 4 << 20  # bytes; a model of 1,000 files has a quarter of that
SPARE = 0.05  # of the bytes to write, left free
SPARE_LEAST = 256 << 20  # bytes
NOT_OURS = "Only files that `miyabi-llm export` wrote can be read; copy or export it again."


def distinct(artifact: Artifact) -> list[StoredFile]:
    """One file per blob, in the manifest's order. Raises Corrupt when one hash has two sizes."""
    found: dict[Digest, StoredFile] = {}
    for file in artifact.files:
        if found.setdefault(file.sha256, file).size != file.size:
            raise Corrupt(f"{artifact.ref}: {file.name} has two sizes", hint=NOT_OURS)
    return list(found.values())


def member_name(file: StoredFile) -> str:
    """What a blob is called in a bundle."""
    return f"blobs/sha256-{file.sha256}"


def padded(size: int) -> int:
    """`size` bytes in whole blocks of tar."""
    return -(-size // BLOCK) * BLOCK


def room(folder: Path, need: int, free: int) -> None:
    """Raise DiskFull before the first byte when `need` bytes and some air do not fit into `free`."""
    spare = max(int(need * SPARE), SPARE_LEAST)
    if need and need + spare > free:
        raise DiskFull(
            f"{need:,} bytes and {spare:,} to spare are needed at {folder}; {free:,} are free",
            hint="Free some space, or choose another place.",
            need=need,
            free=free,
        )
