"""The books of a running gateway: the audit, the money, the private sessions, the circuits."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from miyabi_llm.errors import MiyabiError
from miyabi_llm.gateway.asked import Kind, Missed
from miyabi_llm.gateway.values import Order
from miyabi_llm.route import breaker, keys, prices
from miyabi_llm.route.audit import Audit
from miyabi_llm.route.breaker import Breaker, Fault
from miyabi_llm.route.ledger import Ledger
from miyabi_llm.route.prices import Prices
from miyabi_llm.route.taint import Taints
from miyabi_llm.route.values import Health, Policy, Target, Verdict

TAIL: Final = 256 << 10  # bytes at the end of the log in which a record of just now is looked for
_FAULTS: Final[Mapping[Kind, Fault]] = {
    "unreachable": "network",
    "timeout": "server",
    "cut": "server",
    "garbled": "server",
    "overloaded": "overloaded",
    "server": "server",
    "rate": "rate",
    "spend": "spend",
    "client": "client",
}


@dataclass(frozen=True, slots=True)
class Files:
    """The open files. Without `audit` or `ledger` nothing goes to a cloud; `why` says what is wrong with them."""

    key: bytes
    audit: Audit | None
    ledger: Ledger | None
    taints: Taints | None
    prices: Prices
    why: str = ""

    def close(self) -> None:
        """Close them."""
        for file in (self.audit, self.ledger, self.taints):
            if file is not None:
                file.close()


def open_files(order: Order) -> Files:
    """Open the books of an order; what cannot be opened is None, and never a reason not to answer here."""
    why: list[str] = []

    def tried(make: Any, *arguments: Any) -> Any:
        try:
            return make(*arguments)
        except (MiyabiError, OSError) as e:
            why.append(e.message if isinstance(e, MiyabiError) else f"{e.filename}: {e.strerror}")
            return None

    folder = order.audit.parent
    key = tried(keys.secret, folder / "key")
    table = tried(prices.load, order.prices) if order.prices is not None else prices.BUILT_IN
    return Files(
        key or b"",
        tried(Audit, order.audit, key) if key else None,
        tried(Ledger, order.ledger),
        tried(Taints, folder / "taints.sqlite", key) if key else None,
        table or Prices({}),
        "; ".join(why),
    )


def written(path: Path, target: str, nonce: str) -> bool:
    """Whether the log has the record of this permit among its last lines: read from the file, not from a memory."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return False
    for line in reversed(lines[:-1]):  # the last one is not ended
        if nonce.encode() in line:
            try:
                said = json.loads(line)
            except ValueError:
                return False
            record = (said.get("kind"), said.get("permit"), said.get("target"), said.get("verdict"))
            return record == ("send", nonce, target, Verdict.PUBLIC.name)
    return False


class Flush:
    """Makes what was appended durable, for all who wait at once: one call to the disk at a time."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._next: asyncio.Task[None] | None = None
        self._now: asyncio.Task[None] | None = None

    async def synced(self) -> None:
        """Return when everything that was appended before is on the disk. Raises AuditFailed."""
        if self._next is None:
            self._next = asyncio.create_task(self._run(self._now))
        await asyncio.shield(self._next)

    async def _run(self, before: asyncio.Task[None] | None) -> None:
        if before is not None and not before.done():
            await asyncio.wait([before])  # what it writes began before our line
        self._now, self._next = self._next, None  # who comes from here on waits for the one after
        await asyncio.to_thread(self._audit.sync)


class Circuits:
    """The circuit of each target."""

    def __init__(self, policy: Policy) -> None:
        self._at = {t.name: Breaker() for t in policy.targets}

    def forget(self) -> None:
        """Close them all: what went before says nothing about now."""
        self._at = dict.fromkeys(self._at, Breaker())

    def health(self) -> dict[str, Health]:
        """How each stands now."""
        now = time.time()
        return {name: b.health(now) for name, b in self._at.items()}

    def admit(self, target: Target) -> bool:
        """Whether a request may be sent; of a half-open circuit only one may try."""
        self._at[target.name], may = breaker.probe(self._at[target.name], time.time())
        return may

    def note(self, target: Target, missed: Missed | None) -> None:
        """What a try said about its target; None: it answered."""
        what = "" if missed is None else _FAULTS.get(missed.kind)
        if missed is not None and missed.status == 401:
            what = "key"
        if what is None:  # it was not asked at all
            self.abandon(target)
            return
        wait = missed.retry_after if missed is not None else None
        before = self._at[target.name]
        self._at[target.name] = breaker.after(before, what, time.time(), wait=wait, jitter=random.random())

    def abandon(self, target: Target) -> None:
        """A try ended without saying anything about its target."""
        self._at[target.name] = breaker.abandon(self._at[target.name])
