"""What runs: listed, found, shown, stopped. Nothing is signalled that is not proven to be ours."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import suppress

from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, Missing, MiyabiError, ServerFailed
from miyabi_llm.proc import identity, logs, ports
from miyabi_llm.refs import ModelRef
from miyabi_llm.serve.many.values import BACKEND as MANY
from miyabi_llm.serve.many.values import ModelRow
from miyabi_llm.serve.state import LOST, Record, RunDir
from miyabi_llm.serve.values import ServerInfo
from miyabi_llm.types import Artifact, Endpoint, LaunchPlan, OnEvent, silent

STOP_S = 30.0  # seconds for a supervisor to end its server and itself: more than two graces, of requests and of exit


def ps(settings: Settings) -> list[ServerInfo]:
    """Every server we started that runs, and the detached ones that died, by name. Changes nothing."""
    folder = RunDir(settings.run)
    return [info(folder, r) for r in folder.all() if r.alive or r.kind == "detached"]


def promised(settings: Settings) -> frozenset[int]:
    """The ports of our servers that run or load: one that loads does not listen yet, which may take a minute."""
    return frozenset(r.port for r in RunDir(settings.run).all() if r.alive)


def info(folder: RunDir, record: Record) -> ServerInfo:
    """How the server of `record` stands now."""
    alive = record.alive
    return ServerInfo(
        name=record.name,
        ref=record.ref,
        backend=record.backend,
        state=record.state if alive else "dead",
        kind=record.kind,
        pid=record.pid if alive else 0,
        supervisor=record.supervisor.pid if alive else 0,
        port=record.port,
        endpoint=folder.endpoint(record),
        started=record.started,
        log=folder.log(record.name),
        memory=_resident(record) if alive and record.pid else 0,
        ctx=record.ctx,
        restarts=record.restarts,
        error=record.error if alive else record.error or LOST,
        fit=record.fit,
        alarms=record.alarms,
        models=_models(folder, record) if alive and record.state == "ready" else (),
    )


def _models(folder: RunDir, record: Record) -> tuple[ModelRow, ...]:
    """How the models of a front of many stand, by its own words."""
    if record.backend != MANY:
        return ()
    from miyabi_llm.serve.many import look  # brings httpx

    return look.rows(folder.endpoint(record))


def running_as(name: str, settings: Settings) -> ServerInfo | None:
    """The detached server of that name if it is up and ready."""
    folder = RunDir(settings.run)
    record = folder.read(name)
    if record is None or record.kind != "detached" or record.state != "ready" or not record.alive:
        return None
    return info(folder, record)


def find(settings: Settings, target: str) -> Record:
    """The record of the server called `target`, or serving the model `target`. Raises Missing, BadUsage if several."""
    records = RunDir(settings.run).all()
    if exact := [r for r in records if r.name == target]:
        return exact[0]
    with suppress(MiyabiError):
        ref = str(ModelRef.parse(target))
        records = [r for r in records if r.ref == ref or r.model == target]
        if len(records) == 1:
            return records[0]
        if records:
            names = ", ".join(r.name for r in records)
            raise BadUsage(f"several servers serve {target}", hint=f"Name one of {names}.") from None
    raise Missing(f"no server {target!r} runs", hint="`miyabi-llm ps` lists those that do.")


def stop(settings: Settings, target: str | None = None, on_event: OnEvent = silent) -> list[ServerInfo]:
    """Stop the server `target`, or all servers when None; returns those that were stopped, when they are gone.

    Raises Missing for an unknown name, ServerFailed when a process does not end.
    """
    folder = RunDir(settings.run)
    if target is None:
        records = [r for r in folder.all() if r.kind != "temporary"]
    else:
        records = [find(settings, target)]
        if records[0].kind == "temporary" and records[0].alive:
            raise BadUsage(
                f"{records[0].name} belongs to a running command (pid {records[0].supervisor.pid})",
                hint="End that command instead.",
            )
    return [_stop(folder, r) for r in records]


def _stop(folder: RunDir, record: Record) -> ServerInfo:
    told = info(folder, record)
    if record.alive and _held(folder, record.name):
        identity.send(record.supervisor, signal.SIGTERM)
        if not identity.wait_gone(record.supervisor, STOP_S):
            identity.send(record.supervisor, signal.SIGKILL)
            if not identity.wait_gone(record.supervisor, 5.0):
                raise ServerFailed(f"{record.name}: its supervisor (pid {record.supervisor.pid}) does not end")
    latest = folder.read(record.name) or record
    for nonce in {record.nonce, latest.nonce} - {""}:
        identity.kill_marked(nonce)
    folder.forget(record.name)
    return told


def _held(folder: RunDir, name: str) -> bool:
    """Whether a supervisor holds the name: a state file alone proves nothing."""
    try:
        fd = os.open(folder.path / f"{name}.lock", os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return True  # no locks on this file system: pid, start time and boot must do
    finally:
        os.close(fd)
    return False


def last_lines(settings: Settings, target: str, count: int) -> list[str]:
    """The last `count` lines of the log of a server, or of one that ended. Raises Missing."""
    folder = RunDir(settings.run)
    with suppress(BadUsage):
        if (log := folder.log(target)).exists():
            return logs.last_lines(log, count)
    return logs.last_lines(folder.log(find(settings, target).name), count)


def follow(settings: Settings, target: str) -> Iterator[str]:
    """What the server writes from now on, until its supervisor ends. Raises Missing."""
    record = find(settings, target)
    return logs.follow(RunDir(settings.run).log(record.name), lambda: not record.alive)


def find_running(artifact: Artifact, settings: Settings) -> Endpoint | None:
    """The endpoint of a lasting server that serves these very bytes, is ours, and answers; None when there is none."""
    from miyabi_llm.serve.probe import Probe

    folder = RunDir(settings.run)
    wanted = {f.sha256 for f in artifact.files}
    for record in folder.all():
        if record.kind == "temporary" or record.state != "ready" or not wanted or set(record.sha256) != wanted:
            continue
        if not record.alive or ports.listens(_tree(record), record.port) is False:
            continue
        endpoint = folder.endpoint(record)
        with Probe(LaunchPlan(record.backend, None, {}, endpoint)) as probe:
            if probe.identity()[0] == "ours":
                return endpoint
    return None


def _tree(record: Record) -> list[int]:
    import psutil

    try:
        return [p.pid for p in psutil.Process(record.supervisor.pid).children(recursive=True)]
    except psutil.Error:
        return []


def _resident(record: Record) -> int:
    """Resident bytes of the server and its descendants; pages they share with each other count more than once."""
    import psutil

    total = 0
    with suppress(psutil.Error):
        server = psutil.Process(record.pid)
        for process in (server, *server.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total
