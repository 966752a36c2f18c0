"""Tests that measure time, or that fill the machine, have it for themselves when several processes run the tests.

Each process holds a shared lock while one of its tests runs; a test marked `alone` holds it for itself. Who waits for
that holds the door, so that nobody who comes later goes first. Two files that are there anyway are what is locked.
"""

from __future__ import annotations

import fcntl
from collections.abc import Generator
from pathlib import Path

import pytest

LOCK = Path(__file__)
DOOR = Path(__file__).with_name("conftest.py")
# What takes longest comes first, so that no process is left with it at the end.
LONG = ("store/test_faults.py", "serve/test_many.py", "store/test_real_pull.py", "store/test_durability.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of `LONG` before the others, which keep their order."""

    def rank(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((i for i, name in enumerate(LONG) if path.endswith(name)), len(LONG))

    items.sort(key=rank)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Hold the lock from the set-up of a test to the end of its clean-up; the time of waiting is not the test's."""
    kind = fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH
    with DOOR.open() as door, LOCK.open() as lock:
        fcntl.flock(door, kind)
        fcntl.flock(lock, kind)
        fcntl.flock(door, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # also for a child that a test forked and left
