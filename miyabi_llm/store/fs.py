"""Every file operation of the store in one object, so that a test can fail the N-th of them."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from miyabi_llm.errors import DiskFull, MiyabiError, Unsafe

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


class Fs:
    """Thin calls into the operating system. No method follows a symbolic link in a path's last part."""

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        """A file descriptor, closed in child processes."""
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        """Write at `offset`; returns how many bytes were taken, maybe fewer than given."""
        return os.pwrite(fd, data, offset)

    def pread(self, fd: int, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`; returns how many bytes came, 0 at the end."""
        return os.preadv(fd, [buffer], offset)

    def fdatasync(self, fd: int) -> None:
        """Return when the file's bytes and length are durable."""
        getattr(os, "fdatasync", os.fsync)(fd)

    def fsync(self, fd: int) -> None:
        """Return when the file's bytes and attributes are durable."""
        if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone stops at the drive's cache
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fsync(fd)

    def fsync_dir(self, path: Path) -> None:
        """Return when the names in a directory are durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def fchmod(self, fd: int, mode: int) -> None:
        """Set the permissions of an open file."""
        os.fchmod(fd, mode)

    def rename(self, source: Path, target: Path) -> None:
        """Move within one filesystem, atomically, replacing `target`."""
        os.replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        """A second name for a file; fails when `target` exists."""
        os.link(source, target, follow_symlinks=False)

    def symlink(self, source: Path, target: Path) -> None:
        """A symbolic link named `target` that points at `source`."""
        os.symlink(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        os.unlink(path)

    def mkdir(self, path: Path) -> None:
        """A new directory for its owner alone."""
        os.mkdir(path, 0o700)

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        os.rmdir(path)

    def flock(self, fd: int, operation: int) -> None:
        """An advisory lock on an open file description; raises BlockingIOError when another holds it."""
        fcntl.flock(fd, operation)

    def touch(self, path: Path) -> None:
        """Set the modification time to now."""
        os.utime(path, follow_symlinks=False)

    def lstat(self, path: Path) -> os.stat_result:
        """What lies at `path`, links not followed."""
        return os.lstat(path)

    def fstat(self, fd: int) -> os.stat_result:
        """What an open descriptor is."""
        return os.fstat(fd)

    def names(self, path: Path) -> list[str]:
        """The names in a directory, sorted; none when there is no such directory."""
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def free(self, path: Path) -> int:
        """Bytes that this user may still write on the filesystem of `path`."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize


def nonce() -> str:
    """A name nobody else will choose."""
    return os.urandom(8).hex()


@contextmanager
def explained(path: Path, *, need: int | None = None) -> Iterator[None]:
    """Turn an OSError into an error that names `path` and, for a full disk, the `need`ed bytes."""
    try:
        yield
    except OSError as e:
        raise explain(e, path, need=need) from e


def explain(e: OSError, path: Path, *, need: int | None = None) -> MiyabiError:
    """The explained error for an OSError at `path`: DiskFull, Unsafe (a planted link) or MiyabiError."""
    details = {"path": str(path), "errno": errno.errorcode.get(e.errno or 0, "unknown")}
    if e.errno in _FULL:
        more = f"; {need:,} more bytes are needed" if need is not None else ""
        hint = "Free some space (`miyabi-llm prune` helps), then run the command again: it continues."
        return DiskFull(f"{path}: {e.strerror}{more}", hint=hint, needed=need, **details)
    if e.errno == errno.ELOOP:
        return planted(path)
    if e.errno in _DENIED:
        return MiyabiError(f"{path}: {e.strerror}", hint="The store must be writable for you.", **details)
    if e.errno == errno.EXDEV:
        hint = "The folders of the store must lie on one filesystem."
        return MiyabiError(f"{path}: {e.strerror}", hint=hint, **details)
    hint = "Check the disk, then run the command again."
    return MiyabiError(f"{path}: {e.strerror or e}", hint=hint, **details)


def planted(path: Path) -> Unsafe:
    """The error for something at `path` that the store did not put there."""
    return Unsafe(f"{path} is not a regular file of the store", hint=f"Look at it, then remove it: rm {path}")


def is_regular(fs: Fs, path: Path) -> os.stat_result | None:
    """The status of the regular file at `path`, None when nothing is there. Raises Unsafe on anything else."""
    try:
        found = fs.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise planted(path)
    return found


def open_regular(fs: Fs, path: Path, flags: int) -> int:
    """Open a regular file; Unsafe when it is a link or anything else. Raises OSError otherwise."""
    try:
        fd = fs.open(path, flags)
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.ENXIO):  # a link; a pipe that nobody reads
            raise planted(path) from e
        raise
    if not stat.S_ISREG(fs.fstat(fd).st_mode):
        fs.close(fd)
        raise planted(path)
    return fd


def write_all(fs: Fs, fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write every byte of `data` at `offset`, however short the single writes are."""
    rest = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
    while rest:
        count = fs.pwrite(fd, rest, offset)
        if count <= 0:
            raise OSError(errno.EIO, "the disk took no bytes")
        rest, offset = rest[count:], offset + count


def read_small(fs: Fs, path: Path, limit: int) -> bytes:
    """A small file, whole. Raises Unsafe on a link, ValueError over `limit` bytes, OSError otherwise."""
    fd = open_regular(fs, path, os.O_RDONLY)
    try:
        size = fs.fstat(fd).st_size
        if size > limit:
            raise ValueError(f"{size:,} bytes; {limit:,} at most")
        buffer, got = memoryview(bytearray(size)), 0
        while got < size:
            count = fs.pread(fd, buffer[got:], got)
            if count == 0:
                break
            got += count
        return bytes(buffer[:got])
    finally:
        fs.close(fd)


def write_atomic(fs: Fs, path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a reader, a crash or a power cut sees the old or the new file, whole."""
    for attempt in (1, 2, 3):
        tmp = path.with_name(f"{path.name}.{nonce()}.tmp")
        try:
            _write_new(fs, tmp, data)
            fs.rename(tmp, path)
        except FileNotFoundError:
            if attempt == 3:  # else: another writer's sweep took our file before we had locked it
                raise
            continue
        except OSError:
            quietly_unlink(fs, tmp)
            raise
        fs.fsync_dir(path.parent)
        return


def _write_new(fs: Fs, path: Path, data: bytes) -> None:
    fd = fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with suppress(OSError):  # no locks on this filesystem: `sweep` may cost us one more attempt
            fs.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # tells `sweep` that somebody is at work here
        write_all(fs, fd, data, 0)
        fs.fsync(fd)
    finally:
        fs.close(fd)


def sweep(fs: Fs, path: Path) -> None:
    """Remove what writers of `path` left who died before they were done."""
    for name in fs.names(path.parent):
        if name.startswith(f"{path.name}.") and name.endswith(".tmp"):
            tmp = path.with_name(name)
            try:
                fd = fs.open(tmp, os.O_RDONLY)
            except OSError:
                continue
            try:
                fs.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fs.unlink(tmp)
            except OSError:
                pass  # its writer lives, or was faster
            finally:
                fs.close(fd)


def quietly_unlink(fs: Fs, path: Path) -> None:
    """Remove a name if it is there; a failure here must not hide the error that led here."""
    with suppress(OSError):
        fs.unlink(path)
