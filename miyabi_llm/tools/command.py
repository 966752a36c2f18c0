"""One command of another program, run to its end: its exit code and its words."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence

from miyabi_llm.proc import group
from miyabi_llm.tools.program import Ran

SAID = 64 << 10  # bytes of its output that are kept, the last ones


def complete(argv: Sequence[str], *, timeout: float, env: Mapping[str, str] | None = None) -> Ran:
    """Run `argv` and wait at most `timeout` seconds; stdout and stderr together, the last SAID bytes.

    Its end is what counts, not the end of its output: a daemon it leaves behind may hold that open, and lives on.
    The command itself is killed at the deadline, and when we are interrupted. Never raises OSError.
    """
    with tempfile.TemporaryFile() as out:
        try:
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                start_new_session=os.name == "posix",
            )
        except (OSError, ValueError) as e:
            return Ran(None, "", f"cannot be started: {getattr(e, 'strerror', None) or e}")
        code: int | None = None
        try:
            code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if code is None:
                group.kill(child)
                child.wait()
        out.seek(max(0, os.fstat(out.fileno()).st_size - SAID))
        text = out.read().decode("utf-8", "replace")
    if code is None:
        return Ran(None, text, f"did not end within {timeout:g} s")
    return Ran(code, text, f"died of signal {-code}" if code < 0 else None)
