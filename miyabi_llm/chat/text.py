"""Text on its way into a prompt: piped, read from a file, or typed."""

from __future__ import annotations

import re
from pathlib import Path

from miyabi_llm.errors import BadUsage


def read_text(path: Path, limit: int = 32 * 2**20) -> str:
    """A text file for a prompt, `limit` bytes at most. Raises BadUsage when it is missing, big or not UTF-8."""
    try:
        with path.open("rb") as f:
            data = f.read(limit + 1)
        if len(data) > limit:
            raise BadUsage(f"{path}: more than {limit:,} bytes: too long for any model")
        return data.decode("utf-8")
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise BadUsage(f"{path}: not UTF-8 text (byte {e.start:,})") from e


def with_context(prompt: str, context: str) -> str:
    """A prompt followed by piped text in a fence longer than any fence inside it."""
    if not prompt.strip():
        return context
    if not context.strip():
        return prompt
    longest = max((len(run) for run in re.findall(r"`{3,}", context)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{prompt}\n\n{fence}\n{context.rstrip()}\n{fence}"


def clean(text: str) -> str:
    """`text` without the lone surrogates that undecodable bytes on a command line leave behind."""
    if not any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
