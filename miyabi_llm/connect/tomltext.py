"""Change settings inside TOML text and keep its comments and its order. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from miyabi_llm.connect.values import Keys


def edit(text: str, values: dict[Keys, Any], unset: tuple[Keys, ...] = ()) -> str:
    """`text` with `values` set and `unset` taken out. Raises ValueError, with the line, when it is no TOML."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
        for keys in unset:
            table = _table(document, keys, make=False)
            if table is not None and keys[-1] in table:
                del table[keys[-1]]
        for keys, value in values.items():
            table = _table(document, keys, make=True)
            # a table that is replaced goes and comes back last: what stands in it can be another kind of table
            if keys[-1] not in table or plain(table[keys[-1]]) != value:
                if isinstance(value, Mapping):
                    table.pop(keys[-1], None)
                table[keys[-1]] = value
        return tomlkit.dumps(document)
    except TOMLKitError as e:
        raise ValueError(str(e)) from e


def has(text: str, keys: Keys) -> bool:
    """Whether the setting stands in `text`. Raises ValueError."""
    import tomllib

    value: Any = tomllib.loads(text)
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            return False
        value = value[key]
    return True


def plain(value: Any) -> Any:
    """The value without what is kept of its writing."""
    return value.unwrap() if hasattr(value, "unwrap") else value


def _table(document: Any, keys: Keys, *, make: bool) -> Any:
    import tomlkit

    table = document
    for depth, key in enumerate(keys[:-1]):
        if key not in table:
            if not make:
                return None
            table[key] = tomlkit.table(is_super_table=True)
        table = table[key]
        if not isinstance(table, Mapping):
            raise ValueError(f"{'.'.join(keys[: depth + 1])} is not a table")
    return table
