"""What can go wrong with the output file, explained."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from miyabi_llm.errors import DiskFull, MiyabiError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError into an error that names `path`. Raises DiskFull, MiyabiError."""
    try:
        yield
    except OSError as e:
        if e.errno in _FULL:
            hint = "What is finished is kept. Free some space, then run the same command again: it goes on."
            raise DiskFull(f"{path}: {e.strerror}", hint=hint) from e
        hint = "What is finished is kept. Check the disk and the folder's permissions, then run the same command again."
        raise MiyabiError(f"{path}: {e.strerror or e}", hint=hint) from e
