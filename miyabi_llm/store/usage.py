"""What the store uses of the disk."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from miyabi_llm.refs import Digest
from miyabi_llm.store.fs import Fs
from miyabi_llm.store.layout import Layout
from miyabi_llm.store.values import ModelUsage, Usage
from miyabi_llm.types import Artifact


def usage(fs: Fs, layout: Layout, models: Iterable[Artifact]) -> Usage:
    """Bytes per model, shared between models, unused, partial and in quarantine. Raises OSError."""
    models = list(models)
    sizes = {Digest(name): fs.lstat(layout.blobs / name).st_size for name in fs.names(layout.blobs)}
    wanted = [{f.sha256 for f in a.files} for a in models]
    users = Counter(sha for blobs in wanted for sha in blobs)
    per_model = tuple(
        ModelUsage(a.ref, sum(sizes.get(s, 0) for s in blobs), sum(sizes.get(s, 0) for s in blobs if users[s] > 1))
        for a, blobs in zip(models, wanted, strict=True)
    )
    return Usage(
        models=per_model,
        blobs=sum(sizes.values()),
        shared=sum(size for sha, size in sizes.items() if users[sha] > 1),
        unused=sum(size for sha, size in sizes.items() if not users[sha]),
        partial=on_disk(fs, layout.parts),
        quarantine=on_disk(fs, layout.quarantine),
        free=free(fs, layout.root),
    )


def on_disk(fs: Fs, folder: Path) -> int:
    """Bytes that the files of a folder take; a part with holes takes less than its length."""
    found = (fs.lstat(folder / name) for name in fs.names(folder))
    return sum(f.st_blocks * 512 for f in found if stat.S_ISREG(f.st_mode))


def free(fs: Fs, path: Path) -> int:
    """Bytes free where `path` lies or will lie."""
    while not os.path.exists(path) and path != path.parent:
        path = path.parent
    return fs.free(path)
