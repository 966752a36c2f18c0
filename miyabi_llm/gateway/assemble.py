"""The parts of a gateway put together, and its address."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from miyabi_llm.gateway.books import Files
from miyabi_llm.gateway.clerk import Clerk
from miyabi_llm.gateway.front import Front, Page
from miyabi_llm.gateway.http1 import Times
from miyabi_llm.gateway.locality import Place
from miyabi_llm.gateway.roads import Out, Roads
from miyabi_llm.gateway.status import Status
from miyabi_llm.gateway.values import Order
from miyabi_llm.route.values import Policy
from miyabi_llm.serve.many.guard import Guard
from miyabi_llm.types import Secret

KEEP_S = 30.0  # seconds a client's idle connection is kept, and a request's head may take

MEND = ("start the gateway with --allow-host", "start the gateway with --allow-origin")
LINGER_S = 1.0  # seconds in which the rest of a body that is turned away is read, so that its sender sees why


@dataclass(frozen=True, slots=True)
class Parts:
    """What a gateway needs beside its order: its books, where local targets are, their keys, the way out, the key."""

    files: Files
    places: Mapping[str, Place]
    keys: Mapping[str, Secret] = field(default_factory=dict)
    out: Out | None = None
    key: Secret | None = None
    times: Times = field(default_factory=Times)


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that can be listened with."""

    front: Front
    roads: Roads
    clerk: Clerk
    status: Status


def assemble(order: Order, policy: Policy, parts: Parts) -> Gateway:
    """The gateway of an order. Needs a running event loop."""
    roads = Roads(parts.places, parts.keys, parts.out, parts.times)
    clerk = Clerk(policy, parts.files, parts.places)
    status = Status(clerk.world)
    guard = Guard(order.host, parts.key, order.hosts, order.origins, MEND)
    return Gateway(Front(policy, guard, roads, clerk, status, _pages(order)), roads, clerk, status)


def _pages(order: Order) -> dict[str, Page]:
    """What there is to look at beside the figures."""
    if not order.ui:
        return {}
    from miyabi_llm.gateway.ui import PAGE, Ui

    ui = Ui()
    return {PAGE: ui.show, PAGE.rstrip("/"): ui.lead}


@asynccontextmanager
async def listen(gateway: Gateway, host: str, port: int, goodbye_s: float) -> AsyncIterator[int]:
    """Answer clients for as long as the block runs; gives the port. Raises OSError when it cannot listen."""
    server = web.Server(
        gateway.front.handle,
        handler_cancellation=True,  # a client that leaves ends what was begun for it
        access_log=None,
        keepalive_timeout=KEEP_S,
        lingering_time=LINGER_S,
        max_field_size=16 << 10,
        max_headers=128,
        auto_decompress=False,
        logger=_quiet(),
    )
    listening = await asyncio.get_running_loop().create_server(server, host, port, backlog=1024)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await server.shutdown(goodbye_s)
        gateway.roads.close()
        gateway.clerk.settle_local()
        await asyncio.sleep(0)  # closed sockets are given back in the loop's next turn


def _quiet() -> logging.Logger:
    """A logger that says nothing: what aiohttp would tell of a bad request is its content."""
    logger = logging.getLogger("miyabi_llm.gateway.http")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger
