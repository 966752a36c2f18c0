"""Serve beyond the end of this command: a supervisor of its own, in its own session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe

from miyabi_llm import backends
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, MiyabiError, ServerFailed
from miyabi_llm.serve.manage import info
from miyabi_llm.serve.run import DEFAULT
from miyabi_llm.serve.state import RunDir, Running, explained, name_for
from miyabi_llm.serve.values import Limits, ServerInfo
from miyabi_llm.types import Artifact, Event, LaunchPlan, OnEvent, silent


@dataclass(frozen=True, slots=True)
class Order:
    """What the detached supervisor is to do; it travels over a pipe, never over a disk, for it holds the key."""

    plan: LaunchPlan
    settings: Settings
    name: str
    artifact: Artifact | None
    limits: Limits


def detach(
    plan: LaunchPlan,
    settings: Settings,
    on_event: OnEvent = silent,
    *,
    artifact: Artifact | None = None,
    name: str | None = None,
    limits: Limits = DEFAULT,
) -> ServerInfo:
    """Start a server that goes on when we end; returns when it is ready. The plan must carry a key if its backend can.

    When a server of that name runs already, waits until that one is ready and returns it. Raises what `running`
    raises.
    """
    if plan.argv is None:
        raise BadUsage(f"{plan.backend} runs by itself: there is nothing to detach", hint=plan.endpoint.base_url)
    known = backends.table().get(plan.backend)
    if not plan.endpoint.key and (known is None or known.capabilities.key):
        raise BadUsage("a detached server needs a key")
    order = Order(plan, settings, name or name_for(plan.endpoint.model), artifact, limits)
    folder = RunDir(settings.run)
    with explained(settings.run):
        folder.ensure()
        folder.sweep()
    if (there := folder.read(order.name)) is not None and there.alive:
        return _join(folder, order, on_event)
    try:
        _start(folder, order, on_event)
    except Running:  # another command was faster
        return _join(folder, order, on_event)
    record = folder.read(order.name)
    if record is None:
        raise ServerFailed(f"{order.name} ended as soon as it was ready", hint=f"`miyabi-llm logs {order.name}`")
    return info(folder, record)


def _start(folder: RunDir, order: Order, on_event: OnEvent) -> None:
    ours, theirs = Pipe()
    with explained(folder.path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        errors = os.open(folder.supervisor_log(order.name), flags, 0o600)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "miyabi_llm.serve.daemon", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(theirs.fileno(),),
            env=dict(order.settings.env) or None,
            start_new_session=True,
        )
    finally:
        os.close(errors)
        theirs.close()
    try:
        with ours:
            ours.send(order)
            _await(ours, order, on_event)
    except BaseException:  # Ctrl-C too: a server that was not ready in time must not appear later
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    # It is our child until we end: a long-lived caller must collect it when it ends before us.
    threading.Thread(target=process.wait, name=f"collect {order.name}", daemon=True).start()


def _await(ours: Connection, order: Order, on_event: OnEvent) -> None:
    """Pass its events on until it is ready. Raises what stopped it."""
    while True:
        try:
            said = ours.recv()
        except (EOFError, OSError):
            raise ServerFailed(
                f"{order.name}: its supervisor ended without a word", hint=f"`miyabi-llm logs {order.name}`"
            ) from None
        if isinstance(said, MiyabiError):
            raise said
        if not isinstance(said, Event):
            continue
        if said.kind == "done":
            return
        on_event(said)


def _join(folder: RunDir, order: Order, on_event: OnEvent) -> ServerInfo:
    """Wait for the server of that name that another command started."""
    on_event(Event("warning", order.name, "runs already; `miyabi-llm stop` it first to change how it runs"))
    deadline = time.monotonic() + order.limits.load_s
    while time.monotonic() < deadline:
        record = folder.read(order.name)
        if record is not None and record.alive and record.state == "ready":
            return info(folder, record)
        if record is not None and not record.alive:
            raise ServerFailed(f"{order.name}: {record.error or 'died'}", hint=f"`miyabi-llm logs {order.name}`")
        time.sleep(0.1)
    raise ServerFailed(f"{order.name} is not ready", hint=f"`miyabi-llm logs {order.name}`")
