"""How many tries more a server gets: few, spread by chance, and never more than a tenth of all requests. Pure."""

from __future__ import annotations

import random
from typing import Final

from miyabi_llm.gateway.asked import Kind, Missed

SHARE: Final = 0.1  # of all requests may be tried once more
SPARE: Final = 10.0  # tries that may be saved up
TRIES: Final = 2  # more, for one request
WAIT_S: Final = 2.0  # a server that asks for a longer wait is not waited for
_AGAIN: Final[frozenset[Kind]] = frozenset(("unreachable", "cut", "garbled", "overloaded", "server", "rate"))


class Budget:
    """A store of tries: each request brings a tenth of one."""

    def __init__(self) -> None:
        self._left = 1.0

    def request(self) -> None:
        """A request came."""
        self._left = min(SPARE, self._left + SHARE)

    def take(self) -> bool:
        """Use one try up, if there is one."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


def pause(missed: Missed, tried: int, chance: float | None = None) -> float | None:
    """Seconds to wait before the same target is tried again; None when it is not. Pure but for chance.

    `tried` counts the tries more so far.
    """
    if missed.kind not in _AGAIN or tried >= TRIES:
        return None
    if missed.kind == "rate":
        return missed.retry_after if missed.retry_after is not None and missed.retry_after <= WAIT_S else None
    chance = random.random() if chance is None else chance
    return 0.1 * float(2**tried) * (0.5 + chance)
