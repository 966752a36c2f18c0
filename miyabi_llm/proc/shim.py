"""The process between us and a server: it keeps the server's log, and kills the server's whole tree when we die.

Run as a script, `python -I -S shim.py LOG LIMIT GRACE PARENT -- ARGV...`: one thread, standard library only, few
imports, so that it starts in the time of an empty Python. Its stdin is the control pipe (`stop SECONDS`, `kill`; end
of file means that the supervisor is gone), its stdout the status pipe (`up PID`, `failed ERRNO`,
`exit CODE SIGNAL ASKED`).

It does not ask for a parent-death signal itself: that fires when the *thread* that forked ends, and a supervisor may
well start servers from a thread. The pipe, which the kernel closes however the supervisor dies, needs no such care;
a look at the parent's pid covers a pipe that leaked into another process. The server does get a death signal: it is
forked here, where there is one thread only.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

LINUX = sys.platform.startswith("linux")
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
CHUNK = 1 << 16  # bytes read from the server at a time: the size of a pipe
IDLE = 0.5  # seconds between looks at the parent's pid
GIVE_UP = 5.0  # seconds of SIGKILL after which what is left cannot be killed (uninterruptible sleep)


class Log:
    """Two files, the newer one at `path`, each at most `limit` bytes. A full disk loses text, nothing else."""

    def __init__(self, path: str, limit: int) -> None:
        self.path, self.limit, self.fd, self.size = path, limit, -1, 0
        self._open()

    def _open(self) -> None:
        try:
            self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            self.size = os.fstat(self.fd).st_size
        except OSError:
            self.fd = -1

    def write(self, data: bytes) -> None:
        """Append, turning the files over first when the newer one is full."""
        if self.size + len(data) > self.limit and self.size:
            if self.fd >= 0:
                os.close(self.fd)
            with suppress(OSError):
                os.replace(self.path, self.path + ".1")
            self.size = 0
            self._open()
        self.size += len(data)
        with suppress(OSError):
            if self.fd >= 0:
                os.write(self.fd, data)


class Shim:
    """The server's parent, and the adopting parent of everything that the server leaves behind."""

    def __init__(self, log: Log, grace: float, parent: int, argv: list[str]) -> None:
        self.log, self.grace, self.parent, self.argv = log, grace, parent, argv
        self.deadline: float | None = None  # when asked to stop: the moment of SIGKILL
        self.asked = False
        self.signalled: set[int] = set()
        self.child = 0
        self.pipe = -1
        self.prctl = Prctl()

    def run(self) -> None:
        """Start the server and stay until nothing of it is left."""
        self.prctl(PR_SET_CHILD_SUBREAPER, 1)
        wake, wake_end = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(wake_end, False)
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in HANDLED:
            signal.signal(number, lambda *_: self._stop(self.grace))
        if not self._start():
            return
        fds = [0, self.pipe, wake]
        while not self._over():
            pause = 0.02 if self.deadline is not None else IDLE
            ready = select.select(fds, [], [], pause)[0]
            if wake in ready:
                _drain(wake)
            if 0 in ready and not self._obey():
                fds.remove(0)
            if self.pipe in ready and not self._pump():
                fds.remove(self.pipe)
            if os.getppid() != self.parent:
                self._stop(self.grace)
        os.set_blocking(self.pipe, False)
        while self._pump():
            pass

    def _start(self) -> bool:
        self.pipe, write_end = os.pipe()
        error, error_end = os.pipe()
        me = os.getpid()
        self.child = os.fork()
        if self.child == 0:
            self._become(me, write_end, error_end)
        os.close(write_end)
        os.close(error_end)
        failure = os.read(error, 16)  # empty as soon as exec closed it
        os.close(error)
        if failure:
            os.waitpid(self.child, 0)
            _say(f"failed {failure.decode()}")
            return False
        _say(f"up {self.child}")
        return True

    def _become(self, shim: int, write_end: int, error_end: int) -> None:
        try:
            signal.set_wakeup_fd(-1)
            for number in (*HANDLED, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            os.setpgid(0, 0)
            self.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != shim:  # it died before the line above
                os._exit(127)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(write_end, 1)
            os.dup2(write_end, 2)
            os.execvp(self.argv[0], self.argv)
        except OSError as e:
            os.write(error_end, str(e.errno or 0).encode())
        finally:
            os._exit(127)

    def _stop(self, grace: float) -> None:
        due = time.monotonic() + grace
        self.deadline = due if self.deadline is None else min(due, self.deadline)
        self.asked = self.asked or self.child != 0

    def _obey(self) -> bool:
        """One message of the supervisor; False when there will be no more."""
        said = os.read(0, 4096)
        if not said:
            self._stop(self.grace)
            return False
        for line in said.decode("ascii", "replace").split("\n"):
            word, _, value = line.partition(" ")
            if word == "stop":
                self._stop(float(value))
            elif word == "kill":
                self._stop(0.0)
        return True

    def _pump(self) -> bool:
        try:
            data = os.read(self.pipe, min(CHUNK, self.log.limit))
        except OSError:
            return False
        if data:
            self.log.write(data)
        return bool(data)

    def _over(self) -> bool:
        """Reap, and when it is time to stop, signal what is left. True when nothing is."""
        self._reap()
        if self.deadline is None:
            return False
        left = self._descendants()
        now = time.monotonic()
        if not left or now > self.deadline + GIVE_UP:
            self._reap()  # one that ended since the line above is no longer listed, and its code is not told yet
            return True
        for pid in left:
            if now >= self.deadline:
                _signal(pid, signal.SIGKILL)
            elif pid not in self.signalled:
                self.signalled.add(pid)
                _signal(pid, signal.SIGTERM)
        return False

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.child:
                number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
                code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
                _say(f"exit {code} {number} {int(self.asked)}")
                self.child = 0
                self._stop(min(self.grace, 1.0))  # for what it leaves behind

    def _descendants(self) -> list[int]:
        table = _processes_linux() if LINUX else _processes_ps()
        found, frontier = set(), {os.getpid()}
        if not LINUX and self.child:  # no subreaper there: at least the server's process group
            found |= {pid for pid, _, group in table if group == self.child}
            frontier |= found
        while frontier:
            frontier = {pid for pid, parent, _ in table if parent in frontier} - found
            found |= frontier
        return sorted(found - {os.getpid()})


def _processes_linux() -> list[tuple[int, int, int]]:
    """(pid, parent, group) of every process that is not a zombie."""
    table = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as f:
                    state, parent, group = f.read().rpartition(b")")[2].split()[:3]
            except (OSError, ValueError):
                continue
            if state not in (b"Z", b"X"):
                table.append((int(name), int(parent), int(group)))
    return table


def _processes_ps() -> list[tuple[int, int, int]]:
    with os.popen("ps -axo pid=,ppid=,pgid=,stat=") as f:
        rows = [line.split() for line in f]
    return [(int(r[0]), int(r[1]), int(r[2])) for r in rows if len(r) == 4 and not r[3].startswith("Z")]


class Prctl:
    """prctl(2); does nothing where there is none."""

    def __init__(self) -> None:
        self._call = None
        if LINUX:
            import ctypes

            self._call = ctypes.CDLL(None).prctl

    def __call__(self, option: int, value: int) -> None:
        if self._call is not None:
            self._call(option, value, 0, 0, 0)


def _signal(pid: int, number: int) -> None:
    with suppress(OSError):
        os.kill(pid, number)


def _drain(fd: int) -> None:
    with suppress(OSError):
        os.read(fd, 4096)


def _say(line: str) -> None:
    with suppress(OSError):  # nobody listens any more? The control pipe will say so
        os.write(1, line.encode() + b"\n")


if __name__ == "__main__":
    Shim(Log(sys.argv[1], int(sys.argv[2])), float(sys.argv[3]), int(sys.argv[4]), sys.argv[6:]).run()
