"""Keys, tokens and passwords: shapes with a prefix of their own, and assignments to words like `password`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from miyabi_llm.detect.values import Hit

# `\b` is Unicode-aware: between kana and `AKIA` it sees no boundary. These are ASCII boundaries.
_L = r"(?<![A-Za-z0-9])"
_R = r"(?![A-Za-z0-9])"

# kind, words one of which must stand in the text (a plain search is faster than any pattern), pattern
_SHAPES: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (kind, words, re.compile(pattern))
    for kind, words, pattern in (
        ("aws-access-key", ("AKIA", "ASIA", "ABIA", "ACCA"), rf"{_L}(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{{16}}{_R}"),
        (
            "github-token",
            ("gh", "github_pat_"),
            rf"{_L}(?:gh[pousr]_[A-Za-z0-9]{{36,255}}|github_pat_\w{{22,255}}){_R}",
        ),
        ("anthropic-key", ("sk-ant-",), rf"{_L}sk-ant-[A-Za-z0-9_-]{{20,200}}"),
        ("openai-key", ("sk-",), rf"{_L}sk-(?!ant-)(?:proj-|svcacct-|admin-)?[A-Za-z0-9_-]{{20,200}}"),
        ("private-key", ("-----BEGIN",), r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"),
    )
)


def find(text: str) -> Iterator[Hit]:
    """Every secret in a text (already normalised)."""
    for kind, words, pattern in _SHAPES:
        if any(word in text for word in words):
            for m in pattern.finditer(text):
                yield Hit(kind, m.start(), m.end(), 1.0)
