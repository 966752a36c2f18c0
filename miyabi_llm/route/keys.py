"""The secret of this machine's routing: bodies, sessions and findings are hashed with it before they are kept."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from contextlib import suppress
from pathlib import Path

from miyabi_llm.errors import Unsafe

SIZE = 32  # bytes


def secret(path: Path) -> bytes:
    """The secret in a file; made with mode 0600 the first time. Raises Unsafe when it is cut or open to others."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    if not path.exists():
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, os.urandom(SIZE))
            os.fsync(fd)
        finally:
            os.close(fd)
        with suppress(FileExistsError):  # another process was first: its secret holds
            os.link(made, path)
        os.unlink(made)
    return _read(path)


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        mode = os.fstat(fd)
        if not stat.S_ISREG(mode.st_mode) or mode.st_mode & 0o077 or mode.st_uid != os.geteuid():
            raise Unsafe(f"{path}: others can read it", hint=f"chmod 600 {path}")
        value = os.read(fd, SIZE + 1)
    finally:
        os.close(fd)
    if len(value) != SIZE:
        raise Unsafe(f"{path}: {len(value)} bytes, not {SIZE}", hint=f"Remove {path}: a new one is made.")
    return value


def seal(key: bytes, data: bytes, what: str) -> str:
    """HMAC-SHA-256 of `data` for one purpose, in hexadecimal."""
    return hmac.new(key, what.encode() + b"\0" + data, hashlib.sha256).hexdigest()
