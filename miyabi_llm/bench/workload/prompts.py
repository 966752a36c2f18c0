"""Prompts no server has seen: a number that is used once at the start, and what may be common by intent."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from miyabi_llm.bench.speech import request
from miyabi_llm.bench.values import Item, Target

DIGITS = 15  # tokenizers take digits one by one or by threes: each number is as many tokens as the next
_HOLE = "731908264509173"  # stands for the number in a prepared request
KEEP = 512  # prepared requests


def nonce(*parts: object) -> str:
    """`DIGITS` decimal digits that depend on all parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return f"{int.from_bytes(digest) % 10**DIGITS:0{DIGITS}d}"


def common(items: Sequence[Item], share: float, number: str) -> tuple[str, ...]:
    """For each item a text to begin with, so that of each prompt `share` is the same in all. In characters.

    The texts are beginnings of one text: `number`, so that it is a server's first, then the items' own words.
    """
    sizes = [round(len(_words(item)) * share / (1 - share)) for item in items]
    text = f"[{number}]\n" + "\n".join(_words(item) for item in items)
    text += "\n" + text[: max(sizes)] if max(sizes) > len(text) else ""
    while max(sizes) > len(text):
        text += text
    return tuple(text[:size] for size in sizes)


def _words(item: Item) -> str:
    parts = [m.get("content") for m in item.messages] if item.messages else [item.prompt]
    return "\n".join(p for p in parts if isinstance(p, str))


def begin_with(item: Item, text: str) -> Item:
    """The item with `text` before the first word of its prompt."""
    if not text:
        return item
    if not item.messages:
        return replace(item, prompt=text + (item.prompt or ""))
    first = dict(item.messages[0])
    content = first.get("content")
    first["content"] = (
        [{"type": "text", "text": text}, *content] if isinstance(content, list) else text + (content or "")
    )
    return replace(item, messages=(first, *item.messages[1:]))


def said(item: Item, target: Target) -> Item:
    """The item in a form the target's dialect can carry: a plain prompt becomes a user's message where needed."""
    if item.prompt is not None and not item.messages and target.speech != "openai-completions":
        return replace(item, messages=({"role": "user", "content": item.prompt},), prompt=None)
    return item


@dataclass(frozen=True, slots=True)
class Asked:
    """One prepared request: its bytes, and the messages a later turn goes on from."""

    data: bytes
    messages: tuple[Mapping[str, Any], ...]


class Maker:
    """Makes requests; the bytes of the last few hundred items are kept, with a hole where the number goes.

    `prefixes` are the items' common beginnings, or empty.
    """

    def __init__(self, items: Sequence[Item], targets: Sequence[Target], prefixes: Sequence[str] = ()) -> None:
        self._items, self._targets, self._prefixes = items, targets, prefixes
        self._kept: OrderedDict[tuple[int, int], tuple[bytes, bytes]] = OrderedDict()

    def item(self, target: int, item: int, number: str) -> Item:
        """An item as it is asked; `number` empty: as it is written."""
        prefix = self._prefixes[item] if self._prefixes else ""
        mark = f"[{number}]\n" if number else ""
        return begin_with(said(self._items[item], self._targets[target]), prefix + mark)

    def data(self, target: int, item: int, number: str) -> bytes:
        """The request for an item's first turn."""
        if not number:
            return request(self._targets[target], self.item(target, item, ""))
        before, after = self._prepared(target, item)
        return before + number.encode() + after

    def later(self, target: int, item: int, messages: Sequence[Mapping[str, Any]]) -> bytes:
        """The request for a later turn."""
        return request(self._targets[target], self._items[item], messages)

    def _prepared(self, target: int, item: int) -> tuple[bytes, bytes]:
        key = (target, item)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        whole = request(self._targets[target], self.item(target, item, _HOLE))
        before, _, after = whole.partition(_HOLE.encode())
        self._kept[key] = before, after
        if len(self._kept) > KEEP:
            self._kept.popitem(last=False)
        return before, after
