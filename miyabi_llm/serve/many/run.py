"""The front as a process: hosts for an order, the address, the first models, until a signal."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.errors import MiyabiError
from miyabi_llm.serve.many.guard import Guard
from miyabi_llm.serve.many.hosts import Host, MakePlan, Place, ProcessHost
from miyabi_llm.serve.many.pool import Pool
from miyabi_llm.serve.many.preset import Unpresentable
from miyabi_llm.serve.many.router import RouterHost
from miyabi_llm.serve.many.values import ModelOrder, Order
from miyabi_llm.types import Event, LaunchPlan, Secret

ROUTED = "llama-cpp"  # the backend whose server is its own router
ECHO_S = 0.1  # seconds between looks at the logs of the models' servers
GOODBYE_S = 0.5  # for answers that are still on their way when a signal comes: who drains did so before


@dataclass(frozen=True)
class Work:
    """What the front works with: its order and key, the makers of plans, its children's environment, its mouth."""

    order: Order
    key: Secret | None
    make: MakePlan
    env: Mapping[str, str]
    say: Callable[[str], None]


async def front(work: Work) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. The reason of a failure has been said then."""
    order = work.order
    _tidy(order.work)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    echo = asyncio.create_task(_echo(order.work))
    place = Place(work.env, order.work, lambda e: _tell(e, work.say))
    pool: Pool | None = None
    try:
        pool = Pool(await asyncio.to_thread(hosts, work, place), order.budget, work.say)
        return await _serve(pool, work, stop)
    except MiyabiError as e:
        await _hush(pool, echo)
        work.say(f"cannot start: {e.message}" + (f" {e.hint}" if e.hint else ""))  # last: whoever started us reads it
        return e.exit_code
    finally:
        await _hush(pool, echo)


async def _hush(pool: Pool | None, echo: asyncio.Task[None]) -> None:
    """End the hosts, then let the last of their words out; a second time does nothing."""
    if pool is not None:
        await pool.close()
    echo.cancel()
    with suppress(asyncio.CancelledError):
        await echo


async def _serve(pool: Pool, work: Work, stop: asyncio.Event) -> int:
    from aiohttp import web

    from miyabi_llm.serve.many.front import LOAD_S, Front

    order = work.order
    the_front = Front(pool, Guard(order.host, work.key, order.hosts, order.origins))
    runner = web.AppRunner(
        the_front.app(), handler_cancellation=True, access_log=None, shutdown_timeout=GOODBYE_S, keepalive_timeout=75
    )
    await runner.setup()
    tasks = []
    try:
        await web.TCPSite(runner, order.host, order.port).start()
        for name in first(order):
            load = asyncio.create_task(pool.ensure(pool.models[name], deadline_s=LOAD_S))
            stopped = asyncio.create_task(stop.wait())
            tasks += [load, stopped]
            await asyncio.wait((load, stopped), return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                return 0
            await load
        the_front.ready = True
        tasks.append(asyncio.create_task(pool.tend()))
        waiting = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait((waiting, tasks[-1]), return_when=asyncio.FIRST_COMPLETED)
        if tasks[-1] in done:
            tasks[-1].result()  # it never ends by itself: a bug, with its traceback
        return 0
    except OSError as e:
        work.say(f"cannot listen on {order.host}:{order.port}: {e.strerror}")
        return 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await runner.cleanup()


def first(order: Order) -> tuple[str, ...]:
    """The models loaded before the address is ready: the pinned ones, else the first on the list. Pure."""
    return tuple(m.alias for m in order.models if m.pin) or (order.models[0].alias,)


def hosts(work: Work, place: Place) -> dict[str, tuple[ModelOrder, Host]]:
    """For each model its host: llama-server's router for GGUF models, a process of its own for the others."""
    orders = {m.alias: m for m in work.order.models}
    routed: dict[str, LaunchPlan] = {}
    for alias, model in orders.items():
        if model.backend == ROUTED and not model.process:
            routed[alias] = work.make(alias)
    router: Host | None = None
    try:
        router = RouterHost(routed, place) if routed else None
    except (Unpresentable, ValueError) as e:  # ValueError: a command line without --model
        work.say(f"llama-server's router is not used: {e}")
        routed = {}
    alone = ProcessHost(tuple(a for a in orders if a not in routed), work.make, place)
    return {a: (m, router if router is not None and a in routed else alone) for a, m in orders.items()}


def _tell(event: Event, say: Callable[[str], None]) -> None:
    if event.kind in ("phase", "warning"):
        say(f"{event.name}: {event.message}")


def _tidy(work: Path) -> None:
    """An empty folder for logs: what an earlier start wrote is in the front's own log."""
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (*work.glob("*.log"), *work.glob("*.log.1")):
        path.unlink(missing_ok=True)


async def _echo(work: Path) -> None:
    """Copy what the models' servers write to their logs to our own output, which is the log `logs` shows."""
    read: dict[tuple[str, int], int] = {}
    while True:
        try:
            await asyncio.sleep(ECHO_S)
        finally:  # once more at the end: the last words matter most
            for path in sorted(work.glob("*.log")):
                with suppress(OSError), path.open("rb") as file:
                    mark = (path.name, os.fstat(file.fileno()).st_ino)
                    file.seek(read.get(mark, 0))
                    data = file.read(1 << 20)
                    read[mark] = file.tell()
                    os.write(1, data)
