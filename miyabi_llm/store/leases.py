"""Who uses which blobs right now: a locked file per user of a model, so that its blobs are not removed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.refs import Digest
from miyabi_llm.store import locks
from miyabi_llm.store.fs import Fs, nonce, quietly_unlink, read_small, write_all
from miyabi_llm.store.layout import Layout

LIMIT = 4 << 20  # bytes


@dataclass(slots=True)
class Lease:
    """A held lease. `fd` may be inherited by a child, which then holds the lease after we are gone."""

    fs: Fs
    path: Path
    fd: int
    handed_over: bool = False

    def hand_over(self) -> int:
        """Let the lease live on in a child that inherits the returned descriptor (`pass_fds`)."""
        self.handed_over = True
        return self.fd

    def release(self) -> None:
        """Give the blobs free, unless a child has the lease now."""
        if not self.handed_over:
            quietly_unlink(self.fs, self.path)
        self.fs.close(self.fd)


def take(fs: Fs, layout: Layout, blobs: Iterable[Digest]) -> Lease:
    """Hold `blobs`. Raises OSError. The caller holds the store's shared lock meanwhile."""
    path = layout.leases / f"{os.getpid()}-{nonce()}"
    fd = fs.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    lease = Lease(fs, path, fd)
    try:
        try:
            fs.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        write_all(fs, fd, json.dumps(sorted(set(blobs))).encode(), 0)
    except OSError:
        lease.release()
        raise
    return lease


def active(fs: Fs, layout: Layout, *, trusted: bool) -> tuple[set[str], list[Path], bool]:
    """(blobs held, lease files of the dead, whether a live lease could not be read).

    Without trusted locks a lease counts as long as its process lives.
    """
    blobs: set[str] = set()
    dead: list[Path] = []
    unreadable = False
    for name in fs.names(layout.leases):
        path = layout.leases / name
        try:
            alive = locks.held(fs, path) if trusted else _lives(name)
            if not alive:
                dead.append(path)
                continue
            held = json.loads(read_small(fs, path, LIMIT))
            blobs.update(str(b) for b in held)
        except FileNotFoundError:
            continue
        except (ValueError, TypeError):
            unreadable = True
    return blobs, dead, unreadable


def _lives(name: str) -> bool:
    try:
        os.kill(int(name.partition("-")[0]), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
