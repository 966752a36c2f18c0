"""Change variables inside a file of NAME=value lines. Pure."""

from __future__ import annotations

import re
from typing import Any

from miyabi_llm.connect.values import Keys


def edit(text: str, values: dict[Keys, Any], unset: tuple[Keys, ...] = ()) -> str:
    """`text` with the variables set and taken out; other lines stay as they are."""
    for keys in unset:
        text = re.sub(_pattern(keys), "", text)
    for keys, value in values.items():
        line = f"{keys[0]}={_quoted(str(value))}\n"
        if found := re.search(_pattern(keys), text):
            text = text[: found.start()] + line + text[found.end() :]
        else:
            text += ("" if not text or text.endswith("\n") else "\n") + line
    return text


def has(text: str, keys: Keys) -> bool:
    """Whether the variable stands in `text`."""
    return re.search(_pattern(keys), text) is not None


def _pattern(keys: Keys) -> str:
    return rf"(?m)^[ \t]*(?:export[ \t]+)?{re.escape(keys[0])}[ \t]*=.*(?:\n|\Z)"


def _quoted(value: str) -> str:
    if re.fullmatch(r"[\w@%+:,./-]*", value, re.ASCII):
        return value
    return f"'{value}'" if "'" not in value else f'"{value}"'
