"""What holds models: a host loads and unloads them by name and says where each one answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from miyabi_llm import backends
from miyabi_llm.errors import MiyabiError, ServerFailed
from miyabi_llm.serve.attach import attach
from miyabi_llm.serve.many.values import Loaded
from miyabi_llm.serve.state import name_for
from miyabi_llm.serve.supervisor import Status, Supervisor
from miyabi_llm.serve.values import Limits
from miyabi_llm.types import LaunchPlan, OnEvent

MakePlan = Callable[[str], LaunchPlan]  # alias -> a plan with a free port and a fresh key


class Host(Protocol):
    """Holds the models it was made for. `load` and `unload` return when it is so; both raise MiyabiError."""

    def models(self) -> tuple[str, ...]:
        """The aliases it can load."""

    async def load(self, name: str) -> Loaded:
        """Have the model answer."""

    async def unload(self, name: str) -> None:
        """Free its memory; nothing happens when it is not loaded."""

    async def memory(self, name: str) -> int | None:
        """Resident bytes of its processes now; None when that cannot be seen."""

    async def lost(self) -> Mapping[str, str]:
        """Models that were loaded and died since they were, with the reason."""

    async def close(self) -> None:
        """End everything."""


@dataclass
class Place:
    """Where hosts work: the environment of their children, a folder for logs and presets, and who is told."""

    env: Mapping[str, str]
    work: Path
    on_event: OnEvent
    limits: Limits = field(default_factory=Limits)


class ProcessHost:
    """One supervised server for each model, started when it is wanted; one that can sleep sleeps instead of ending.

    A server that is not ours (a plan without argv) is attached to, and told to load and unload.
    """

    def __init__(self, names: tuple[str, ...], make: MakePlan, place: Place) -> None:
        self._names, self._make, self._place = names, make, place
        self._running: dict[str, tuple[LaunchPlan, Supervisor | None]] = {}
        self._status: dict[str, Status] = {}
        self._asleep: set[str] = set()

    def models(self) -> tuple[str, ...]:
        """The aliases it can load."""
        return self._names

    async def load(self, name: str) -> Loaded:
        """Start, wake or attach to the model's server. Raises what `Supervisor.start` raises."""
        there = self._running.get(name)
        if there is not None and name in self._asleep:
            await asyncio.to_thread(_command, there[0], "load")
            self._asleep.discard(name)
            return Loaded(there[0].endpoint, there[0].ctx, there[0])
        plan = await asyncio.to_thread(self._make, name)
        await asyncio.to_thread(self._start, name, plan)
        return Loaded(plan.endpoint, plan.ctx, plan)

    async def unload(self, name: str) -> None:
        """Put the model's server to sleep where it can, else end it."""
        there = self._running.get(name)
        if there is None or name in self._asleep:
            return
        plan, supervisor = there
        if supervisor is None or backends.get(plan.backend).capabilities.sleep:
            with suppress(MiyabiError):  # one that cannot sleep after all is ended
                await asyncio.to_thread(_command, plan, "unload")
                self._asleep.add(name)
                return
        if supervisor is not None:
            await asyncio.to_thread(supervisor.stop)
        self._running.pop(name, None)

    async def memory(self, name: str) -> int | None:
        """Resident bytes of the server and its descendants."""
        status = self._status.get(name)
        return await asyncio.to_thread(resident, [status.pid]) if status is not None and status.pid else None

    async def lost(self) -> Mapping[str, str]:
        """Servers that were given up; those that are being restarted are not lost."""
        gone = {}
        for name, (_, supervisor) in list(self._running.items()):
            if supervisor is not None and supervisor.ended.is_set():
                failure = supervisor.failure
                gone[name] = failure.message if failure is not None else "its server ended"
                del self._running[name]
                self._asleep.discard(name)
        return gone

    async def close(self) -> None:
        """End every server that is ours."""
        for name, (_, supervisor) in list(self._running.items()):
            if supervisor is not None:
                await asyncio.to_thread(supervisor.stop)
            del self._running[name]

    def _start(self, name: str, plan: LaunchPlan) -> None:
        place = self._place
        if plan.argv is None:
            attach(plan, place.on_event, limits=place.limits)
            self._running[name] = (plan, None)
            return
        log = place.work / f"{name_for(name)}.log"

        def notify(status: Status) -> None:
            self._status[name] = status

        supervisor = Supervisor(plan, place.env, log, place.limits, place.on_event, notify)
        supervisor.start()
        self._running[name] = (plan, supervisor)


def _command(plan: LaunchPlan, what: str) -> None:
    with backends.get(plan.backend).control(plan.endpoint) as control:
        if what == "unload":
            control.unload(plan.endpoint.model)
        elif control.load(plan.endpoint.model).state == "failed":
            raise ServerFailed(f"{plan.endpoint.model}: {plan.backend} could not load it again")


def resident(pids: list[int]) -> int | None:
    """Resident bytes of processes and all their descendants; None when none can be seen."""
    import psutil

    total, seen = 0, set()
    for pid in pids:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.Error):
                    if one.pid not in seen:
                        seen.add(one.pid)
                        total += one.memory_info().rss
    return total or None
