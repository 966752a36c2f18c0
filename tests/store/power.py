"""File operations that remember what a power cut would leave: only what was synced."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Literal

from miyabi_llm.store import Fs

from .faulty import WRITES

Names = Literal["synced", "ahead", "mixed"]
IMAGES: tuple[Names, ...] = ("synced", "ahead", "mixed")


class PowerFs(Fs):
    """Keeps, per file, the bytes of its last sync, and per folder, the names of its last sync.

    At the `at`-th operation it writes to `images` what the disk would hold after a power cut there, and ends the
    process. A filesystem may have written more names by itself, so there are three images: `synced` has only
    synced names; `ahead` has all, and zeros for bytes that were not synced; `mixed` has all names of manifests.
    """

    def __init__(self, root: Path, images: Path, at: int) -> None:
        self.root, self.images, self.at, self.count = root, images, at, 0
        self._bytes: dict[int, bytes] = {}
        self._names: dict[Path, dict[str, int]] = {}
        self._keep: list[int] = []  # descriptors: no inode number is used twice
        self._lock = threading.RLock()
        for folder, _, files in os.walk(root):
            for name in files:
                path = Path(folder) / name
                if not path.is_symlink():
                    self._bytes[path.stat().st_ino] = path.read_bytes()
            self._names[Path(folder)] = self._listing(Path(folder))

    def strike(self) -> None:
        """Count an operation; cut the power when it is the one."""
        with self._lock:
            self.count += 1
            if self.count == self.at:
                self.cut()

    def cut(self) -> None:
        """Leave the images, and end."""
        for names in IMAGES:
            self._folder(self.root, self.images / names, names)
        os._exit(77)

    def synced(self, fd: int) -> None:
        """A sync of this file has ended."""
        size = os.fstat(fd).st_size
        with self._lock:
            self._bytes[os.fstat(fd).st_ino] = os.pread(fd, size, 0)

    def synced_names(self, path: Path) -> None:
        """A sync of this folder has ended."""
        with self._lock:
            self._names[path] = self._listing(path)

    def opened(self, fd: int) -> None:
        """Pin the inode number."""
        with self._lock:
            self._keep.append(os.dup(fd))

    def _folder(self, folder: Path, target: Path, names: Names) -> None:
        target.mkdir(parents=True, mode=0o700)
        alive = {os.fstat(fd).st_ino: fd for fd in self._keep}
        ahead = names == "ahead" or (names == "mixed" and folder.name == "models")
        listing = self._listing(folder) if ahead else self._names.get(folder, {})
        for name, inode in listing.items():
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                self._folder(path, target / name, names)
            elif path.is_symlink():
                os.symlink(os.readlink(path), target / name)
            else:
                data = self._bytes.get(inode, b"")
                if ahead:
                    size = path.stat().st_size
                    data = data[:size] + bytes(size - len(data[:size]))
                elif inode in alive:
                    data = data[: os.fstat(alive[inode]).st_size]
                (target / name).write_bytes(data)

    def _listing(self, folder: Path) -> dict[str, int]:
        return {entry.name: entry.inode() for entry in os.scandir(folder)}


def _counted(name: str):  # type: ignore[no-untyped-def]
    plain = getattr(Fs, name)

    def method(self: PowerFs, *args):  # type: ignore[no-untyped-def]
        self.strike()
        if name == "open" and args[1] & os.O_WRONLY:  # we want to read back what was synced
            args = (args[0], args[1] & ~os.O_WRONLY | os.O_RDWR, *args[2:])
        result = plain(self, *args)
        if name in ("fsync", "fdatasync"):
            self.synced(args[0])
        elif name == "fsync_dir":
            self.synced_names(args[0])
        elif name == "open" and stat.S_ISREG(os.fstat(result).st_mode):
            self.opened(result)
        return result

    return method


for _name in WRITES:
    setattr(PowerFs, _name, _counted(_name))


class ForgetsToSync(PowerFs):
    """The bug that kill -9 cannot show: files are renamed before their bytes are durable."""

    def fsync(self, fd: int) -> None:
        """No."""

    def fdatasync(self, fd: int) -> None:
        """No."""


class ForgetsTheFolder(PowerFs):
    """Names are not made durable."""

    def fsync_dir(self, path: Path) -> None:
        """No."""
