"""What comes in by a pipe: the question itself, or what the question is about."""

from __future__ import annotations

import os
import stat
import sys
from typing import TextIO

from miyabi_llm.errors import BadUsage

LIMIT = 32 * 2**20  # bytes; more is too long for any model
WAIT_S = 2.0  # then we say what we are waiting for


def question(words: str, stdin: TextIO | None) -> str | None:
    """The text to ask once: `words`, piped text, or both. None: a person sits at the terminal and wants to chat.

    Raises BadUsage when there is nothing to ask and nobody to chat with.
    """
    from miyabi_llm.chat import with_context

    if stdin is not None and stdin.isatty():
        return words if words.strip() else None
    flows = stdin is not None and _flows(stdin)
    came = _read(stdin) if stdin is not None and flows else ""
    text = with_context(words, came)
    if flows and not came.strip() and words.strip():  # `git diff | …` where nothing has changed
        print("warning: standard input is empty; the prompt is asked alone", file=sys.stderr)
    if not text.strip():
        raise BadUsage("nothing to ask: no PROMPT, and standard input is empty", hint="Give a PROMPT, or --chat.")
    return text


def _flows(stdin: TextIO) -> bool:
    """Whether something may come: a pipe, a file or a socket, but not /dev/null."""
    try:
        mode = os.fstat(stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _read(stdin: TextIO) -> str:
    _say_when_waiting(stdin.fileno())
    data = stdin.buffer.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise BadUsage(f"standard input has more than {LIMIT:,} bytes: too long for any model")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        print(f"warning: standard input is not UTF-8 (byte {e.start:,}); bad bytes are replaced", file=sys.stderr)
        return data.decode("utf-8", "replace")


def _say_when_waiting(fd: int) -> None:
    if os.name != "posix":
        return
    import select

    if not select.select([fd], [], [], WAIT_S)[0]:
        print("waiting for standard input (close it with Ctrl-D, or use < /dev/null)", file=sys.stderr)
