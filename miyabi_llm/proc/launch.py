"""Start a server under a shim, and hold it: no server outlives its supervisor, however that ends."""

from __future__ import annotations

import os
import secrets
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.errors import MachineLimit
from miyabi_llm.proc import identity, logs
from miyabi_llm.proc.environ import child_environment
from miyabi_llm.types import Secret

SHIM = Path(__file__).with_name("shim.py")
ORPHAN_GRACE = 1.0  # seconds a server gets to end by itself when its supervisor is gone


@dataclass(frozen=True, slots=True)
class Exit:
    """How a server ended. `errno` is set when it could not be started at all, `lost` when its shim was killed.

    `asked` tells whether we had told it to stop. `memory_kills` counts processes the kernel killed for lack of
    memory, on the whole machine, while it ran (None where the kernel does not say).
    """

    code: int = 0
    signal: int = 0
    asked: bool = False
    errno: int = 0
    lost: bool = False
    memory_kills: int | None = None

    @property
    def out_of_memory(self) -> bool:
        """Killed with SIGKILL by somebody else, with no evidence against the kernel's memory killer."""
        return self.signal == 9 and not self.asked and self.memory_kills != 0


class Child:
    """A running server. `pid` is the server's, 0 until it runs; `log` is where it writes, from `start` on."""

    def __init__(self, shim: subprocess.Popen[bytes], nonce: str, log: Path, start: tuple[int, int]) -> None:
        self.nonce, self.log, self.pid = nonce, log, 0
        self._start = start
        self._shim = shim
        self._said = b""
        self._exit: Exit | None = None
        self._kills = memory_kills()
        self._lock = threading.Lock()

    def poll(self) -> Exit | None:
        """How it ended, or None while it runs."""
        return self.wait(0)

    def wait(self, timeout: float) -> Exit | None:
        """Wait at most `timeout` seconds for its end."""
        deadline = time.monotonic() + timeout
        while self._exit is None:
            with self._lock:
                self._listen(max(0.0, deadline - time.monotonic()))
            if time.monotonic() >= deadline:
                break
        return self._exit

    def stop(self, grace: float = 10.0) -> Exit:
        """End it and everything it started: SIGTERM, `grace` seconds, SIGKILL. Returns when all are gone."""
        self._tell(f"stop {grace:.3f}\n")
        return self._finish(grace + 6.0)

    def kill(self) -> Exit:
        """End it and everything it started at once."""
        return self.stop(0.0)

    def pids(self) -> list[int]:
        """The server and all its descendants, from the table of processes."""
        import psutil

        try:
            return [p.pid for p in psutil.Process(self._shim.pid).children(recursive=True)]
        except psutil.Error:
            return []

    def said(self) -> tuple[int, int]:
        """Changes whenever the server writes to its log."""
        return logs.size(self.log)

    def tail(self) -> str:
        """The last 8 KiB this launch wrote, as text."""
        inode, size = logs.size(self.log)
        if inode == self._start[0]:
            return logs.tail(self.log, min(logs.TAIL, size - self._start[1])) if size > self._start[1] else ""
        return logs.tail(self.log)

    def beginning(self, most: int = 1 << 18) -> str:
        """The first `most` bytes this launch wrote, as text; what the log was turned over for is gone."""
        inode, _ = logs.size(self.log)
        at = self._start[1] if inode == self._start[0] else 0
        try:
            with self.log.open("rb") as file:
                file.seek(at)
                return logs.clean(file.read(most))
        except OSError:
            return ""

    def cpu_seconds(self) -> float:
        """Processor time the server and its descendants have used so far."""
        import psutil

        total = 0.0
        for pid in self.pids():
            with suppress(psutil.Error):
                times = psutil.Process(pid).cpu_times()
                total += times.user + times.system
        return total

    def _finish(self, timeout: float) -> Exit:
        ended = self.wait(timeout)
        try:
            self._shim.wait(timeout)
        except subprocess.TimeoutExpired:
            self._shim.kill()
            self._shim.wait()
        identity.kill_marked(self.nonce)  # what a killed shim, or a system without subreapers, left behind
        with self._lock:
            for pipe in (self._shim.stdin, self._shim.stdout):
                if pipe is not None:
                    pipe.close()
            self._exit = self._exit or ended or Exit(asked=True, lost=True)
        return self._exit

    def _tell(self, line: str) -> None:
        pipe = self._shim.stdin
        try:
            if pipe is not None and not pipe.closed:
                os.write(pipe.fileno(), line.encode())
        except OSError:
            pass  # the shim is gone already; `_finish` sweeps

    def _listen(self, timeout: float) -> None:
        pipe = self._shim.stdout
        if self._exit is not None or pipe is None or pipe.closed:
            return
        if not select.select([pipe], [], [], min(timeout, 0.5))[0]:
            return
        data = os.read(pipe.fileno(), 4096)
        *lines, self._said = (self._said + data).split(b"\n")
        for line in lines:
            self._hear(line.decode("ascii").split())
        if not data and self._exit is None:
            # The shim was killed. Its server dies by the death signal, the rest by its mark.
            identity.kill_marked(self.nonce)
            self._exit = Exit(signal=9, lost=True)

    def _hear(self, words: list[str]) -> None:
        match words:
            case ["up", pid]:
                self.pid = int(pid)
            case ["failed", errno]:
                self._exit = Exit(errno=int(errno))
            case ["exit", code, signal, asked]:
                before, now = self._kills, memory_kills()
                kills = None if before is None or now is None else now - before
                self._exit = Exit(int(code), int(signal), asked == "1", memory_kills=kills)


def launch(
    argv: Sequence[str],
    env: Mapping[str, str],
    extra: Mapping[str, str | Secret],
    log: Path,
    *,
    limit: int = logs.LIMIT,
) -> Child:
    """Start `argv` with the allow-listed part of `env` and all of `extra`; its output goes to `log`.

    Returns at once; `poll` tells when it could not be started. Raises MachineLimit where there is no fork.
    """
    if os.name != "posix":
        raise MachineLimit("servers are started on Linux and macOS only", hint="On Windows, use WSL.")
    nonce = secrets.token_hex(16)
    command = [sys.executable, "-I", "-S", str(SHIM), str(log), str(limit), str(ORPHAN_GRACE), str(os.getpid()), "--"]
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    start = logs.size(log)
    try:
        shim = subprocess.Popen(
            [*command, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=fd,
            bufsize=0,
            env=child_environment(env, extra, nonce),
            start_new_session=True,  # Ctrl-C in the terminal is the supervisor's to handle
        )
    finally:
        os.close(fd)
    return Child(shim, nonce, log, start)


def memory_kills() -> int | None:
    """How many processes the kernel has killed for lack of memory since it started, where it says."""
    try:
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return None
