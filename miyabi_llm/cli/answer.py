"""An answer on its way to the person: text to stdout as it comes, everything else to stderr."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from miyabi_llm.errors import MiyabiError

if TYPE_CHECKING:
    from miyabi_llm.chat import Budget, Session
    from miyabi_llm.client import Delta, Stats, Usage

# A model's text must not move the cursor, change the title or write the clipboard of the reader's terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `finish_reason` None: the person stopped it."""

    text: str
    reasoning: str
    finish_reason: str | None
    usage: Usage | None
    stats: Stats


@dataclass(frozen=True, slots=True)
class Streams:
    """Where an answer is shown: `out` None shows no text; `thoughts` shows the reasoning too."""

    out: TextIO | None
    err: TextIO
    thoughts: bool = True
    dim: bool = True


def receive(deltas: Iterator[Delta], streams: Streams, *, stoppable: bool = False) -> Answer:
    """Show the answer while it comes and return it.

    Ctrl-C closes the stream, so that the server stops too; with `stoppable` the part that came is returned.
    A failure carries the part in its details.
    """
    from miyabi_llm.client import Meter

    meter, shown = Meter(), _Shown(streams)
    finish: str | None = None
    usage: Usage | None = None
    try:
        with closing(deltas):  # type: ignore[type-var]  # every stream here is a generator
            for delta in deltas:
                meter.see(delta)
                finish, usage = delta.finish_reason or finish, delta.usage or usage
                shown.see(delta)
    except KeyboardInterrupt:
        shown.end()
        if not stoppable:
            raise
        finish = None
    except MiyabiError as e:
        shown.end()
        if shown.text:
            e.details["text"] = "".join(shown.text)
        raise
    shown.end()
    return Answer("".join(shown.text), "".join(shown.reasoning), finish, usage, meter.stats())


class _Shown:
    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self._status = False
        self._thinking = False
        self._open = False  # a line without its newline stands on `out`

    def see(self, delta: Delta) -> None:
        if delta.progress and self._streams.err.isatty():
            done, total = delta.progress
            self._err(f"\r\x1b[Kreading the prompt: {done:,} of {total:,} tokens")
            self._status = True
        if delta.reasoning:
            self.reasoning.append(delta.reasoning)
            if self._streams.thoughts and self._streams.err.isatty():
                self._clear()
                start = "\x1b[2m" if self._streams.dim and not self._thinking else ""
                self._thinking = True
                self._err(start + visible(delta.reasoning))
        if delta.text:
            self._clear()
            self._stop_thinking()
            self.text.append(delta.text)
            self._out(delta.text)

    def end(self) -> None:
        self._clear()
        self._stop_thinking()
        if self._open and self._streams.out is not None:
            self._streams.out.write("\n")
            self._streams.out.flush()
            self._open = False

    def _out(self, text: str) -> None:
        out = self._streams.out
        if out is not None:
            out.write(visible(text) if out.isatty() else text)
            out.flush()
            self._open = not text.endswith("\n")

    def _err(self, text: str) -> None:
        self._streams.err.write(text)
        self._streams.err.flush()

    def _clear(self) -> None:
        if self._status:
            self._err("\r\x1b[K")
            self._status = False

    def _stop_thinking(self) -> None:
        if self._thinking:
            self._err("\x1b[0m\n" if self._streams.dim else "\n")
            self._thinking = False


def visible(text: str) -> str:
    """`text` with the control characters a terminal would obey shown as a replacement mark."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def summary(stats: Stats, context: int | None) -> str:
    """One line of what an answer cost."""
    parts = []
    if stats.prompt_tokens is not None:
        cached = f" ({stats.cached_tokens:,} cached)" if stats.cached_tokens else ""
        rate = f" at {stats.prompt_per_second:.1f} tokens/s" if stats.prompt_per_second else ""
        parts.append(f"prompt {stats.prompt_tokens:,} tokens{cached}{rate}")
    if stats.ttft_s is not None:
        parts.append(f"TTFT {stats.ttft_s:.2f} s")
    if stats.completion_tokens is not None:
        rate = f" at {stats.tokens_per_second:.1f} tokens/s" if stats.tokens_per_second else ""
        parts.append(f"answer {stats.completion_tokens:,} tokens{rate}")
    parts.append(f"total {stats.total_s:.2f} s")
    used = (stats.prompt_tokens or 0) + (stats.completion_tokens or 0)
    if context and used:
        parts.append(f"context {used:,} of {context:,} ({100 * used / context:.0f}%)")
    return " | ".join(parts)


def streams(*, as_json: bool = False, color: bool = True) -> Streams:
    """The process's own streams."""
    return Streams(None if as_json else sys.stdout, sys.stderr, dim=color)


def warnings(answer: Answer, budget: Budget, session: Session) -> tuple[str, ...]:
    """What the reader must know about the answer: that it stopped early, or that the prompt was not read whole."""
    from miyabi_llm.chat import size_of, was_cut

    found = []
    if answer.finish_reason == "length":
        limit = "--max-tokens" if session.options.max_tokens else "the context"
        found.append(f"the answer stopped at the limit of {limit}: it is not finished")
    elif answer.finish_reason == "content_filter":
        found.append("the server's content filter stopped the answer")
    if cut := was_cut(budget, size_of(session.messages()), answer.usage):
        found.append(cut)
    return tuple(found)
