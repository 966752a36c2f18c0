"""When a server is ready: it lives, the port is its own, it knows our key and our model, and a token came out of it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from miyabi_llm.errors import MiyabiError, PortTaken, ServerFailed
from miyabi_llm.proc import Child, ports
from miyabi_llm.serve.attach import hand_over
from miyabi_llm.serve.failure import explain, last_words
from miyabi_llm.serve.values import Limits
from miyabi_llm.types import Event, LaunchPlan, OnEvent

if TYPE_CHECKING:
    from miyabi_llm.serve.probe import Probe

QUICK, SLOW = 0.02, 0.05  # seconds between looks: in the first seconds, and after
QUICK_FOR = 5.0
ACTIVITY_EVERY = 1.0  # seconds between looks at the processor time, which cost more than a look at the log


class Stopped(ServerFailed):
    """The wait ended because somebody asked the server to stop."""

    code = "stopped"


def wait_ready(child: Child, plan: LaunchPlan, limits: Limits, on_event: OnEvent, cancelled: threading.Event) -> float:
    """Wait until `child` is proven ready; returns the seconds it took. Leaves the child running in any case.

    Raises PortTaken when a stranger answers on its port, MachineLimit when memory ran out, BackendMissing when the
    program cannot be started, ServerFailed when it dies, is silent for too long or is not what was started.
    """
    from miyabi_llm.serve.probe import Probe  # brings httpx, while the server is already loading

    begin, given = time.monotonic(), False
    activity = _Activity(child)
    on_event(Event("phase", "load", plan.endpoint.model))
    with Probe(plan) as probe:
        while True:
            if cancelled.is_set():
                raise Stopped(f"{plan.endpoint.model}: stopped while it was loading")
            if (ended := child.poll()) is not None:
                raise explain(plan, ended, child.tail(), ready=False)
            if probe.healthy() and child.poll() is None:
                if not given:
                    _refuse_stranger(child, plan)
                    _hand_over(child, plan, on_event, cancelled)
                    given = True
                if _proven(child, plan, probe, limits):
                    return time.monotonic() - begin
            waited = time.monotonic() - begin
            if activity.silent_for() > limits.silent_s or waited > limits.load_s:
                raise _too_slow(child, plan, activity.silent_for(), waited)
            child.wait(QUICK if waited < QUICK_FOR else SLOW)


def _hand_over(child: Child, plan: LaunchPlan, on_event: OnEvent, cancelled: threading.Event) -> None:
    """Hand the plan's model over; when that breaks off, say why: we were stopped, the server died, or it said no."""
    try:
        hand_over(plan, on_event)
    except MiyabiError:
        ended = child.wait(QUICK)  # a server that dies breaks the connection first
        if cancelled.is_set():
            raise Stopped(f"{plan.endpoint.model}: stopped while it was loading") from None
        if ended is not None:
            raise explain(plan, ended, child.tail(), ready=False) from None
        raise


def _proven(child: Child, plan: LaunchPlan, probe: Probe, limits: Limits) -> bool:
    """Ownership, identity, one token, ownership again. False means: not yet."""
    if child.poll() is not None:
        return False
    _refuse_stranger(child, plan)
    verdict, why = probe.identity()
    if verdict == "stranger" and child.poll() is None:
        raise ServerFailed(
            f"the server on {plan.endpoint.base_url} is not the one we started: {why}",
            hint="Use another port with --port.",
        )
    if verdict != "ours":
        return False
    outcome, why = probe.token(limits.first_token_s)
    if outcome in ("loading", "broken") or child.poll() is not None:
        return False
    if outcome == "silent" or (outcome == "refused" and "with 501" not in why):  # 501: embeddings only
        raise ServerFailed(
            f"{plan.endpoint.model}: {plan.backend} is up but does not answer: {why}{last_words(child.tail())}",
            hint="`miyabi-llm doctor` judges this machine.",
            log=child.tail(),
        )
    _refuse_stranger(child, plan)
    return True


def _refuse_stranger(child: Child, plan: LaunchPlan) -> None:
    """Raise PortTaken when we can see that the listener is not in the child's tree."""
    port = port_of(plan)
    if ports.listens(child.pids(), port) is False and child.poll() is None:
        who = ports.holder(port) or "another process"
        raise PortTaken(
            f"port {port} is answered by {who}, not by the server we started", hint="Use another port with --port."
        )


def port_of(plan: LaunchPlan) -> int:
    """The port of the plan's endpoint."""
    url = urlsplit(plan.endpoint.base_url)
    return url.port or (443 if url.scheme == "https" else 80)


class _Activity:
    """How long a loading server has done nothing: nothing written to its log, no processor time used."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._seen = child.said()
        self._cpu = 0.0
        self._last = self._looked = time.monotonic()

    def silent_for(self) -> float:
        now = time.monotonic()
        if (said := self._child.said()) != self._seen:
            self._seen, self._last = said, now
        elif now - self._looked > ACTIVITY_EVERY:
            cpu = self._child.cpu_seconds()
            if cpu - self._cpu > 0.02 * (now - self._looked):  # an idle event loop uses less
                self._last = now
            self._cpu, self._looked = cpu, now
        return now - self._last


def _too_slow(child: Child, plan: LaunchPlan, silent: float, waited: float) -> MiyabiError:
    message = (
        f"{plan.endpoint.model}: {plan.backend} was not ready after {waited:.0f} s, the last {silent:.0f} s silent"
    )
    return ServerFailed(message + last_words(child.tail()), hint="`miyabi-llm doctor` judges this machine.")
