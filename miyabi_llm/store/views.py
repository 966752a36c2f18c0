"""Folders in which a model's files have their real names, for programs that look at names."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from miyabi_llm.store.fs import Fs, explained, planted
from miyabi_llm.store.layout import Layout
from miyabi_llm.store.manifest import check_names
from miyabi_llm.types import Artifact, StoredFile


def key(artifact: Artifact) -> str:
    """The name of a model's view: one for all models with the same files under the same names."""
    lines = sorted(f"{f.sha256} {f.name}" for f in artifact.files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def make(fs: Fs, layout: Layout, artifact: Artifact) -> dict[str, Path]:
    """Make or complete the view of `artifact`; file name -> path. Raises Unsafe, MiyabiError.

    Each name appears whole by itself, so a crash leaves a view that the next call completes.
    """
    check_names(f.name for f in artifact.files)
    root = layout.views / key(artifact)
    paths = {}
    with explained(root):
        for file in artifact.files:
            folder = root
            _folder(fs, folder)
            *parents, last = file.name.split("/")
            for parent in parents:
                folder = folder / parent
                _folder(fs, folder)
            paths[file.name] = _place(fs, layout, file, folder / last)
    return paths


def drop(fs: Fs, root: Path) -> None:
    """Remove a view; its bytes stay. Raises OSError."""
    for name in fs.names(root):
        path = root / name
        if stat.S_ISDIR(fs.lstat(path).st_mode):
            drop(fs, path)
        else:
            fs.unlink(path)
    if os.path.lexists(root):
        fs.rmdir(root)


def _folder(fs: Fs, path: Path) -> None:
    try:
        fs.mkdir(path)
    except FileExistsError:
        if not stat.S_ISDIR(fs.lstat(path).st_mode):
            raise planted(path) from None


def _place(fs: Fs, layout: Layout, file: StoredFile, target: Path) -> Path:
    blob = layout.blob(file.sha256)
    for _ in range(3):
        try:
            found = fs.lstat(target)
        except FileNotFoundError:
            pass
        else:
            if _shows(found, target, blob, fs.lstat(blob)):
                return target
            fs.unlink(target)  # an older copy of the blob, replaced since
        try:
            try:
                fs.link(blob, target)
            except (FileExistsError, FileNotFoundError):
                raise
            except OSError:  # no hard links here, or too many
                fs.symlink(blob, target)
        except FileExistsError:
            continue  # another process makes the same view
        return target
    raise planted(target)


def _shows(found: os.stat_result, target: Path, blob: Path, original: os.stat_result) -> bool:
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(target) == str(blob)
    return (found.st_dev, found.st_ino) == (original.st_dev, original.st_ino)
