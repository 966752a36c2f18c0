"""Rows that say nearly the same: MinHash to find candidates, then the true share of common shingles.

A shingle is 8 characters in a row of the text in small letters with its white space made single, so that it works for
Japanese as for English. Likeness is Jaccard's: common shingles over all shingles of two rows.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

WIDTH = 8  # characters of a shingle
LIKE = 0.8  # from this likeness on two rows are near-duplicates
BANDS, PER_BAND = 16, 4  # two rows with likeness 0.8 meet in some band with probability 1 - (1 - 0.8^4)^16 = 0.9998
MOST_IN_BUCKET = 200  # rows compared pairwise; more in one bucket are compared with its first
MOST_CHARACTERS = 200_000  # of a text that are looked at

Hashes = npt.NDArray[np.uint64]


def plain(text: str) -> str:
    """Text without the differences that do not count: width, case and white space."""
    return " ".join(unicodedata.normalize("NFKC", text[:MOST_CHARACTERS]).casefold().split())


def shingles(text: str, width: int = WIDTH) -> Hashes:
    """The hashes of all shingles of `text`, each once, in order. A shorter text is one shingle."""
    letters = np.frombuffer(plain(text).encode("utf-32-le", "replace"), dtype=np.uint32).astype(np.uint64)
    if len(letters) == 0:
        return np.empty(0, dtype=np.uint64)
    width = min(width, len(letters))
    powers = _powers(width)
    with np.errstate(over="ignore"):
        windows = np.lib.stride_tricks.sliding_window_view(letters, width)
        found = (windows * powers).sum(axis=1, dtype=np.uint64)
    return np.unique(found)


def likeness(a: Hashes, b: Hashes) -> float:
    """Common shingles over all: 1 for the same text, 0 for nothing in common."""
    if not len(a) or not len(b):
        return 0.0
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def pairs(texts: Sequence[str], like: float = LIKE) -> Iterator[tuple[int, int, float]]:
    """Pairs of near-duplicates `(earlier, later, likeness)` by their indexes; the same text counts as 1."""
    sets = [shingles(t) for t in texts]
    signatures = [_signature(s) for s in sets]
    seen: set[tuple[int, int]] = set()
    for band in range(BANDS):
        buckets: dict[bytes, list[int]] = {}
        for i, signature in enumerate(signatures):
            if signature is not None:
                buckets.setdefault(signature[band * PER_BAND : (band + 1) * PER_BAND].tobytes(), []).append(i)
        for members in buckets.values():
            for a, b in _candidates(members):
                if (a, b) not in seen:
                    seen.add((a, b))
                    if (share := likeness(sets[a], sets[b])) >= like:
                        yield a, b, share


def clusters(found: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For each name in some pair, the smallest name of its cluster: pairs that share a member are one."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for a, b in found:
        one, two = sorted((find(a), find(b)))
        parent[two] = one
    return {name: find(name) for name in tuple(parent)}


def _candidates(members: Sequence[int]) -> Iterator[tuple[int, int]]:
    whole = len(members) <= MOST_IN_BUCKET
    for i, a in enumerate(members):
        yield from ((a, b) for b in members[i + 1 :])
        if not whole:
            return


def _powers(width: int) -> Hashes:
    base, found = 1_000_003, [1]
    for _ in range(width - 1):
        found.append(found[-1] * base % 2**64)
    return np.array(found[::-1], dtype=np.uint64)


def _constants(count: int) -> tuple[Hashes, Hashes]:
    """Fixed odd factors and summands of the hash functions, from a generator whose stream numpy keeps stable."""
    made = np.random.Generator(np.random.PCG64(20))
    return made.integers(1, 2**63, count, dtype=np.uint64) * np.uint64(2) + np.uint64(1), made.integers(
        0, 2**63, count, dtype=np.uint64
    )


_FACTORS, _SUMMANDS = _constants(BANDS * PER_BAND)


def _signature(hashes: Hashes) -> Hashes | None:
    """The least value of each hash function over all shingles (multiply-shift hashing); None for an empty text."""
    if not len(hashes):
        return None
    least = np.full(len(_FACTORS), np.iinfo(np.uint64).max, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for at in range(0, len(hashes), 4096):
            block = hashes[at : at + 4096, None] * _FACTORS + _SUMMANDS
            least = np.minimum(least, (block >> np.uint64(16)).min(axis=0))
    return least
