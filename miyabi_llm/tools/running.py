"""Long helper programs (pip, cmake, ninja): their lines to a log and to events, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.proc import group
from miyabi_llm.types import Event, OnEvent, silent

TAIL = 25  # last lines kept for an error message
LINE = 4096  # bytes of a line that are looked at
NICE = 10
GRACE = 3.0  # seconds between asking a tree of compilers to stop and killing it


@dataclass(frozen=True, slots=True)
class Shell:
    """Where helper programs run: their log, their environment, who hears of them.

    `keep_open` are file descriptors the children hold too: a lock that must outlive us if we are killed.
    """

    log: Path
    env: Mapping[str, str]
    on_event: OnEvent = silent
    keep_open: tuple[int, ...] = ()

    def run(
        self, argv: Sequence[str], name: str, on_line: Callable[[str], None] | None = None
    ) -> tuple[int, list[str]]:
        """Run `argv` politely (low priority) to its end; its exit code and last lines.

        Every line goes to the log, and to `on_line` or as a log event. If this is interrupted, the whole process
        group dies first. Raises OSError when the program cannot be started.
        """
        tail: deque[str] = deque(maxlen=TAIL)
        hear = on_line or (lambda text: self.on_event(Event("log", name, text)))
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            out.write(f"$ {' '.join(argv)}\n".encode())
            out.flush()
            child = self._start(argv)
            try:
                with contextlib.suppress(OSError, AttributeError):
                    os.setpriority(os.PRIO_PGRP, child.pid, NICE)
                for line in _lines(child):
                    out.write(line)
                    if text := line[:LINE].decode("utf-8", "replace").rstrip():
                        tail.append(text)
                        hear(text)
                return child.wait(), list(tail)
            finally:
                _end(child)

    def _start(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(self.env),
            start_new_session=os.name == "posix",
            pass_fds=self.keep_open if os.name == "posix" else (),
        )


def _lines(child: subprocess.Popen[bytes]) -> Iterator[bytes]:
    assert child.stdout is not None
    yield from iter(lambda: child.stdout.readline(1 << 20), b"")  # type: ignore[union-attr]


def _end(child: subprocess.Popen[bytes]) -> None:
    """Leave no compiler behind, whatever happened to us."""
    if child.stdout is not None:
        child.stdout.close()
    if child.poll() is None:
        group.terminate(child)
        deadline = time.monotonic() + GRACE
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    group.kill(child)  # the group may outlive its leader
    child.wait()
