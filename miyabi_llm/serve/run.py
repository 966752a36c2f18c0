"""Serve for as long as a block runs, or in the foreground until a signal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import FrameType

from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage
from miyabi_llm.proc import identify
from miyabi_llm.serve.attach import attach
from miyabi_llm.serve.ready import Stopped, port_of
from miyabi_llm.serve.state import Record, RunDir, explained, name_for, write_private
from miyabi_llm.serve.supervisor import Status, Supervisor
from miyabi_llm.serve.values import Kind, Limits
from miyabi_llm.types import Artifact, Endpoint, Event, LaunchPlan, OnEvent, silent

DEFAULT = Limits()


@contextmanager
def running(
    plan: LaunchPlan,
    settings: Settings,
    on_event: OnEvent = silent,
    *,
    artifact: Artifact | None = None,
    limits: Limits = DEFAULT,
) -> Iterator[Endpoint]:
    """Start what `plan` says, prove it ready, and end it with the block; restarts it if it dies meanwhile.

    A plan without argv is attached to: proven too, but nothing is started or ended. Raises PortTaken, BackendMissing,
    MachineLimit or ServerFailed, with the server's last words.
    """
    if plan.argv is None:
        yield attach(plan, on_event, limits=limits)
        return
    name = f"{name_for(plan.endpoint.model)[:40]}.{os.getpid()}.{next(_COUNT)}"
    with _guarded(plan, settings, on_event, Job("temporary", name, artifact, limits)) as supervisor:
        supervisor.start()
        supervisor.check(settings, asks=False)
        yield plan.endpoint


def _counter() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


_COUNT = _counter()


@dataclass(frozen=True, slots=True)
class Job:
    """How a server is kept: what kind, under which name, of which model."""

    kind: Kind
    name: str
    artifact: Artifact | None
    limits: Limits


@contextmanager
def _guarded(plan: LaunchPlan, settings: Settings, on_event: OnEvent, job: Job) -> Iterator[Supervisor]:
    """A supervisor with its state file, name and log; nothing of it but a log is left afterwards."""
    folder = RunDir(settings.run)
    with ExitStack() as held:
        with explained(settings.run):
            folder.sweep()
            held.enter_context(folder.held(job.name))
            folder.forget(job.name, log=False)
            folder.fresh_log(job.name)
            if plan.endpoint.key and job.kind != "temporary":
                write_private(folder.key(job.name), plan.endpoint.key.reveal().encode() + b"\n")
        record = _record(plan, job)

        def notify(s: Status) -> None:
            nonlocal record
            record = replace(record, state=s.state, pid=s.pid, nonce=s.nonce, restarts=s.restarts, error=s.error)
            record = replace(record, ctx=s.ctx or record.ctx)
            if s.checked is not None:
                record = replace(record, fit=s.checked.fit, alarms=s.checked.alarms)
            try:
                folder.write(record)
            except OSError as e:  # a full disk must not end a server that works
                on_event(Event("warning", "state", f"{settings.run} cannot be written: {e.strerror}"))

        supervisor = Supervisor(plan, settings.env, folder.log(job.name), job.limits, on_event, notify)
        try:
            yield supervisor
        finally:
            supervisor.stop()
            if supervisor.failure is None or job.kind != "detached":
                folder.forget(job.name, log=job.kind == "temporary")


def forever(
    plan: LaunchPlan,
    settings: Settings,
    on_event: OnEvent = silent,
    *,
    artifact: Artifact | None = None,
    name: str | None = None,
    limits: Limits = DEFAULT,
) -> None:
    """Serve in the foreground until SIGINT or SIGTERM; call it from the main thread.

    When ready it sends one `done` event with the endpoint in its data, and the file its key lies in. The first signal
    ends the server when its requests in progress are done, after the grace at the latest; a second one at once.
    Raises Running when the name is taken, and ServerFailed when the server had to be given up.
    """
    job = Job("foreground", name or name_for(plan.endpoint.model), artifact, limits)
    supervise(plan, settings, on_event, job)


def supervise(plan: LaunchPlan, settings: Settings, on_event: OnEvent, job: Job) -> None:
    """What `forever` and the detached supervisor have in common."""
    if plan.argv is None:
        raise BadUsage(f"{plan.backend} runs by itself: there is nothing to start", hint=plan.endpoint.base_url)
    with _guarded(plan, settings, on_event, job) as supervisor, _signals(supervisor):
        try:
            took = supervisor.start()
        except Stopped:
            return
        supervisor.check(settings, asks=True)
        endpoint = plan.endpoint
        if endpoint.key:
            endpoint = replace(endpoint, key_file=RunDir(settings.run).key(job.name))
        on_event(Event("done", "ready", f"after {took:.1f} s", data={"endpoint": endpoint, "name": job.name}))
        while not supervisor.ended.wait(0.5):
            pass
        if supervisor.failure is not None:
            raise supervisor.failure


@contextmanager
def _signals(supervisor: Supervisor) -> Iterator[None]:
    """While the block runs, a signal ends the supervisor: the first gently, the second at once."""
    count = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        supervisor.cancel()
        # The stop itself takes locks and time: not in a signal handler.
        threading.Thread(target=_end, args=(supervisor,), kwargs={"gently": count == 1}, daemon=True).start()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.signal(n, handle) for n in numbers}
    try:
        yield
    finally:
        for n, old in before.items():
            signal.signal(n, old)


def _end(supervisor: Supervisor, *, gently: bool) -> None:
    if gently:
        supervisor.drain()
    supervisor.stop(None if gently else 0.0)


def _record(plan: LaunchPlan, job: Job) -> Record:
    me = identify(os.getpid())
    assert me is not None
    e = plan.endpoint
    return Record(
        name=job.name,
        ref=str(job.artifact.ref) if job.artifact else e.model,
        sha256=tuple(f.sha256 for f in job.artifact.files) if job.artifact else (),
        backend=plan.backend,
        kind=job.kind,
        state="loading",
        base_url=e.base_url,
        model=e.model,
        dialects=e.dialects,
        port=port_of(plan),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        supervisor=me,
        keyed=bool(e.key) and job.kind != "temporary",
        ctx=plan.ctx,
    )
