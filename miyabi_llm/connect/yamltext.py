"""Change the top level's keys and named items of lists inside YAML text; the rest stays as it is. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

from miyabi_llm.connect.values import Keys

_BREAKS = re.compile("[\x85\u2028\u2029]")
WIDTH = 1 << 20  # characters: a long path stays on its line


def edit(text: str, values: dict[Keys, Any], unset: tuple[Keys, ...] = ()) -> str:
    """`text` with `values` set: a key of the top level, or (LIST, NAME) for the item of a list that has this `name`.

    A top-level key that is there already is left as it is. Raises ValueError when `text` is no YAML mapping.
    """
    assert not unset, "nothing is taken out of YAML files"
    for keys, value in values.items():
        text = _item(text, keys[0], keys[1], value) if len(keys) == 2 else _key(text, keys[0], value)
    return text


def has(text: str, keys: Keys) -> bool:
    """Whether a top-level key stands in `text`. Raises ValueError."""
    return _find(text, keys[0]) is not None


def dump(value: Any, *, flow: bool = False) -> str:
    """A value in block style, or in flow style on one line."""
    import yaml

    # the rarer line breaks are not read back as they were written, unless they are escaped with all other letters
    readable = not _BREAKS.search(json.dumps(value, ensure_ascii=False))
    return str(yaml.safe_dump(value, default_flow_style=flow, sort_keys=False, allow_unicode=readable, width=WIDTH))


def _key(text: str, key: str, value: Any) -> str:
    return text if _find(text, key) is not None else _ended(text) + dump({key: value})


def _item(text: str, key: str, name: str, value: dict[str, Any]) -> str:
    found = _find(text, key)
    if found is None:
        return _ended(text) + dump({key: [value]})
    if found.id == "scalar" and found.tag.endswith(":null"):
        at, end = int(found.start_mark.index), int(found.end_mark.index)
        return text[:at].rstrip(" ") + "\n" + dump([value]).rstrip("\n") + text[end:]
    if found.id != "sequence":
        raise ValueError(f"{key} is not a list")
    if found.flow_style:
        return _flow(text, found, name, value)
    old = next((item for item in found.value if _load(item).get("name") == name), None)
    if old is not None and _load(old) == value:
        return text
    # a block list's items are indented alike, and an item's keys by where its first key stands
    dash = int(found.start_mark.column)
    body = dump([value]).replace("\n", "\n" + " " * dash).rstrip(" ").rstrip("\n")
    if old is not None:
        begin = text.rindex("-", 0, int(old.start_mark.index))
        return text[:begin] + body + text[_last(old) :]
    end = _last(found)
    return text[:end] + "\n" + " " * dash + body + text[end:]


def _flow(text: str, found: Any, name: str, value: dict[str, Any]) -> str:
    items = [_load(item) for item in found.value]
    if any(item == value for item in items):
        return text
    items = [item for item in items if item.get("name") != name] + [value]
    line = dump(items, flow=True)
    start, end = int(found.start_mark.index), int(found.end_mark.index)
    return text[:start] + str(line).rstrip("\n") + text[end:]


def _find(text: str, key: str) -> Any:
    """The node of a top-level key; None when it is not there."""
    import yaml

    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as e:
        raise ValueError(" ".join(str(e).split())) from e
    if root is None:
        return None
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise ValueError("not a mapping in block style")
    return next((value for name, value in root.value if name.value == key), None)


def _load(node: Any) -> dict[str, Any]:
    import yaml

    loader = yaml.SafeLoader("")
    try:
        value = loader.construct_document(node)
    finally:
        loader.dispose()
    return value if isinstance(value, dict) else {}


def _last(node: Any) -> int:
    """Where the last character of a node's own text is: a block's end mark stands behind the blanks after it."""
    while node.id in ("mapping", "sequence") and not node.flow_style and node.value:
        node = node.value[-1][1] if node.id == "mapping" else node.value[-1]
    end = int(node.end_mark.index)
    block = node.id == "scalar" and node.style in ("|", ">")
    return end - 1 if block and node.end_mark.column == 0 else end


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"
