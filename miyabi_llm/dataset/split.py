"""Holding rows out, so that nothing that is measured was learned: by groups, the same way every time. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from miyabi_llm.dataset.values import Row


def split(
    rows: Sequence[Row], fraction: float, seed: int, alike: Mapping[str, str] | None = None
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """The rows to learn from and those held out, each in the order of the file.

    Rows stay on one side together when they have the same group, the same prompt, or the same entry in `alike`
    (row id -> name of a cluster of near-duplicates). Which groups are held out depends on the seed and on what they
    hold, never on their order. About `fraction` of the rows is held out: at least one group, never all of them.
    """
    groups = _groups(rows, alike or {})
    if fraction <= 0 or len(groups) < 2:
        return tuple(rows), ()
    wanted = max(1, round(fraction * len(rows)))
    order = sorted(groups, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    held: set[int] = set()
    for name in order[:-1]:
        if len(held) >= wanted:
            break
        if not held or len(held) + len(groups[name]) <= max(wanted * 1.5, wanted + 1):
            held.update(groups[name])
    learn = tuple(r for i, r in enumerate(rows) if i not in held)
    return learn, tuple(r for i, r in enumerate(rows) if i in held)


def _groups(rows: Sequence[Row], alike: Mapping[str, str]) -> dict[str, list[int]]:
    """Indexes of rows that belong together, by the smallest id among them."""
    parent = list(range(len(rows)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, row in enumerate(rows):
        names = ["prompt:" + json.dumps([dict(m) for m in row.prompt], sort_keys=True)]
        names += [f"group:{row.group}"] if row.group is not None else []
        names += [f"alike:{alike[row.id]}"] if row.id in alike else []
        for name in names:
            parent[find(i)] = find(first.setdefault(name, i))
    members: dict[int, list[int]] = {}
    for i in range(len(rows)):
        members.setdefault(find(i), []).append(i)
    return {min(rows[i].id for i in found): found for found in members.values()}
