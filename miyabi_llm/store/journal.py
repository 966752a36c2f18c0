"""What of a part is surely on disk: a small file beside it, right or ignored after any crash."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miyabi_llm.store.fs import Fs, explained, open_regular, read_small, write_all

LIMIT = 4 << 20  # bytes; far more than any download's ranges need


@dataclass(frozen=True, slots=True)
class Journal:
    """The state of a download: whose bytes they are (`validator`, `size`) and which ranges are durable."""

    validator: str | None
    size: int | None
    done: tuple[tuple[int, int], ...]


def load(fs: Fs, path: Path) -> Journal | None:
    """The journal at `path`; None when there is none or it is not whole. Raises Unsafe on a planted link."""
    try:
        document = json.loads(read_small(fs, path, LIMIT))
        body = document["body"]
        if document["sum"] != _sum(body):
            return None
        done = tuple((int(a), int(b)) for a, b in body["done"])
        return Journal(body["validator"], body["size"], done)
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None


def save(fs: Fs, path: Path, journal: Journal) -> None:
    """Replace the journal, durably. The caller has made its ranges durable before, and holds the part's lock.

    Raises DiskFull, Unsafe on a planted link, MiyabiError.
    """
    body = {"validator": journal.validator, "size": journal.size, "done": [list(r) for r in journal.done]}
    data = json.dumps({"sum": _sum(body), "body": body}).encode()
    tmp = path.with_name(path.name + ".tmp")
    with explained(tmp, need=len(data)):
        fd = open_regular(fs, tmp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(fs, fd, data, 0)
            fs.fsync(fd)
        finally:
            fs.close(fd)
        fs.rename(tmp, path)
        fs.fsync_dir(path.parent)


def _sum(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
