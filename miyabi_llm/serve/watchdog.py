"""Whether a server that answers its health check still makes tokens."""

from __future__ import annotations

import time
from types import TracebackType

from miyabi_llm.proc import Child
from miyabi_llm.serve.probe import Probe
from miyabi_llm.serve.values import Limits
from miyabi_llm.types import LaunchPlan

PATIENCE = 10  # times `stall_s`, while it computes: a big batch on a slow processor shows nothing for long
COMPUTING = 0.1  # share of one processor from which a server counts as computing


class Watchdog:
    """Looks at a ready server from time to time.

    Progress is: a request in progress moved on (`/slots`), or a token came when asked. An idle server is asked once
    after each burst of work: one that nobody used since it last answered is left alone, so that the probe costs no
    user his cached prompt. One that unloads its model when idle and does not tell about its requests is asked only
    after it computed: else our question would keep the model in memory. Without progress for `stall_s` a server is
    wedged, for PATIENCE times that if it computes.
    """

    def __init__(self, plan: LaunchPlan, limits: Limits) -> None:
        self._probe, self._limits = Probe(plan), limits
        self._every = min(limits.probe_every_s, limits.stall_s)
        self._sleepy = plan.handover is not None and bool(plan.handover.keep_s)
        self.reset()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._probe.__exit__(kind, e, tb)

    def reset(self) -> None:
        """Begin anew, after a restart."""
        self._moved = time.monotonic()
        self._due = self._moved + self._every
        self._shown = b""  # the slots of a busy server when last looked at
        self._quiet = b""  # the slots of an idle server after it last gave a token
        self._cpu = (self._moved, 0.0)  # when last looked at, and the processor time used until then

    def wedged(self, child: Child) -> str:
        """Why the server counts as wedged; empty when it does not, or it is not yet time to look."""
        if time.monotonic() < self._due:
            return ""
        if self._sleepy and not self._computes(child, time.monotonic()):
            self._moved = time.monotonic()
            self._due = self._moved + self._every
            return ""
        why = self._look()
        now = time.monotonic()
        self._due = now + self._every
        computing = self._computes(child, now)
        if not why:
            self._moved = now
            return ""
        limit = self._limits.stall_s * (PATIENCE if computing else 1)
        return f"{why} ({now - self._moved:.0f} s)" if now - self._moved >= limit and child.poll() is None else ""

    def _look(self) -> str:
        """Why no progress was seen; empty when some was."""
        stall = self._limits.stall_s
        state, shown = self._probe.slots(stall)
        if state == "silent":
            return "no answer about its requests"
        if state == "busy":
            moved, self._shown = shown != self._shown, shown
            return "" if moved else "no progress on a request"
        self._shown = b""
        if state == "idle" and shown == self._quiet:
            return ""
        outcome, why = self._probe.token(stall)
        if outcome in ("silent", "broken"):
            return why
        self._quiet = self._probe.slots(stall)[1] if state == "idle" else b""
        return ""

    def _computes(self, child: Child, now: float) -> bool:
        (then, before), used = self._cpu, child.cpu_seconds()
        self._cpu = (now, used)
        return used - before > COMPUTING * (now - then)
