"""One text in, its hits out."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator

from miyabi_llm.detect import names, numbers, personal, secrets
from miyabi_llm.detect.normal import View, views
from miyabi_llm.detect.values import CLEAN, Cache, Hit, Options, Result

PLAIN = Options()
SHORT = 4  # characters below which nothing can be found without a label
_WORD = re.compile(r"[^\s\"'`<>|*?(){}\[\],;=:「」『』（）、。]{3,512}")


class LateError(Exception):
    """The time that was given for a scan is over."""


def scan(text: str, options: Options = PLAIN) -> tuple[Hit, ...]:
    """The secrets and personal data in a text, by place. Time grows linearly with its length."""
    return examine(text, options).hits


def examine(text: str, options: Options = PLAIN) -> Result:
    """The hits, what could not be read, and the paths. Raises LateError after the options' deadline."""
    if len(text) < SHORT:
        return CLEAN
    readings, unseen = views(text)
    found: dict[tuple[str, int], Hit] = {}
    for view in readings:
        for hit in _find(view, options):
            words = view.text[hit.start : hit.end]
            if options.allow and options.allow.fullmatch(words):
                continue
            start = view.place(hit.start)
            mark = hashlib.sha256(f"{hit.kind}\0{words}".encode("utf-8", "surrogatepass")).digest()
            kept = Hit(hit.kind, start, max(start, view.place(hit.end)), hit.confidence, mask(words), mark)
            found.setdefault((hit.kind, start), kept)
    paths = tuple(_paths(readings, options.paths)) if options.paths else ()
    if not found and not unseen and not paths:
        return CLEAN
    return Result(tuple(sorted(found.values(), key=lambda h: (h.start, h.kind))), tuple(unseen), paths)


def _find(view: View, options: Options) -> Iterator[Hit]:
    for part in (secrets.find, numbers.find, personal.find):
        if options.deadline is not None and time.thread_time() > options.deadline:
            raise LateError
        yield from part(view.text)
    yield from names.find(view.text, options.names)


def _paths(readings: list[View], wanted: re.Pattern[str]) -> Iterator[str]:
    seen: set[str] = set()
    for view in readings:
        for word in _WORD.findall(view.text):
            if ("/" in word or "\\" in word or "." in word) and word not in seen:
                seen.add(word)
                path = word.replace("\\", "/").rstrip(".")
                if wanted.fullmatch(path) or wanted.fullmatch(path.rsplit("/", 1)[-1]):
                    yield path


def cached(text: str, cache: Cache, options: Options = PLAIN) -> Result:
    """`examine`, or what it said the last time."""
    if len(text) < SHORT:
        return CLEAN
    key = cache.key(text, options.salt)
    result = cache.get(key)
    if result is None:
        result = examine(text, options)
        cache.put(key, result)
    return result


def mask(text: str) -> str:
    """The edges of a text, the rest as stars: enough to find it again, not enough to use it."""
    keep = 0 if len(text) < 6 else 2 if len(text) < 16 else 4
    return f"{text[:keep]}{'*' * min(8, max(3, len(text) - 2 * keep))}{text[len(text) - keep :] if keep else ''}"
