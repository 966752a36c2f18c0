"""Change settings inside JSON text, with or without comments, and leave every other character as it is. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from json.decoder import JSONDecodeError
from typing import Any

from miyabi_llm.connect.values import Keys

_BLANK = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_WORD = re.compile(r"[-+.\w]+")
_DEPTH = 100


@dataclass(slots=True)
class _Node:
    """One value and where it stands: text[start:end]. For an object, `members` and where each begins (its key)."""

    start: int
    end: int
    value: Any
    members: dict[str, _Node] | None = None
    begins: dict[str, int] = field(default_factory=dict)
    last: int = 0  # the end of an object's last member; its start + 1 when it is empty
    comma: bool = False  # whether a comma follows the last member


def edit(text: str, values: dict[Keys, Any], unset: tuple[Keys, ...] = ()) -> str:
    """`text` with `values` set and `unset` taken out; equal values are left as they are written.

    Raises ValueError, with line and column, when `text` is no JSON object, or a key leads through something else.
    """
    if not text.strip("\ufeff \t\r\n"):
        text = "{}\n"
    for keys in unset:
        text = _remove(text, keys)
    for keys, value in values.items():
        text = _set(text, keys, value)
    return text


def has(text: str, keys: Keys) -> bool:
    """Whether the setting stands in `text`. Raises ValueError."""
    node: _Node | None = _root(text)
    for key in keys:
        node = (node.members or {}).get(key) if node is not None else None
    return node is not None


def _set(text: str, keys: Keys, value: Any) -> str:
    node = _root(text)
    for depth, key in enumerate(keys):
        if node.members is None:
            raise ValueError(f"{'.'.join(keys[:depth])} is not an object")
        if key not in node.members:
            for missing in reversed(keys[depth + 1 :]):
                value = {missing: value}
            return _insert(text, node, key, value)
        node = node.members[key]
    if json.dumps(node.value, sort_keys=True) == json.dumps(value, sort_keys=True):
        return text
    return text[: node.start] + _dump(value, _margin(text, node.start), _unit(text)) + text[node.end :]


def _insert(text: str, node: _Node, key: str, value: Any) -> str:
    """A new last member of `node`, laid out like its neighbours."""
    close = node.end - 1
    inner = text[node.start + 1 : close]
    comma = "," if node.members and not node.comma else ""
    name = json.dumps(key, ensure_ascii=False)
    if inner.strip() and "\n" not in inner:  # an object on one line stays on one line
        body = f" {name}: {json.dumps(value, ensure_ascii=False)}"
        return text[: node.last] + comma + text[node.last : close].rstrip() + body + text[close:]
    margin, unit = _margin(text, node.start), _unit(text)
    if node.members:
        margin = _margin(text, min(node.begins.values()))
        outer = _margin(text, node.start)
    else:
        margin, outer = margin + unit, margin
    kept = text[node.last : close].rstrip()
    body = f"\n{margin}{name}: {_dump(value, margin, unit)}\n{outer}"
    return text[: node.last] + comma + kept + body + text[close:]


def _remove(text: str, keys: Keys) -> str:
    node = _root(text) if text.strip("\ufeff \t\r\n") else None
    for key in keys[:-1]:
        node = (node.members or {}).get(key) if node is not None else None
    member = (node.members or {}).get(keys[-1]) if node is not None else None
    if node is None or member is None:
        return text
    begin, end = node.begins[keys[-1]], member.end
    if node.last != member.end or node.comma:  # its own comma goes with it
        end = text.index(",", _BLANK.match(text, end).end()) + 1  # type: ignore[union-attr]
    else:  # the last one: the comma before it goes, if there is one
        before = [m.end for m in (node.members or {}).values() if m.end < begin]
        if before:
            at = text.index(",", _BLANK.match(text, max(before)).end())  # type: ignore[union-attr]
            text = text[:at] + text[at + 1 :]
            begin, end = begin - 1, end - 1
    line = text.rfind("\n", 0, begin)
    if line >= 0 and not text[line:begin].strip():
        begin = line  # the line was its alone
    return text[:begin] + text[end:]


def _dump(value: Any, margin: str, unit: str) -> str:
    return json.dumps(value, ensure_ascii=False, indent=unit).replace("\n", "\n" + margin)


def _margin(text: str, at: int) -> str:
    """The blanks at the head of the line that `at` is on."""
    line = text.rfind("\n", 0, at) + 1
    return text[line : line + len(text[line:at]) - len(text[line:at].lstrip(" \t"))]


def _unit(text: str) -> str:
    found = re.search(r"^\ufeff?\s*\{[^\n]*\n([ \t]+)\S", text)
    return found[1] if found else "  "


def _root(text: str) -> _Node:
    start = 1 if text.startswith("\ufeff") else 0
    node = _read(text, _skip(text, start), 0)
    if (end := _skip(text, node.end)) != len(text):
        raise _wrong(text, end, "something follows the end")
    if node.members is None:
        raise _wrong(text, node.start, "not an object")
    return node


def _read(text: str, at: int, depth: int) -> _Node:
    if depth > _DEPTH:
        raise _wrong(text, at, "nested too deeply")
    first = text[at : at + 1]
    if first == "{":
        return _object(text, at, depth)
    if first == "[":
        return _array(text, at, depth)
    if first == '"':
        value, end = _string(text, at)
        return _Node(at, end, value)
    word = _WORD.match(text, at)
    try:
        return _Node(at, at + len(word[0]), json.loads(word[0])) if word else _fail(text, at)
    except JSONDecodeError:
        raise _wrong(text, at, "not a JSON value") from None


def _object(text: str, at: int, depth: int) -> _Node:
    node = _Node(at, at, {}, {}, last=at + 1)

    def member(place: int) -> int:
        key, end = _string(text, place)
        colon = _skip(text, end)
        if text[colon : colon + 1] != ":":
            raise _wrong(text, colon, "':' expected")
        value = _read(text, _skip(text, colon + 1), depth + 1)
        assert node.members is not None
        node.members[key], node.begins[key], node.value[key] = value, place, value.value
        node.last = value.end
        return value.end

    node.end, node.comma, after = _items(text, at + 1, "}", member)
    node.last = after if node.comma else node.last
    return node


def _array(text: str, at: int, depth: int) -> _Node:
    node = _Node(at, at, [])

    def item(place: int) -> int:
        value = _read(text, place, depth + 1)
        node.value.append(value.value)
        return value.end

    node.end, _, _ = _items(text, at + 1, "]", item)
    return node


def _items(text: str, at: int, close: str, read: Callable[[int], int]) -> tuple[int, bool, int]:
    """Read items up to `close`: its end, whether a comma stands before it, and that comma's end."""
    comma, after = False, at
    while True:
        at = _skip(text, at)
        if text[at : at + 1] == close:
            return at + 1, comma, after
        at = read(at)
        after, comma = at, False
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = after = at + 1
            comma = True
        elif text[at : at + 1] != close:
            raise _wrong(text, at, f"',' or '{close}' expected")


def _string(text: str, at: int) -> tuple[str, int]:
    if text[at : at + 1] != '"':
        raise _wrong(text, at, "a string expected")
    try:
        value, end = json.JSONDecoder().raw_decode(text, at)
    except JSONDecodeError as e:
        raise _wrong(text, e.pos, e.msg) from None
    return str(value), end


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _fail(text: str, at: int) -> _Node:
    raise _wrong(text, at, "a value expected")


def _wrong(text: str, at: int, what: str) -> ValueError:
    line = text.count("\n", 0, at) + 1
    return ValueError(f"line {line} column {at - text.rfind(chr(10), 0, at)}: {what}")
