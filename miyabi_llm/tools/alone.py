"""One installation at a time: the lock that all of them take, each under a name of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from miyabi_llm.types import Event, OnEvent


@contextmanager
def alone(root: Path, name: str, on_event: OnEvent) -> Iterator[tuple[int, ...]]:
    """Hold the lock `name` in the folder `root`, which is made; says once that it waits for another process.

    Yields the lock's file descriptor, for children to hold it as well.
    """
    from miyabi_llm.store.fs import Fs
    from miyabi_llm.store.locks import take

    root.mkdir(parents=True, exist_ok=True)
    told: list[bool] = []

    def waiting() -> None:
        if not told:
            told.append(True)
            on_event(Event("phase", "install", "waiting for another installation to end"))

    held = take(Fs(), root / name, exclusive=True, on_wait=waiting)
    assert held is not None  # without a timeout it waits
    try:
        yield (held.fd,)
    finally:
        held.release()
