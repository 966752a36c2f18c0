"""Standard output and error that take any text, and whose failure is told from every other failure."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress

CUT_OFF = 128 + 13  # what a shell calls a program that SIGPIPE ended


class OutputLost(Exception):
    """Standard output takes no more: its reader went away (`| head`), or its disk is full."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause.strerror)
        self.reader_left = isinstance(cause, BrokenPipeError)


class Output(io.TextIOWrapper):
    """Standard output; raises OutputLost where it cannot be written."""

    def write(self, text: str) -> int:
        """Write `text`."""
        try:
            return super().write(text)
        except OSError as e:
            raise OutputLost(e) from e

    def flush(self) -> None:
        """Hand on what was written."""
        try:
            super().flush()
        except OSError as e:
            raise OutputLost(e) from e


class Remarks(io.TextIOWrapper):
    """Standard error; when nobody can read it any more, the work goes on."""

    def write(self, text: str) -> int:
        """Write `text`, if it can be."""
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, if it can be."""
        with suppress(OSError):
            super().flush()


def install() -> None:
    """Make `sys.stdout` and `sys.stderr` such streams, for the rest of the process."""
    for name, kind in (("stdout", Output), ("stderr", Remarks)):
        old = getattr(sys, name)
        if old is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif type(old) is io.TextIOWrapper:
            old.flush()
            new = kind(
                old.buffer,
                encoding=old.encoding,
                errors="backslashreplace",  # a letter that the terminal's encoding lacks is no crash
                line_buffering=old.line_buffering,
                write_through=old.write_through,
            )
            setattr(sys, name, new)


def explain(lost: OutputLost) -> int:
    """Say what became of the output, if anybody can hear it; the exit code. Afterwards output goes nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # or the interpreter complains again when it flushes at its end
    os.close(null)
    if lost.reader_left:
        return CUT_OFF
    print(f"miyabi-llm: standard output: {lost}", file=sys.stderr)
    return 1
