# ruff: noqa: E501  # tables of patterns and words
"""Ways to read a text: as it is in one width, and with what is encoded in it decoded."""

from __future__ import annotations

import binascii
import html
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

OPAQUE = 1024  # characters of base64 or hexadecimal that decode to no text: something was not looked at
_DEEP = 2  # how often something decoded is decoded again

# Zero-width letters, soft hyphens, marks of direction, variation selectors: seen by nobody, in the way of every pattern.
_UNSEEN = re.compile("[\u00ad\u034f\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f\ufeff]+")
_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—―−⁃﹣", "-"))
_LONG_MARK = re.compile(r"(?<=[0-9〇零一二三四五六七八九]) ?ー ?(?=[0-9〇零一二三四五六七八九])")
_WIDE_RUN = re.compile(r"[^\x00-\x7f]+")
_KANJI = re.compile(r"[0-9〇零一二三四五六七八九](?:[- の]{0,3}[0-9〇零一二三四五六七八九]){3,}")
_TO_DIGIT = str.maketrans("〇零一二三四五六七八九の", "00123456789-")

_PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_ESCAPE = re.compile(r"\\(?:u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2})")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|[a-zA-Z]{2,8});")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{12,}+={0,2}")
_URL_SAFE = str.maketrans("-_", "+/")
_LOWER = re.compile(r"[a-z]")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}){12,}")
_NEAR = 400  # characters around something decoded that are read again with it


@dataclass(frozen=True, slots=True)
class View:
    """A reading of a text. `anchors` are (place here, place in the original), rising; between them it runs along."""

    text: str
    anchors: tuple[tuple[int, int], ...] = ()

    def place(self, at: int) -> int:
        """The place in the original of a place here."""
        if not self.anchors:
            return at
        i = bisect_right(self.anchors, (at, 1 << 60)) - 1
        if i < 0:
            return at
        here, there = self.anchors[i]
        along = there + at - here
        return min(along, self.anchors[i + 1][1]) if i + 1 < len(self.anchors) else along

    def then(self, other: View) -> View:
        """`other` is a reading of this one; the same, as a reading of this one's original."""
        if not self.anchors:
            return other
        places = sorted({h for h, _ in other.anchors} | {0})
        return View(other.text, tuple((h, self.place(other.place(h))) for h in places))


def views(text: str) -> tuple[list[View], list[str]]:
    """The readings of a text, the plain one first; and what in it decodes to nothing that could be read."""
    first = plain(text)
    found: list[View] = [first]
    unseen: list[str] = []
    known = {first.text}
    todo = [(first, 0)]
    while todo:
        view, depth = todo.pop()
        for other in _decoded(view.text, unseen) if depth < _DEEP else ():
            whole = view.then(other)
            clean = whole.then(plain(whole.text))
            if clean.text not in known:
                known.add(clean.text)
                found.append(clean)
                todo.append((clean, depth + 1))
    for view in tuple(found):
        if not view.text.isascii() and (
            kanji := _replaced(view.text, _KANJI, lambda m: m[0].translate(_TO_DIGIT), _NEAR)
        ):
            found.append(view.then(kanji))
    return found, unseen


def plain(text: str) -> View:
    """One width (NFKC), one hyphen, no letters that cannot be seen, `\\n` as a line's end."""
    if "\\" in text:  # two letters for two: places stay
        text = text.replace("\\n", " \n").replace("\\r", " \r").replace("\\t", " \t")
    view = View(text)
    if text.isascii():
        return view
    if _UNSEEN.search(text):
        view = _replaced(text, _UNSEEN, lambda m: "") or view
    if not unicodedata.is_normalized("NFKC", view.text):
        wide = _replaced(view.text, _WIDE_RUN, lambda m: unicodedata.normalize("NFKC", m[0]))
        view = view.then(wide) if wide else view
    flat = View(view.text.translate(_DASHES), view.anchors)  # one for one: places stay
    marks = _replaced(flat.text, _LONG_MARK, lambda m: "-") if "ー" in flat.text else None
    return flat.then(marks) if marks else flat


