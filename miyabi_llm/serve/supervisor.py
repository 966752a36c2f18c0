"""One server, kept alive: started, proven, watched, restarted when it dies or wedges, given up when it keeps dying."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from miyabi_llm.config import Settings
from miyabi_llm.errors import MachineLimit, MiyabiError, ServerFailed
from miyabi_llm.proc import Child, launch, ports
from miyabi_llm.serve.check import Checked, check
from miyabi_llm.serve.failure import explain
from miyabi_llm.serve.prepare import lay_out, put_away
from miyabi_llm.serve.ready import Stopped, port_of, wait_ready
from miyabi_llm.serve.values import Limits, State
from miyabi_llm.types import Event, LaunchPlan, OnEvent, counted

POLL = 0.25  # seconds between looks at a running server


@dataclass(frozen=True, slots=True)
class Status:
    """How the server stands now, for the state file."""

    state: State
    pid: int = 0
    nonce: str = ""
    restarts: int = 0
    error: str | None = None
    checked: Checked | None = None
    ctx: int | None = None


class Supervisor:
    """Guards one server. `start` it, wait on `ended`, look at `failure`, `stop` it.

    `notify` is told every change of status, from whichever thread makes it.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        env: Mapping[str, str],
        log: Path,
        limits: Limits,
        on_event: OnEvent,
        notify: Callable[[Status], None],
    ) -> None:
        self._plan, self._env, self._log, self._limits = plan, env, log, limits
        self._on_event, self._notify = on_event, notify
        self._status = Status("loading")
        self._child: Child | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # so that no launch slips in behind a stop
        self._thread: threading.Thread | None = None
        self._deaths: deque[float] = deque()
        self.ended = threading.Event()
        self.failure: MiyabiError | None = None

    def start(self) -> float:
        """Start the server and wait until it is ready; returns the seconds it took. Raises what `wait_ready` raises."""
        try:
            took = self._bring_up("loading")
        except MachineLimit as e:
            if not self._shrink(e):
                raise
            took = self._bring_up("loading")
        self._thread = threading.Thread(target=self._watch, name=f"watch {self._plan.endpoint.model}", daemon=True)
        self._thread.start()
        return took

    def check(self, settings: Settings, *, asks: bool) -> None:
        """Measure the server that is ready and raise its alarms; with `asks`, send it a short prompt twice."""
        with self._lock:
            child = self._child
        if child is not None and not self._stopping.is_set():
            self._say(checked=check(self._plan, child, settings, self._on_event, asks=asks))

    def stop(self, grace: float | None = None) -> None:
        """End the server and all it started, after at most `grace` seconds; returns when they are gone."""
        self._stopping.set()
        with self._lock:
            child = self._child
        if child is not None:
            child.stop(self._limits.grace_s if grace is None else grace)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        put_away(self._plan)
        self.ended.set()

    def cancel(self) -> None:
        """Make a `start` in another frame or thread give up. Safe in a signal handler."""
        self._stopping.set()

    def drain(self) -> None:
        """Wait until a ready server has no request in progress, `grace_s` at most; a `stop` meanwhile ends the wait."""
        with self._lock:
            child = self._child
        if child is None or self._status.state != "ready":
            return
        from miyabi_llm.serve.probe import Probe

        deadline, told = time.monotonic() + self._limits.grace_s, False
        with Probe(self._plan) as probe:
            # one that is busy with a long prompt may not find the time to say so
            while probe.slots(1.0)[0] in ("busy", "silent") and time.monotonic() < deadline:
                if not told:
                    text = f"requests are in progress: they have {self._limits.grace_s:g} s to end"
                    self._on_event(Event("phase", "stopping", text))
                    told = True
                if child.wait(0.1) is not None:
                    return

    def _shrink(self, reason: MiyabiError) -> bool:
        """Go on with the smaller plan, if memory was the reason and there is one."""
        smaller = self._plan.smaller
        if smaller is None or not isinstance(reason, MachineLimit):
            return False
        text = f"{reason.message.splitlines()[0]}; once more with a context of {smaller.ctx} tokens"
        self._on_event(Event("warning", "memory", text))
        self._plan = smaller
        return True

    def _bring_up(self, state: State) -> float:
        host, port = _address(self._plan), port_of(self._plan)
        ports.refuse_busy(host, port)
        with self._lock:
            if self._stopping.is_set():
                raise Stopped(f"{self._plan.endpoint.model}: stopped before it was started")
            assert self._plan.argv is not None
            lay_out(self._plan)
            child = launch(self._plan.argv, self._env, self._plan.env, self._log, limit=self._limits.log_bytes)
            self._child = child
        self._say(state=state, nonce=child.nonce)
        try:
            took = wait_ready(child, self._plan, self._limits, self._on_event, self._stopping)
        except BaseException:  # Ctrl-C too: whatever ends the wait, the child ends first
            child.stop(min(1.0, self._limits.grace_s))
            raise
        self._say(state="ready", pid=child.pid, error=None, ctx=self._plan.ctx)
        return took

    def _watch(self) -> None:
        from miyabi_llm.serve.watchdog import Watchdog  # brings httpx, which the start has loaded by now

        with Watchdog(self._plan, self._limits) as dog:
            while (child := self._child) is not None and not self._stopping.is_set():
                ended = child.wait(POLL)
                if self._stopping.is_set():
                    break
                reason: MiyabiError | None = None
                if ended is not None:
                    child.stop(1.0)  # collect what it left behind
                    reason = explain(self._plan, ended, child.tail(), ready=True)
                elif why := dog.wedged(child):
                    child.kill()
                    reason = ServerFailed(f"{self._plan.endpoint.model}: {self._plan.backend} is wedged: {why}")
                if reason is not None and not self._stopping.is_set():
                    if not self._restart(reason):
                        break
                    dog.reset()
        if not self._stopping.is_set():  # else `stop` says when it is over
            self.ended.set()

    def _restart(self, reason: MiyabiError) -> bool:
        """Bring the server up again, waiting longer each time. False when it is given up or asked to stop."""
        while not self._stopping.is_set():
            now = time.monotonic()
            self._deaths.append(now)
            self._shrink(reason)
            while now - self._deaths[0] > self._limits.crash_window_s:
                self._deaths.popleft()
            self._say(restarts=self._status.restarts + 1, state="restarting", pid=0, error=reason.message)
            if len(self._deaths) >= self._limits.crashes:
                self._give_up(reason)
                return False
            pause = min(self._limits.backoff_limit_s, self._limits.backoff_s * 2 ** (len(self._deaths) - 1))
            self._on_event(Event("warning", "restart", f"{reason.message}\nrestarting in {pause:g} s"))
            if self._stopping.wait(pause):
                return False
            try:
                self._bring_up("restarting")
            except Stopped:
                return False
            except MiyabiError as e:
                reason = e
            else:
                self._on_event(Event("phase", "restarted", self._plan.endpoint.model))
                return True
        return False

    def _give_up(self, reason: MiyabiError) -> None:
        count, minutes = len(self._deaths), self._limits.crash_window_s / 60
        message = f"given up after {counted(count, 'death')} in {minutes:g} min; the last: {reason.message}"
        self.failure = ServerFailed(message, hint=reason.hint, **reason.details)
        self._say(state="dead", nonce="", error=message)

    def _say(self, **changes: object) -> None:
        self._status = replace(self._status, **changes)  # type: ignore[arg-type]
        self._notify(self._status)


def _address(plan: LaunchPlan) -> str:
    """The host the server will bind, as far as its endpoint tells."""
    from urllib.parse import urlsplit

    return urlsplit(plan.endpoint.base_url).hostname or "127.0.0.1"
