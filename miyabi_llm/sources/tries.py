"""How hard to try: limits, growing pauses, and small documents fetched with both."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from miyabi_llm.errors import NetworkError
from miyabi_llm.sources import answers
from miyabi_llm.sources.net import Credential, Hiccup, Session, Unreachable, Wire
from miyabi_llm.types import RemoteFile

MIB = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """How hard to try. Sizes in bytes, times in seconds.

    `tries` counts failures in a row without a MiB of progress between them; `absent` those in which nobody was
    there to begin with; `restarts` how often a file may turn out to have changed under us before we give up.
    """

    connections: int = 8
    segment: int = 8 * MIB
    segment_most: int = 64 * MIB
    tries: int = 6
    absent: int = 2
    restarts: int = 4
    backoff: float = 0.5
    backoff_most: float = 20.0
    retry_after_most: float = 60.0
    every: float = 0.1
    wire: Wire = field(default_factory=Wire)

    def most(self, hiccup: Hiccup) -> int:
        """How many failures like `hiccup` in a row are too many, when nothing has come yet."""
        return min(self.tries, self.absent) if isinstance(hiccup, Unreachable) else self.tries

    def pause(self, failures: int, hiccup: Hiccup) -> float:
        """Seconds to wait after that many failures: growing, jittered, and what the server asks, within reason."""
        wait = min(self.backoff_most, self.backoff * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.0)
        return max(wait, min(hiccup.retry_after or 0.0, self.retry_after_most))


def get(
    session: Session,
    file: RemoteFile,
    limit: int,
    *,
    headers: dict[str, str] | None = None,
    credential: Credential | None = None,
    limits: Limits | None = None,
) -> bytes:
    """A small document: `file`'s first URL, at most `limit` bytes, retried like a download.

    Raises NetworkError, AccessDenied, ModelMissing, Unsafe.
    """

    def once() -> bytes:
        with session.open(file.urls[0], headers=headers or {}, credential=credential) as response:
            answers.check_status(response, file)
            return response.read(limit)

    return retried(once, file, limits or Limits())


def retried(once: Callable[[], T], file: RemoteFile, limits: Limits) -> T:
    """`once()`, tried again after a Hiccup, a few times and with growing pauses. Raises NetworkError in the end."""
    for failures in range(1, limits.tries + 1):
        try:
            return once()
        except Hiccup as e:
            if failures >= limits.most(e):
                raise NetworkError(
                    f"{answers.place(file)}: {e.reason} ({failures} times)", hint="Check the connection."
                ) from e
            time.sleep(limits.pause(failures, e))
    raise AssertionError("at least one try")
