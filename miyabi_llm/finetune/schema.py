"""The JSON Schema of a recipe, for editors, and the table of its keys, for the documentation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic_core import PydanticUndefined

from miyabi_llm.finetune.load import keys
from miyabi_llm.finetune.recipe import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """The JSON Schema. An editor that is told of it completes keys and marks what is wrong."""
    body = Recipe.model_json_schema(by_alias=True)
    return {"$schema": DIALECT, "title": "A recipe of miyabi-llm finetune"} | {
        k: v for k, v in body.items() if k != "title"
    }


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Every key that takes a value: its full name, what it takes, its default as YAML, and what it is."""
    body = schema()
    for name, info in keys(Recipe):
        node = _node(body, name)
        if "properties" in node:
            continue
        default = info.get_default(call_default_factory=True)
        shown = "" if default is PydanticUndefined else json.dumps(default, ensure_ascii=False)
        yield name, _takes(node, body), shown, info.description or ""


def _node(body: dict[str, Any], name: str) -> dict[str, Any]:
    node = body
    for part in name.split("."):
        node = _followed(node["properties"][part], body)
    return node


def _followed(node: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """A reference resolved; of `X or null`, the X when it is a section."""
    for candidate in (node, *node.get("anyOf", ()), *node.get("allOf", ())):
        if "$ref" in candidate:
            found: dict[str, Any] = body["$defs"][candidate["$ref"].rpartition("/")[2]]
            return found
    return node


def _takes(node: dict[str, Any], body: dict[str, Any]) -> str:
    if "enum" in node:
        return ", ".join(f"`{v}`" for v in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    if "anyOf" in node:
        return " or ".join(_takes(part, body) for part in node["anyOf"])
    if node.get("type") == "array":
        return "list of " + _takes(node.get("items", {}), body)
    if node.get("type") == "object":
        return "map to " + _takes(node.get("additionalProperties", {}), body)
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    kind = str(node.get("type", "value"))
    return words.get(kind, kind) + _bounds(node)


def _bounds(node: dict[str, Any]) -> str:
    low = f"from {node['minimum']}" if "minimum" in node else ""
    low = f"above {node['exclusiveMinimum']}" if "exclusiveMinimum" in node else low
    high = f"to {node['maximum']}" if "maximum" in node else ""
    high = f"below {node['exclusiveMaximum']}" if "exclusiveMaximum" in node else high
    return f" {low} {high}".rstrip() if low or high else ""