def _replaced(
    text: str, pattern: re.Pattern[str], new: Callable[[re.Match[str]], str], near: int | None = None
) -> View | None:
    """The text with each match replaced, or None when nothing changed; with `near` only what is around the changes."""
    parts: list[str] = []
    anchors: list[tuple[int, int]] = [(0, 0)]
    size = last = 0
    for m in pattern.finditer(text):
        put = new(m)
        if put == m[0]:
            continue
        start = m.start()
        if near is not None and start - last > 2 * near:  # what is between was read already
            if parts:
                parts.append(text[last : last + near] + "\n")
                size += near + 1
            last = start - near
            anchors.append((size, last))
        parts += (text[last:start], put)
        size += start - last
        anchors.append((size, start))
        size += len(put)
        anchors.append((size, m.end()))
        last = m.end()
    if not parts:
        return None
    parts.append(text[last:] if near is None else text[last : last + near])
    return View("".join(parts), tuple(anchors))


def _decoded(text: str, unseen: list[str]) -> Iterator[View]:
    if "%" in text and (view := _replaced(text, _PERCENT, _percent, _NEAR)):
        yield view
    if ("\\u" in text or "\\x" in text) and (view := _replaced(text, _ESCAPE, _escape, _NEAR)):
        yield view
    if "&" in text and (view := _replaced(text, _ENTITY, lambda m: html.unescape(m[0]), _NEAR)):
        yield view
    for start, packed in _runs(text):
        inner = _from_hex(packed) or _from_base64(packed)
        if inner is not None:
            yield View(inner, ((0, start), (len(inner), start + len(packed))))
        elif len(packed) >= OPAQUE:
            unseen.append(f"{len(packed)} letters of base64 that hold no text")


def _runs(text: str) -> Iterator[tuple[int, str]]:
    """Runs of letters that may be base64 or hexadecimal, lines of one block together; each with its start."""
    block: list[str] = []
    start = end = 0
    for m in _BASE64.finditer(text):
        joined = block and len(block[-1]) >= 40 and text[end : m.start()] in ("\n", "\r\n", " \n")
        if block and not joined:
            yield start, "".join(block)
            block = []
        packed = m[0]
        if (
            not joined
            and len(packed) < OPAQUE
            and (not _LOWER.search(packed) or packed.islower())
            and not _hexed(packed)
        ):
            continue  # a word; letters of base64 come in both cases
        if not block:
            start = m.start()
        block.append(packed)
        end = m.end()
    if block:
        yield start, "".join(block)


def _hexed(text: str) -> bool:
    return len(text) >= 24 and _HEX.fullmatch(text) is not None


def _percent(m: re.Match[str]) -> str:
    try:
        return bytes.fromhex(m[0].replace("%", "")).decode()
    except UnicodeDecodeError:
        return m[0]


def _escape(m: re.Match[str]) -> str:
    return chr(int(m[0][2:], 16))


def _from_hex(text: str) -> str | None:
    return _readable(bytes.fromhex(text)) if len(text) % 2 == 0 and _HEX.fullmatch(text) else None


def _from_base64(text: str) -> str | None:
    packed = text.translate(_URL_SAFE).rstrip("=")
    packed = packed[: len(packed) - (len(packed) % 4 == 1)]
    try:
        return _readable(binascii.a2b_base64(packed + "=" * (-len(packed) % 4)))
    except binascii.Error:
        return None


def _readable(data: bytes) -> str | None:
    """The bytes as text, when they are text: UTF-8, or UTF-16 as PowerShell writes it."""
    for encoding in ("utf-8", "utf-16-le") if b"\x00" in data[:64] else ("utf-8",):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        odd = sum(1 for c in text if c < " " and c not in "\t\r\n")
        if odd * 20 <= len(text):
            return text
    return None
