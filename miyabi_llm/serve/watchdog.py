"""Whether a server that answers its health check still makes tokens."""

from __future__ import annotations

import time
from types import TracebackType

from miyabi_llm.proc import Child
from miyabi_llm.serve.probe import Probe
from miyabi_llm.serve.values import Limits
from miyabi_llm.types import LaunchPlan


class Watchdog:
    """Looks at a ready server from time to time.

    A server that shows its requests in progress (`/slots`) is wedged when one makes no progress for `stall_s`.
    An idle one is asked for a token, once after each burst of work: a server that nobody used since it last
    answered is left alone, so that the probe costs no user his cached prompt. A server that shows nothing is asked
    every time, and not called wedged as long as it uses the processor.
    """

    def __init__(self, plan: LaunchPlan, limits: Limits) -> None:
        self._probe, self._limits = Probe(plan), limits
        self._every = min(limits.probe_every_s, limits.stall_s)
        self.reset()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._probe.__exit__(kind, e, tb)

    def reset(self) -> None:
        """Begin anew, after a restart."""
        self._due = time.monotonic() + self._every
        self._seen, self._seen_at = b"", 0.0  # the last progress of a busy server, and when it was made
        self._quiet = b""  # how an idle server looked after it last gave a token

    def wedged(self, child: Child) -> str:
        """Why the server counts as wedged; empty when it does not, or it is not yet time to look."""
        now = time.monotonic()
        if now < self._due:
            return ""
        try:
            return self._look(child, now)
        finally:
            self._due = time.monotonic() + self._every

    def _look(self, child: Child, now: float) -> str:
        stall = self._limits.stall_s
        state, shown = self._probe.slots(stall)
        if state == "busy":
            if shown != self._seen:
                self._seen, self._seen_at = shown, now
            return f"no progress for {now - self._seen_at:.0f} s" if now - self._seen_at >= stall else ""
        self._seen = b""
        if state == "idle" and shown == self._quiet:
            return ""
        before = child.cpu_seconds()
        outcome, why = self._probe.token(stall) if state != "silent" else ("silent", f"no answer within {stall:g} s")
        if outcome == "ok":
            self._quiet = self._probe.slots(stall)[1] if state == "idle" else b""
        if outcome == "silent" and state == "unknown" and child.cpu_seconds() - before > 0.1 * stall:
            return ""  # it computes: a long request before ours, as far as we can see
        return why if outcome in ("silent", "broken") and child.poll() is None else ""
