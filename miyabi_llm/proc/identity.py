"""Which process is meant: a pid alone is reused, pid with start time and boot is not."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from miyabi_llm.proc.environ import NONCE

LINUX = sys.platform.startswith("linux")


@dataclass(frozen=True, slots=True)
class Identity:
    """One process for ever: `start` is the kernel's start time of `pid`, `boot` names this run of the machine."""

    pid: int
    start: int
    boot: str

    @property
    def alive(self) -> bool:
        """Whether exactly this process still runs (a zombie does not)."""
        return identify(self.pid) == self


def identify(pid: int) -> Identity | None:
    """The process that has `pid` now, or None."""
    start = _start_linux(pid) if LINUX else _start_psutil(pid)
    return None if start is None else Identity(pid, start, boot_id())


@cache
def boot_id() -> str:
    """A name for this run of the machine."""
    if LINUX:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    import psutil

    return str(round(psutil.boot_time()))


def send(who: Identity, number: int) -> bool:
    """Signal exactly this process, never another that got its pid. False when it is gone."""
    if hasattr(os, "pidfd_open"):
        try:
            fd = os.pidfd_open(who.pid)
        except OSError:
            fd = -1
        if fd >= 0:
            try:
                # The handle is of whoever has the pid now; it cannot change hands after this comparison.
                if identify(who.pid) != who:
                    return False
                signal.pidfd_send_signal(fd, number)
                return True
            except OSError:
                return False
            finally:
                os.close(fd)
    if not who.alive:
        return False
    with suppress(ProcessLookupError):
        os.kill(who.pid, number)
        return True
    return False


def wait_gone(who: Identity, timeout: float) -> bool:
    """Wait at most `timeout` seconds for the process to end; whether it did."""
    deadline = time.monotonic() + timeout
    while who.alive:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def marked(nonce: str) -> list[Identity]:
    """Every process of ours that carries the launch mark `nonce` in its environment."""
    return [who for who, env in _environments() if _has(env, f"{NONCE}={nonce}".encode())]


def kill_marked(nonce: str, *, timeout: float = 5.0) -> int:
    """Kill what is left of one launch, and wait until it is gone; how many processes there were."""
    seen: set[Identity] = set()
    deadline = time.monotonic() + timeout
    while (left := marked(nonce)) and time.monotonic() < deadline:
        for who in left:
            send(who, signal.SIGKILL)
        seen.update(left)
        time.sleep(0.02)
    return len(seen)


def _has(env: bytes, entry: bytes) -> bool:
    return entry in env and entry in env.split(b"\0")


def _environments() -> Iterator[tuple[Identity, bytes]]:
    """Identity and environment of every process whose environment we may read."""
    if not LINUX:
        yield from _environments_psutil()
        return
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            # the identity first: if the pid changes hands between the two reads, the signal will not match it
            who = identify(int(name))
            env = Path(f"/proc/{name}/environ").read_bytes()
        except OSError:
            continue
        if who is not None:
            yield who, env


def _environments_psutil() -> Iterator[tuple[Identity, bytes]]:
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            who = identify(process.pid)
            env = "\0".join(f"{k}={v}" for k, v in process.environ().items())
            if who is not None and who.pid != os.getpid():
                yield who, env.encode(errors="replace")


def _start_linux(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def _start_psutil(pid: int) -> int | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time() * 1000)
    except psutil.Error:
        return None
