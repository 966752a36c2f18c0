"""Where everything lies under the store's root, and whether that root can be trusted."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.errors import Corrupt, MiyabiError, Unsafe
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.store.fs import Fs, explained, planted, read_small, sweep, write_atomic

VERSION = 1
FOLDERS = ("blobs", "parts", "models", "quarantine", "leases", "views")


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one store. Only a `Digest` (64 hex digits, parsed) becomes part of a path."""

    root: Path

    @property
    def blobs(self) -> Path:
        """Verified bytes, one file per sha256."""
        return self.root / "blobs"

    @property
    def parts(self) -> Path:
        """Downloads under way: bytes, journals and locks."""
        return self.root / "parts"

    @property
    def models(self) -> Path:
        """One manifest per model, named by the sha256 of its name."""
        return self.root / "models"

    @property
    def quarantine(self) -> Path:
        """Bytes that were not what their name said."""
        return self.root / "quarantine"

    @property
    def leases(self) -> Path:
        """Who uses which blobs right now."""
        return self.root / "leases"

    @property
    def views(self) -> Path:
        """Folders with the models' real file names."""
        return self.root / "views"

    @property
    def lock(self) -> Path:
        """Shared by whoever adds, exclusive for whoever removes."""
        return self.root / "lock"

    @property
    def version(self) -> Path:
        """The number of the format on disk."""
        return self.root / "version"

    def blob(self, sha256: Digest) -> Path:
        """The path of a blob, there or not."""
        return self.blobs / sha256

    def manifest(self, ref: ModelRef) -> Path:
        """The path of a model's manifest, there or not."""
        import hashlib

        return self.models / (hashlib.sha256(str(ref).encode()).hexdigest() + ".json")


def check(fs: Fs, layout: Layout) -> bool:
    """Whether a store is here. Raises Unsafe on a root that is not ours alone, MiyabiError on a newer format."""
    try:
        found = os.stat(layout.root)  # the root itself may be reached by the user's own link
    except FileNotFoundError:
        return False
    _ours(layout.root, found)
    for name in FOLDERS:
        try:
            inner = fs.lstat(layout.root / name)
        except FileNotFoundError:
            continue
        _ours(layout.root / name, inner)
    return _version(fs, layout)


def ensure(fs: Fs, layout: Layout) -> None:
    """Make the folders that are missing, durably; the version is written last. Raises as `check` does."""
    with explained(layout.root):
        if check(fs, layout) and all((layout.root / name).is_dir() for name in FOLDERS):
            return
        layout.root.parent.mkdir(parents=True, exist_ok=True)
        for path in (layout.root, *(layout.root / name for name in FOLDERS)):
            with suppress(FileExistsError):
                fs.mkdir(path)
        check(fs, layout)
        sweep(fs, layout.version)
        write_atomic(fs, layout.version, f"{VERSION}\n".encode())
        fs.fsync_dir(layout.root.parent)


def _ours(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISDIR(found.st_mode):
        raise planted(path)
    if found.st_uid != os.geteuid():
        raise Unsafe(
            f"{path} belongs to user {found.st_uid}, not to you ({os.geteuid()})",
            hint="Set MIYABI_HOME to a directory of your own.",
        )
    if found.st_mode & stat.S_IWOTH:
        raise Unsafe(f"{path} can be written by everybody", hint=f"chmod 700 {path}")


def _version(fs: Fs, layout: Layout) -> bool:
    try:
        text = read_small(fs, layout.version, 64).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return False
    except ValueError:
        text = "too long"
    if not text:
        return False  # a crash before the first version was durable
    if not text.isdecimal():
        raise Corrupt(f"{layout.version} is not a number", hint=f"echo {VERSION} > {layout.version}")
    if int(text) > VERSION:
        raise MiyabiError(
            f"the store at {layout.root} has format {int(text)}; this program knows {VERSION}",
            hint="Upgrade miyabi-llm, or set MIYABI_HOME to another directory.",
        )
    return True
