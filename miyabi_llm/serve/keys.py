"""Keys of servers: made, read from a file, and demanded before a server is opened to others."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from miyabi_llm.errors import BadUsage, Unsafe
from miyabi_llm.proc.ports import is_loopback
from miyabi_llm.types import Secret


def new_key() -> Secret:
    """A fresh random key (256 bits)."""
    return Secret(secrets.token_urlsafe(32))


def read_key(path: Path) -> Secret:
    """The key in `path`: its one line, without surrounding blanks.

    Raises BadUsage when the file is missing, empty or holds more than one line, Unsafe when others could read it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(file.fileno())
            data = file.read(4097) if stat.S_ISREG(found.st_mode) else b""
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror}", hint="Give a file that holds the key with --api-key-file.") from None
    if found.st_mode & 0o077 or found.st_uid not in (os.getuid(), 0):
        raise Unsafe(f"{path} can be read by others", hint=f"Run `chmod 600 {path}`.")
    try:
        text = data.decode("ascii").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or len(data) > 4096 or any(c.isspace() or c == "," or not c.isprintable() for c in text):
        raise BadUsage(f"{path} does not hold one key", hint="One line of printable ASCII, no blanks or commas.")
    return Secret(text)


def check_exposure(host: str, key: Secret | None) -> None:
    """Raise BadUsage when a server on `host` would be open to other machines without a key."""
    if not is_loopback(host) and not key:
        raise BadUsage(
            f"a server on {host} can be reached from other machines: it needs a key",
            hint="Give one with --api-key-file FILE, or leave out --host.",
        )
