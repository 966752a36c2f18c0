"""Whether an answer follows the JSON schema it was asked for; a schema that is none is refused before asking."""

from __future__ import annotations

import json
import re
from typing import Any

from miyabi_llm.errors import BadUsage


def check_schema(schema: object, where: str) -> dict[str, Any]:
    """`schema`, when it is a JSON schema; `where` names it in errors. Raises BadUsage with the place that is wrong."""
    if not isinstance(schema, dict):
        raise BadUsage(f"{where}: a JSON schema is an object")
    from jsonschema import SchemaError

    try:
        _validator(schema).check_schema(schema)
    except SchemaError as e:
        raise BadUsage(f"{where}: not a JSON schema: {e.json_path}: {_short(e.message)}") from e
    except RecursionError as e:
        raise BadUsage(f"{where}: too deeply nested") from e
    return schema


def follow(text: str, schema: dict[str, Any]) -> tuple[object, str | None]:
    """The value of an answer that had to follow `schema`, and what is wrong with it: where in it, and what.

    Schemas are never fetched: a reference to another document is wrong usage. Raises BadUsage.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        return None, f"not JSON: {e}"
    from jsonschema.exceptions import best_match
    from jsonschema_specifications import REGISTRY
    from referencing.exceptions import Unresolvable

    try:
        wrong = best_match(_validator(schema)(schema, registry=REGISTRY).iter_errors(value))
    except Unresolvable as e:
        raise BadUsage(f"the schema refers to {e.ref!r}, which is not in it", hint="Put it under $defs.") from e
    except (re.error, RecursionError) as e:
        raise BadUsage(f"the schema cannot be followed: {e}") from e
    return value, None if wrong is None else f"{wrong.json_path}: {_short(wrong.message)}"


def _validator(schema: dict[str, Any]) -> Any:
    """What judges by the draft that `schema` names, else by the latest."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for

    named = isinstance(schema.get("$schema"), str)
    return validator_for(schema, default=Draft202012Validator) if named else Draft202012Validator


def _short(text: str) -> str:
    return text if len(text) <= 300 else text[:297] + "..."
