"""Where a quantization works: names that nobody else uses, and that the next run removes when this one is killed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.store import Fs, Store
from miyabi_llm.store.fs import nonce
from miyabi_llm.store.locks import take

LOCK, LIST = "lock", "scratch"


@dataclass(frozen=True, slots=True)
class Work:
    """A folder of this run, on the cache's filesystem, and scratch names on the store's."""

    folder: Path
    store: Store

    def target(self) -> Path:
        """A new name in the store for a file on its way; noted down first, so that a killed run leaves no bytes."""
        path = self.store.scratch()
        with (self.folder / LIST).open("a", encoding="utf-8") as f:
            f.write(f"{path.name}\n")
        return path


@contextmanager
def working(store: Store, cache: Path) -> Iterator[Work]:
    """A place to work in; what dead runs left is removed first, and what this one leaves at its end.

    The store's shared lock is held meanwhile, as a pull does: no removal takes the scratch files. Raises MiyabiError.
    """
    root = cache / "quantize" / "work"
    root.mkdir(parents=True, exist_ok=True)
    fs = Fs()
    with store.using():
        gate = take(fs, root / ".lock", exclusive=True)
        assert gate is not None  # without a timeout it waits
        try:
            sweep(store, root)
            folder = root / nonce()
            folder.mkdir(mode=0o700)
            mine = take(fs, folder / LOCK, exclusive=True)
            assert mine is not None
        finally:
            gate.release()
        try:
            yield Work(folder, store)
        finally:
            _clear(store, folder)
            mine.release()


def sweep(store: Store, root: Path) -> list[Path]:
    """Remove what runs left that nobody holds any more; their folders. The caller keeps new runs from starting."""
    gone = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        lock = take(Fs(), folder / LOCK, exclusive=True, timeout=0)
        if lock is not None:
            _clear(store, folder)
            lock.release()
            gone.append(folder)
    return gone


def _clear(store: Store, folder: Path) -> None:
    with suppress(OSError):
        for name in (folder / LIST).read_text(encoding="utf-8").split():
            if "/" not in name and name.endswith(".part"):
                for path in store.layout.parts.glob(f"{name}*"):  # a program adds to it the number of a shard
                    path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
