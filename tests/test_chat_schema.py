"""Structured answers are held against the schema they were asked for."""

from __future__ import annotations

from typing import Any

import pytest

from miyabi_llm.chat import check_schema, follow
from miyabi_llm.errors import BadUsage

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "years": {"type": "array", "items": {"type": "integer"}}},
    "required": ["name"],
}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('{"name": "G"}', None),
        ('{"name": "G", "years": [1991, 2]}', None),
        ('{"name": "G", "years": [1991, "2"]}', "$.years[1]: '2' is not of type 'integer'"),
        ('{"years": []}', "$: 'name' is a required property"),
        ("[]", "$: [] is not of type 'object'"),
        ('{"name": "G"', "not JSON: "),
        ("[" * 100_000, "not JSON: "),
    ],
)
def test_the_place_of_the_violation(text: str, wrong: str | None) -> None:
    _, found = follow(text, check_schema(PERSON, "s.json"))
    assert found == wrong if wrong is None else (found or "").startswith(wrong)


def test_the_draft_the_schema_names() -> None:
    draft4 = {"$schema": "http://json-schema.org/draft-04/schema#", "maximum": 3, "exclusiveMaximum": True}
    assert follow("3", check_schema(draft4, "s"))[1] is not None
    assert follow("3", check_schema({"maximum": 3}, "s"))[1] is None
    assert follow("3", check_schema({"$schema": "https://example.org/mine", "maximum": 2}, "s"))[1] is not None


@pytest.mark.parametrize(
    "schema", [[], True, {"type": "strng"}, {"$schema": 5}, {"properties": {"a": {"pattern": "["}}}]
)
def test_what_is_no_schema(schema: object) -> None:
    with pytest.raises(BadUsage, match=r"^s\.json: "):
        check_schema(schema, "s.json")


@pytest.mark.parametrize("schema", [{"$ref": "http://127.0.0.1:9/other.json"}, {"$ref": "#/$defs/none"}, {"$ref": "#"}])
def test_no_other_document_is_fetched(schema: dict[str, Any]) -> None:
    with pytest.raises(BadUsage, match="the schema"):
        follow("{}", check_schema(schema, "s"))
