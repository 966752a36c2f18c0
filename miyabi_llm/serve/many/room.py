"""Which models make room for another one: pure, least recently used first, never one that is pinned or in use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

RETRY_S = 5  # seconds after which a client may ask again: an answer of a busy model may have ended by then


@dataclass(frozen=True, slots=True)
class Holder:
    """A model that holds memory. `memory` in bytes, `last_used` in seconds of one clock."""

    name: str
    memory: int
    last_used: float
    pinned: bool = False
    busy: bool = False

    @property
    def evictable(self) -> bool:
        """Whether it may be unloaded for another one."""
        return not (self.pinned or self.busy)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model that is to be loaded, and the bytes it needs."""

    name: str
    memory: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """There is no room and none can be made. `holders` are those that stay."""

    wanted: Wanted
    budget: int
    holders: tuple[Holder, ...]

    @property
    def retry_s(self) -> int | None:
        """Seconds after which it may be different; None when only pinned models stand in the way."""
        return RETRY_S if any(h.busy and not h.pinned for h in self.holders) else None

    @property
    def message(self) -> str:
        """Who holds the memory, in words."""
        held = ", ".join(f"{h.name} {_mib(h.memory)} ({_why(h)})" for h in self.holders)
        return (
            f"no room for {self.wanted.name}: it needs {_mib(self.wanted.memory)} of {_mib(self.budget)}, "
            f"and these cannot be unloaded now: {held}"
        )


def plan_room(holders: Iterable[Holder], wanted: Wanted, budget: int, now: float) -> tuple[str, ...] | Refusal:
    """The models to unload, in this order, before `wanted` is loaded into `budget` bytes; or why that cannot be.

    No more than needed, the least recently used first. A model that alone needs more than the budget may be loaded
    when everything else can go: the operator put it on the list. `now` settles clocks that ran ahead: a use in the
    future counts as a use just now. Pure.
    """
    others = [h for h in holders if h.name != wanted.name]
    free = budget - wanted.memory - sum(h.memory for h in others)
    evict: list[str] = []
    for holder in sorted(others, key=lambda h: (min(h.last_used, now), h.name)):
        if free >= 0:
            break
        if holder.evictable:
            evict.append(holder.name)
            free += holder.memory
    stay = tuple(h for h in others if h.name not in evict)
    if free >= 0 or not stay:
        return tuple(evict)
    return Refusal(wanted, budget, stay)


def _why(holder: Holder) -> str:
    return "pinned" if holder.pinned else "answering" if holder.busy else "idle"


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
