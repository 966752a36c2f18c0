"""Settings files of people, TOML or YAML: plain values, the line of each key, and a closed schema held against them."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from miyabi_llm.errors import BadUsage

NODES = 20_000  # values in one file; more is an alias bomb, not somebody's settings
_PLAIN = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
_CALLED = {"object": "a table", "array": "a list", "string": "text", "integer": "a whole number",
           "number": "a number", "boolean": "true or false"}  # fmt: skip

Place = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A file as plain values; `lines` has the line (from 1) of every key that could be found, by its path."""

    name: str
    value: dict[str, Any]
    lines: Mapping[Place, int]

    def at(self, path: Place) -> str:
        """`file:line: a.b[2].c` of a key, for messages; the line of the nearest known parent."""
        line = next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), 1)
        return f"{self.name}:{line}: {spelled(path)}" if path else f"{self.name}:{line}"

    def wrong(self, path: Place, what: str, hint: str | None = None) -> BadUsage:
        """The error to raise about the key at `path`."""
        return BadUsage(f"{self.at(path)}: {what}", hint=hint)


def spelled(path: Place) -> str:
    """`a.b[2].c`. Pure."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")


def parse(text: str, name: str) -> Document:
    """A document from TOML or YAML, by the name's ending (.yaml, .yml: YAML). Raises BadUsage with the line. Pure."""
    return parse_yaml(text, name) if name.lower().endswith((".yaml", ".yml")) else _toml(text, name)


def check(document: Document, schema: Mapping[str, Any]) -> None:
    """Hold a document against a JSON Schema of the kinds used here. Raises BadUsage: line, key, did-you-mean. Pure.

    Known words: type, enum, const, pattern, minimum, maximum, minItems, minLength, required, properties,
    additionalProperties, items. They mean what JSON Schema 2020-12 says.
    """
    _check(document, document.value, schema, ())


def _check(document: Document, value: Any, schema: Mapping[str, Any], path: Place) -> None:
    kind = schema.get("type")
    if kind is not None:
        boolean = isinstance(value, bool) and kind != "boolean"
        if boolean or not isinstance(value, _TYPES[kind]) or value != value:
            raise document.wrong(path, f"{_short(value)} is not {_CALLED[kind]}")
    if "const" in schema and value != schema["const"]:
        raise document.wrong(path, f"{_short(value)} is not {_short(schema['const'])}", schema.get("x-hint"))
    if "enum" in schema and value not in schema["enum"]:
        near = difflib.get_close_matches(str(value), schema["enum"], 1)
        known = f"One of: {', '.join(schema['enum'])}."
        raise document.wrong(path, f"{_short(value)} is not known", f"Did you mean {near[0]}?" if near else known)
    if isinstance(value, dict):
        _check_table(document, value, schema, path)
    elif isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            raise document.wrong(path, "is empty", schema.get("x-hint"))
        for i, item in enumerate(value):
            _check(document, item, schema.get("items", {}), (*path, i))
    elif isinstance(value, str):
        if len(value) < schema.get("minLength", 0) or not re.search(schema.get("pattern", ""), value):
            shown = "this value" if schema.get("x-quiet") else _short(value)  # perhaps a key
            raise document.wrong(path, f"{shown} will not do", schema.get("x-hint"))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        if not low <= value <= high:
            between = f"from {low} to {high}" if "maximum" in schema else f"at least {low}"
            raise document.wrong(path, f"{value!r} is out of range: {between}")


def _check_table(document: Document, value: dict[str, Any], schema: Mapping[str, Any], path: Place) -> None:
    known: Mapping[str, Any] = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    for key, item in value.items():
        if key in known:
            _check(document, item, known[key], (*path, key))
        elif others is False:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"Did you mean {spelled((*path, near[0]))}?" if near else f"Known keys: {', '.join(known)}."
            raise document.wrong((*path, key), "unknown key", hint)
        elif isinstance(others, Mapping):
            _check(document, item, others, (*path, key))
    for key in schema.get("required", ()):
        if key not in value:
            raise document.wrong((*path, key), "is missing", known.get(key, {}).get("x-hint"))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]#]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*((?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'))*)\s*=")
_WORD = re.compile(r"[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'")


def _toml(text: str, name: str) -> Document:
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        found = re.search(r"\(at line (\d+), column \d+\)|\(at end of document\)", str(e))
        line = found[1] if found and found[1] else str(text.count("\n") + 1)
        raise BadUsage(f"{name}:{line}: {str(e).split(' (at ')[0]}", hint="The file is not whole TOML.") from e
    except RecursionError as e:
        raise BadUsage(f"{name}: nested too deeply") from e
    return Document(name, value, _toml_lines(text))


def _toml_lines(text: str) -> dict[Place, int]:
    """The line of each `key =` and table header. tomllib does not tell, and a line of a message may be approximate."""
    lines: dict[Place, int] = {}
    counts: dict[Place, int] = {}
    table: Place = ()
    for number, line in enumerate(text.splitlines(), 1):
        if m := _HEADER.match(line):
            table = ()
            words = _words(m[2])
            for i, word in enumerate(words):
                table = (*table, word)
                if m[1] == "[[" and i == len(words) - 1:
                    counts[table] = counts.get(table, -1) + 1
                    lines.setdefault(table, number)
                    table = (*table, counts[table])
                elif table in counts:
                    table = (*table, counts[table])
                lines.setdefault(table, number)
        elif m := _KEY.match(line):
            key = table
            for word in _words(m[1]):
                key = (*key, word)
                lines.setdefault(key, number)
    return lines


def _words(text: str) -> list[str]:
    return [w.strip("\"'") for w in _WORD.findall(text)]


def parse_yaml(text: str, name: str) -> Document:
    """A document from YAML: plain values only, no key twice. Raises BadUsage with the line. Pure."""
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Place, int] = {}
        value = _yaml_value(node, name, (), lines, [0]) if node is not None else {}
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 1
        raise BadUsage(f"{name}:{line}: {e.problem or e}", hint="The file is not whole YAML.") from e
    except (yaml.YAMLError, RecursionError, ValueError) as e:
        raise BadUsage(f"{name}: {e}", hint="The file is not whole YAML.") from e
    if not isinstance(value, dict):
        raise BadUsage(f"{name}:1: does not begin with a key")
    return Document(name, value, lines)


def _yaml_value(node: Any, name: str, path: Place, lines: dict[Place, int], count: list[int]) -> Any:
    import yaml

    count[0] += 1
    if count[0] > NODES:
        raise BadUsage(f"{name}: too large")
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN:
        raise BadUsage(f"{name}:{line}: {node.tag.replace('tag:yaml.org,2002:', '!!')} is no plain value")
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key, item in node.value:
            at = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.value in found:
                raise BadUsage(f"{name}:{at}: {getattr(key, 'value', 'a key')}: a key stands here twice")
            lines[(*path, key.value)] = at
            found[key.value] = _yaml_value(item, name, (*path, key.value), lines, count)
        return found
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[(*path, i)] = item.start_mark.line + 1
        return [_yaml_value(item, name, (*path, i), lines, count) for i, item in enumerate(node.value)]
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)
    finally:
        loader.dispose()
