"""Advisory locks that save work; nothing here is needed for the bytes to be right."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.store.fs import Fs, open_regular, quietly_unlink

OnWait = Callable[[], None]
_REMOTE = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "9p", "afs", "orangefs",
}  # fmt: skip
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@dataclass(slots=True)
class Lock:
    """A held lock. `trusted` says whether a second holder was seen to be kept out on this filesystem."""

    fs: Fs
    path: Path
    fd: int
    trusted: bool

    def release(self, *, remove: bool = False) -> None:
        """Let go; with `remove` the lock's file goes first, while it is still ours."""
        if self.fd >= 0:
            if remove:
                quietly_unlink(self.fs, self.path)
            self.fs.close(self.fd)
            self.fd = -1


def take(
    fs: Fs, path: Path, *, exclusive: bool, on_wait: OnWait | None = None, timeout: float | None = None
) -> Lock | None:
    """Take the lock at `path`, waiting in short steps so that Ctrl-C works; None after `timeout` seconds.

    `on_wait` is called in each step and may raise. Raises Unsafe on a planted link, OSError otherwise.
    """
    start, pause = time.monotonic(), 0.01
    while True:
        fd = open_regular(fs, path, os.O_RDWR | os.O_CREAT)
        keep = False
        try:
            locked = _try(fs, fd, exclusive=exclusive)
            if locked is None or (locked and _is_at(fs, fd, path)):
                trusted = locked is not None and _excludes(fs, path, exclusive=exclusive)
                keep = True
                return Lock(fs, path, fd, trusted)
        finally:
            if not keep:
                fs.close(fd)
        if locked:
            continue  # its file was removed by the one before us: take the new one
        if timeout is not None and time.monotonic() - start >= timeout:
            return None
        if on_wait is not None:
            on_wait()
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)


def held(fs: Fs, path: Path) -> bool:
    """Whether somebody holds the lock at `path`. Raises OSError, Unsafe."""
    fd = open_regular(fs, path, os.O_RDWR)
    try:
        return _try(fs, fd, exclusive=True) is False
    finally:
        fs.close(fd)


def _try(fs: Fs, fd: int, *, exclusive: bool) -> bool | None:
    """True when locked, False when another holds it, None when this filesystem knows no locks."""
    try:
        fs.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as e:
        if e.errno in _NO_LOCKS:
            return None
        raise
    return True


def _is_at(fs: Fs, fd: int, path: Path) -> bool:
    """Whether `path` still names the file that is open as `fd`."""
    try:
        there, here = fs.lstat(path), fs.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _excludes(fs: Fs, path: Path, *, exclusive: bool) -> bool:
    """The self-test: while we hold the lock, a second open file must not get it. Shared locks are not tested.

    A filesystem that other machines write to fails it: its locks may be known on this machine only.
    """
    if not exclusive:
        return True
    if is_remote(fs.lstat(path).st_dev):
        return False
    fd = open_regular(fs, path, os.O_RDWR)
    try:
        return _try(fs, fd, exclusive=True) is False
    finally:
        fs.close(fd)


def is_remote(device: int, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether the filesystem with this device number is one that other machines may write to."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    for line in lines:  # "36 35 98:0 /root /mnt rw,noatime shared:1 - ext4 /dev/sda1 rw"
        left, _, right = line.partition(" - ")
        if left.split(" ")[2:3] == [wanted]:
            kind = right.split(" ")[0]
            return kind in _REMOTE or kind.startswith("fuse.")
    return False
