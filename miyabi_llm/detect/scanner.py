"""One text in, its hits out."""

from __future__ import annotations

from miyabi_llm.detect import secrets
from miyabi_llm.detect.values import CLEAN, Cache, Hit, Options, Result

PLAIN = Options()


def scan(text: str, options: Options = PLAIN) -> tuple[Hit, ...]:
    """The secrets and personal data in a text, by place. Linear in its length."""
    return examine(text, options).hits


def examine(text: str, options: Options = PLAIN) -> Result:
    """The hits, and what could not be read."""
    hits = [Hit(h.kind, h.start, h.end, h.confidence, mask(text[h.start : h.end])) for h in secrets.find(text)]
    return Result(tuple(sorted(hits, key=lambda h: h.start))) if hits else CLEAN


def cached(text: str, cache: Cache, options: Options = PLAIN) -> Result:
    """`examine`, or what it said the last time."""
    key = cache.key(text, b"n" if options.names else b"")
    result = cache.get(key)
    if result is None:
        result = examine(text, options)
        cache.put(key, result)
    return result


def mask(text: str) -> str:
    """The edges of a text, the rest as stars: enough to find it again, not enough to use it."""
    keep = 0 if len(text) < 6 else 2 if len(text) < 16 else 4
    return f"{text[:keep]}{'*' * min(8, max(3, len(text) - 2 * keep))}{text[len(text) - keep :] if keep else ''}"
