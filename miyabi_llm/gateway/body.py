"""A request's JSON, parsed once, with the place of each top member: what is changed is changed in its bytes. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]  # the string scanner of the standard library
from typing import Any, NoReturn

from miyabi_llm.errors import BadUsage

_BLANK = " \t\n\r"


@dataclass(frozen=True, slots=True)
class Member:
    """The value of one member of the top object, and the characters it stands on; its key begins at `key`."""

    value: Any
    key: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body: the bytes as they came, their text, and the members of the object."""

    data: bytes
    text: str
    members: Mapping[str, Member]

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a member."""
        found = self.members.get(name)
        return default if found is None else found.value

    def plain(self) -> dict[str, Any]:
        """The object itself."""
        return {name: m.value for name, m in self.members.items()}

    def replaced(self, changes: Mapping[tuple[int, int], str], without: frozenset[str] = frozenset()) -> bytes:
        """The bytes with other text on the given characters, and `without` some members.

        Every other byte is as it came, but for the blanks between members when one is taken out.
        """
        if not without & self.members.keys():
            return _changed(self.text, 0, len(self.text), changes).encode("utf-8")
        kept = (m for name, m in self.members.items() if name not in without)
        return ("{" + ",".join(_changed(self.text, m.key, m.end, changes) for m in kept) + "}").encode("utf-8")


def _changed(text: str, start: int, end: int, changes: Mapping[tuple[int, int], str]) -> str:
    parts, at = [], start
    for (begin, stop), new in sorted(changes.items()):
        if start <= begin and stop <= end:
            parts += [text[at:begin], new]
            at = stop
    return "".join((*parts, text[at:end]))


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # one reader takes the first, another the last: nobody knows what was asked
        raise BadUsage("the body has a member twice")
    return found


def _constant(name: str) -> NoReturn:
    raise BadUsage(f"{name} is no JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)


def parse(data: bytes) -> Body:
    """The body in `data`. Raises BadUsage when it is no JSON object, or has a member twice."""
    try:
        text = data.decode("utf-8")
        members = _members(text)
    except UnicodeDecodeError as e:
        raise BadUsage(f"the body is no UTF-8: byte {e.start}") from e
    except (ValueError, RecursionError, IndexError) as e:
        raise BadUsage("the body is no JSON object") from e
    return Body(data, text, members)


def _members(text: str) -> dict[str, Member]:
    at = _skip(text, 0)
    if text[at] != "{":
        raise ValueError
    members: dict[str, Member] = {}
    at = _skip(text, at + 1)
    while text[at] != "}":
        if text[at] != '"':
            raise ValueError
        begin = at
        key, at = scanstring(text, at + 1, True)
        at = _skip(text, at)
        if text[at] != ":":
            raise ValueError
        start = _skip(text, at + 1)
        value, end = _decoder.raw_decode(text, start)
        if key in members:
            raise BadUsage(f"the body has `{key[:100]}` twice")
        members[key] = Member(value, begin, start, end)
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
            if text[at] == "}":
                raise ValueError
        elif text[at] != "}":
            raise ValueError
    if _skip(text, at + 1) != len(text):
        raise ValueError
    return members


def elements(text: str, start: int, end: int) -> list[tuple[Any, int, int]]:
    """The elements of the array on these characters, each with its place. Raises ValueError when it is none."""
    at = _skip(text, start)
    if text[at] != "[":
        raise ValueError("no array")
    found: list[tuple[Any, int, int]] = []
    at = _skip(text, at + 1)
    while at < end and text[at] != "]":
        value, stop = _decoder.raw_decode(text, at)
        found.append((value, at, stop))
        at = _skip(text, stop)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANK:
        at += 1
    return at
