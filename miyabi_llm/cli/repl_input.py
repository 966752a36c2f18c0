"""Reading what a person types in a chat: a line, or several, with history where there is a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

Reader = Callable[[], str]  # one message or command; raises EOFError at the end, KeyboardInterrupt on Ctrl-C

PROMPT = ">>> "
MORE = "... "
QUOTES = '"""'


def unfinished(text: str) -> bool:
    r'''Whether more lines belong to the message: an open """ block, or a backslash at the end. Pure.'''
    if text.lstrip().startswith(QUOTES):
        return text.count(QUOTES) < 2
    return text.endswith("\\")


def message(text: str) -> str:
    r'''What was meant: the inside of a """ block, or the lines that backslashes join. Pure.'''
    bare = text.strip()
    if bare.startswith(QUOTES):
        inside, _, after = bare[len(QUOTES) :].partition(QUOTES)
        return (inside.strip("\n") + ("\n" + after.strip() if after.strip() else "")).rstrip()
    lines = text.split("\n")
    joined = [line.removesuffix("\\") for line in lines[:-1]] + [lines[-1]]
    return "\n".join(joined).strip()


def reader(history: Path, words: Iterable[str]) -> Reader:
    """A reader for this process's standard input: with line editing on a terminal, plain otherwise."""
    able = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return _terminal(history, tuple(words)) if able else plain


def plain() -> str:
    """Read from standard input without line editing."""
    shown = sys.stdin.isatty()
    text = ""
    while True:
        if shown:
            sys.stderr.write(MORE if text else PROMPT)
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line and not text:
            raise EOFError
        text += line.rstrip("\r\n")
        if not line or not unfinished(text):
            return text
        text += "\n"


def _terminal(history: Path, words: tuple[str, ...]) -> Reader:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if unfinished(buffer.text) and buffer.document.is_cursor_at_the_end:
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        PROMPT,
        multiline=True,
        prompt_continuation=MORE,
        history=FileHistory(str(history)) if _private(history) else InMemoryHistory(),
        key_bindings=keys,
        completer=WordCompleter(list(words), sentence=True),
        complete_while_typing=Condition(lambda: session.default_buffer.text.startswith("/")),
        enable_open_in_editor=True,
    )
    return session.prompt


def _private(path: Path) -> bool:
    """Make the history file readable by its owner only; False when it cannot be had."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o600))
        path.chmod(0o600)
    except OSError:
        return False
    return True
