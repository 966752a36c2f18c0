"""The circuit of a target: opened by what went wrong, for as long as that kind of fault lasts. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from miyabi_llm.route.values import Circuit, Health

Fault = Literal["", "spend", "rate", "overloaded", "server", "network", "key", "client"]

LONGEST = 300.0  # seconds a circuit stays open for a `retry-after`, however long that asks
# Faults in a row that open the circuit, and seconds for the first time; each further time doubles them.
_OPENS: Mapping[str, tuple[int, float]] = {
    "rate": (1, 30.0),
    "overloaded": (2, 15.0),
    "server": (3, 15.0),
    "network": (1, 5.0),
    "key": (1, 60.0),
}
_WHY: Mapping[str, str] = {
    "spend": "the spend limit of its account is reached",
    "rate": "it limits requests",
    "overloaded": "it is overloaded",
    "server": "it fails",
    "network": "it cannot be reached",
    "key": "it refuses our key",
}


@dataclass(frozen=True, slots=True)
class Breaker:
    """State of one circuit. `until` is a time of the wall clock (0: closed); `probing` while one request tries it."""

    failures: int = 0
    opened: int = 0
    until: float = 0.0
    why: str = ""
    probing: bool = False

    def state(self, now: float) -> Circuit:
        """closed, open, or half-open: the time is over and one request may try."""
        if not self.until:
            return "closed"
        return "open" if now < self.until or self.probing else "half-open"

    def health(self, now: float) -> Health:
        """The same as the decision wants it."""
        return Health(True, self.state(now), self.why if self.until else "")


def fault(status: int, error: Mapping[str, Any] | None = None) -> Fault:
    """The kind of fault of an answer; empty for none. `error` is the `error` of the body, status 0: no answer came.

    A 429 without `retry-after` that names the spend limit (`enforced_spend_limit_reached`) is no rate limit: it lasts
    until the month turns. 4xx of the request itself say nothing about the target.
    """
    kind = str((error or {}).get("type", ""))
    details = (error or {}).get("details")
    code = str(details.get("error_code", "")) if isinstance(details, Mapping) else ""
    if "spend_limit" in code or "usage_limit" in code or status == 402 or kind == "billing_error":
        return "spend"
    if status == 0:
        return "network"
    if status == 529 or status == 503 or kind == "overloaded_error":
        return "overloaded"
    if status == 429 or kind == "rate_limit_error":
        return "rate"
    if status == 401:
        return "key"
    if status >= 500 or kind in ("api_error", "timeout_error"):
        return "server"
    return "client" if status >= 400 else ""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that `retry-after-ms` or `retry-after` (lower-case names) ask for; None for none or nonsense."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None


def after(breaker: Breaker, what: Fault, now: float, *, wait: float | None = None, jitter: float = 0.0) -> Breaker:
    """The circuit after an answer. `wait` is its `retry-after`; `jitter` from 0 to 1 lengthens the time by a quarter.

    A fault of the client leaves it as it is, but ends a probe: the target answered.
    """
    if what in ("", "client"):
        return Breaker() if not what or breaker.probing else breaker
    if what == "spend":
        return Breaker(breaker.failures + 1, breaker.opened + 1, next_month(now), _WHY[what])
    least, first = _OPENS[what]
    failures = breaker.failures + 1
    if failures < least and not breaker.until:
        return replace(breaker, failures=failures)
    seconds = min(first * 2 ** min(breaker.opened, 8), LONGEST)
    if wait is not None:
        seconds = min(max(wait, 1.0), LONGEST)
    until = max(now + seconds * (1 + 0.25 * jitter), breaker.until if not breaker.probing else 0.0)
    return Breaker(failures, breaker.opened + 1, until, _WHY[what])


def probe(breaker: Breaker, now: float) -> tuple[Breaker, bool]:
    """Whether one request may go, and the circuit with that probe under way: only one tries a half-open circuit."""
    state = breaker.state(now)
    if state == "half-open":
        return replace(breaker, probing=True), True
    return breaker, state == "closed"


def abandon(breaker: Breaker) -> Breaker:
    """A probe that ended without an answer of the target (the client left): the next request may try."""
    return replace(breaker, probing=False)


def next_month(now: float) -> float:
    """The first moment of the next calendar month, UTC."""
    day = datetime.fromtimestamp(now, UTC)
    year, month = (day.year + 1, 1) if day.month == 12 else (day.year, day.month + 1)
    return datetime(year, month, 1, tzinfo=UTC).timestamp()
