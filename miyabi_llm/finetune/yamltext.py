"""YAML as a recipe may hold it: plain values, where each of them stands, and nothing that could do harm.

The scalars are those of YAML 1.2's core schema, so `1e-4` is a number and `no` is a word. Tags, anchors, aliases, merge
keys and a key given twice are refused: a recipe needs none of them, and each has been a way to hide or to break
something.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from miyabi_llm.errors import BadUsage

MOST_BYTES = 256 << 10
MOST_DEPTH = 16
MOST_DIGITS = 40

Path = tuple[str | int, ...]

_NULL = re.compile(r"null|Null|NULL|~|", re.ASCII)
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+", re.ASCII)
_HEX = re.compile(r"0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_HINT = "A recipe holds plain keys and values only; `miyabi-llm finetune schema` prints what it may hold."


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: `where` names the file or the option, `line` and `column` count from 1."""

    where: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.where}:{self.line}:{self.column}" if self.line else self.where


@dataclass(frozen=True, slots=True)
class Document:
    """A value, and the place of each key and item in it."""

    value: Any
    places: dict[Path, Place] = field(default_factory=dict)


def read(text: str, where: str) -> Document:
    """The one value in `text`. Raises BadUsage that names the line and the column."""
    if len(text) > MOST_BYTES:
        raise BadUsage(f"{where}: {len(text):,} characters; a recipe has {MOST_BYTES:,} at most")
    try:
        _refuse(text, where)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        place = Place(where, mark.line + 1, mark.column + 1) if mark else Place(where)
        raise BadUsage(f"{place}: not YAML: {e.problem or e.context}", hint=_HINT) from e
    except yaml.reader.ReaderError as e:
        line = text.count("\n", 0, e.position) + 1
        code = e.character if isinstance(e.character, int) else ord(e.character)
        raise BadUsage(f"{where}:{line}: the character U+{code:04X} is not allowed in YAML", hint=_HINT) from e
    except (
        yaml.YAMLError,
        ValueError,
        OverflowError,
    ) as e:  # chr() of "\Uffffffff" fails
        raise BadUsage(f"{where}: not YAML: {str(e)[:200]}", hint=_HINT) from e
    places: dict[Path, Place] = {}
    return Document(_value(node, (), where, places) if node is not None else None, places)


def _refuse(text: str, where: str) -> None:
    """Go through the events, which are read without recursion, before anything is built from them."""
    depth = 0
    documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        place = _place(event, where)
        for attribute, mark in (("anchor", "&"), ("tag", "")):
            if (name := getattr(event, attribute, None)) is not None:
                kind, mark = ("alias", "*") if isinstance(event, yaml.AliasEvent) else (attribute, mark)
                article = "an" if kind[0] == "a" else "a"
                raise BadUsage(f"{place}: {article} {kind} ({mark}{name[:80]}) is not allowed", hint=_HINT)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise BadUsage(f"{place}: a second document begins here", hint="One file holds one recipe.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MOST_DEPTH:
                raise BadUsage(f"{place}: nested more than {MOST_DEPTH} deep", hint=_HINT)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _place(thing: yaml.Node | yaml.Event, where: str) -> Place:
    mark = thing.start_mark
    return Place(where, mark.line + 1, mark.column + 1) if mark else Place(where)


def _value(node: yaml.Node, path: Path, where: str, places: dict[Path, Place]) -> Any:
    place = places.setdefault(path, _place(node, where))
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, (*path, i), where, places) for i, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, child in node.value:
            at = _place(key_node, where)
            if not isinstance(key_node, yaml.ScalarNode):
                raise BadUsage(f"{at}: a key must be a word", hint=_HINT)
            key = key_node.value
            if key == "<<" and key_node.style is None:
                raise BadUsage(f"{at}: a merge key (<<) is not allowed", hint=_HINT)
            if key in found:
                raise BadUsage(
                    f"{at}: the key {key[:80]!r} is here a second time",
                    hint=f"It stands on line {places[(*path, key)].line} already: remove one of them.",
                )
            places[(*path, key)] = at
            found[key] = _value(child, (*path, key), where, places)
        return found
    assert isinstance(node, yaml.ScalarNode), "YAML has three kinds of nodes"
    return _scalar(node, place)


def _scalar(node: yaml.ScalarNode, place: Place) -> Any:
    text: str = node.value
    if any(0xD800 <= ord(c) <= 0xDFFF or c == "\0" for c in text):
        raise BadUsage(f"{place}: a text holds a character that is not allowed", hint=_HINT)
    if node.style is not None:  # quoted, or a block: a text
        return text
    if _NULL.fullmatch(text):
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text) or _HEX.fullmatch(text):
        if len(text) > MOST_DIGITS:
            raise BadUsage(f"{place}: a number of {len(text)} digits", hint=_HINT)
        return int(text, 16 if text.startswith("0x") else 10)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
