"""A model in several GGUF files: which of them are its own, and whether all its parts are there and in order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from miyabi_llm.errors import Corrupt
from miyabi_llm.gguf import Header, TensorInfo
from miyabi_llm.refs import is_safe_name

_NAME: Final = re.compile(r"(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf")
_HINT: Final = "Pull the model again."


def own(headers: Mapping[str, Header]) -> dict[str, Header]:
    """The headers of the model itself, whatever the files are called: no image encoders, no adapters."""
    return {
        name: h
        for name, h in headers.items()
        if h.architecture != "clip" and h.text("general.type") not in ("mmproj", "adapter")
    }


def join(headers: Mapping[str, Header]) -> Header:
    """One header for a model in one file or in shards; `headers` by file name.

    Raises Corrupt when a shard is missing, is one too many, has a name that is not plain, or belongs elsewhere.
    """
    names = sorted(headers)
    first = headers[names[0]]
    if len(names) == 1 and first.split is None:
        return first
    count = first.split[1] if first.split else len(names)
    stem, tensors = None, list[TensorInfo]()
    for i, name in enumerate(names):
        match = _NAME.fullmatch(name) if is_safe_name(name) else None
        if match is None:
            raise Corrupt(f"shard {name[:200]!r} is not named NAME-00001-of-0000N.gguf", hint=_HINT)
        if headers[name].split != (i, count) or (int(match["no"]), int(match["count"])) != (i + 1, count):
            raise Corrupt(f"shard {name!r} says it is {_say(headers[name].split)}", hint=_HINT)
        stem = stem or match["stem"]
        if match["stem"] != stem:
            raise Corrupt(f"shard {name!r} belongs to another model than {names[0]!r}", hint=_HINT)
        tensors += headers[name].tensors
    total = first.number("split.tensors.count")
    if len(names) != count:
        raise Corrupt(f"{len(names)} shards are here, the model has {count}", hint=_HINT)
    if len({t.name for t in tensors}) != len(tensors) or total not in (None, len(tensors)):
        raise Corrupt(f"the shards hold {len(tensors)} tensors, the model has {total}", hint=_HINT)
    size = sum(h.size for h in headers.values())
    return Header(first.version, first.kv, tuple(tensors), first.data_offset, first.alignment, size)


def _say(split: tuple[int, int] | None) -> str:
    return "no shard" if split is None else f"number {split[0] + 1} of {split[1]}"
