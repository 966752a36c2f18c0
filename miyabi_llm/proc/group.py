"""Signals for a helper program and all it started: the process group that it leads."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess


def terminate(child: subprocess.Popen[bytes]) -> None:
    """Ask the group of `child`, which was started in a session of its own, to end; without groups, the child alone."""
    if os.name == "posix":
        _send(child.pid, signal.SIGTERM)
    elif child.poll() is None:
        child.terminate()


def kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the group of `child`, which may outlive its leader; without groups, the child alone. Nobody there: fine."""
    if os.name == "posix":
        _send(child.pid, signal.SIGKILL)
    elif child.poll() is None:
        child.kill()


def _send(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all of them have ended
        os.killpg(group, number)
