"""Whether a server that calls itself local is: its address, and for Ollama where its model really runs."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from miyabi_llm.gateway.hook import is_local, networks
from miyabi_llm.gateway.http1 import Answer, Failed, Order
from miyabi_llm.route.values import Target

LOOK_S: Final = 2.0
GOOD_S: Final = 10.0  # seconds for which an answer of Ollama about a model is believed
_SEARCHES: Final = "web_search"  # a tool that Ollama itself would run at ollama.com, for a local model too


@dataclass(frozen=True, slots=True)
class Place:
    """Where a local target is: the addresses that its name had at the start, or why it counts as elsewhere."""

    host: str
    port: int
    addresses: tuple[str, ...] = ()
    elsewhere: str = ""


def find(target: Target) -> Place:
    """Look a local target's address up, once: a name that points elsewhere later is not followed.

    Every address it has must be loopback or in the target's own list.
    """
    url = urlsplit(target.endpoint.base_url)
    host = url.hostname or ""
    port = url.port or (443 if url.scheme == "https" else 80)
    if url.scheme not in ("http", "https") or not host:
        return Place(host, port, elsewhere=f"{target.endpoint.base_url[:200]!r} is no address")
    try:
        allowed = networks(target.endpoint.hosts)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except ValueError as e:
        return Place(host, port, elsewhere=str(e))
    except OSError as e:
        return Place(host, port, elsewhere=f"{host} has no address: {e.strerror}")
    addresses = tuple(dict.fromkeys(str(row[4][0]) for row in found))
    if strangers := [a for a in addresses if not is_local(a, allowed)]:
        return Place(host, port, elsewhere=f"{host} is {strangers[0]}: not this machine, nor in the target's `hosts`")
    return Place(host, port, addresses)


Ask = Callable[[Target, Order], Awaitable[Answer]]


class OllamaCheck:
    """Asks an Ollama server where a model runs, before it is used, and again every GOOD_S seconds."""

    def __init__(self, ask: Ask) -> None:
        self._send = ask
        self._kind: dict[str, tuple[bool, float]] = {}  # base URL -> whether Ollama answers there, and until when
        self._said: dict[tuple[str, str], tuple[str, float]] = {}

    async def refusal(self, target: Target, model: str, body: Mapping[str, Any]) -> str:
        """Why a request would leave the machine through this target; empty when it would not.

        A server that is no Ollama is taken at its address. Raises Failed when the server cannot be asked.
        """
        if not await self._is_ollama(target):
            return ""
        tools = body.get("tools")
        for tool in tools if isinstance(tools, list) else ():
            if isinstance(tool, dict) and _searches(tool):
                return "Ollama runs the tool web_search at ollama.com"
        if not model:
            return ""
        if re.search(r"(?i)[:-]cloud$", model.strip()):
            return "Ollama runs models of this name at ollama.com"
        known = self._said.get((target.name, model))
        if known is None or known[1] < time.monotonic():
            known = (await self._ask(target, model), time.monotonic() + GOOD_S)
            self._said[target.name, model] = known
            while len(self._said) > 1000:
                del self._said[next(iter(self._said))]
        return known[0]

    async def _is_ollama(self, target: Target) -> bool:
        if target.endpoint.backend:
            return bool(target.endpoint.backend == "ollama")
        known = self._kind.get(target.name)
        if known is None or known[1] < time.monotonic():
            status, said = await self._look(target, Order("GET", "/api/version", ()))
            known = (status == 200 and isinstance(said.get("version"), str), time.monotonic() + GOOD_S)
            self._kind[target.name] = known
        return known[0]

    async def _ask(self, target: Target, model: str) -> str:
        body = json.dumps({"model": model}).encode()
        status, said = await self._look(
            target, Order("POST", "/api/show", (("content-type", "application/json"),), body)
        )
        if status == 404:
            return ""  # a model that is not there runs nowhere; the server will say so itself
        if status != 200:
            return "Ollama does not say where the model runs"
        remote = said.get("remote_host") or said.get("remote_model")
        return f"Ollama runs this model at {str(remote)[:100]}" if remote else ""

    async def _look(self, target: Target, order: Order) -> tuple[int, dict[str, Any]]:
        try:
            async with asyncio.timeout(LOOK_S):
                answer = await self._send(target, order)
                try:
                    data = await answer.read(4 << 20)
                finally:
                    answer.close()
        except TimeoutError:
            raise Failed("timeout", f"{target.name} does not say within {LOOK_S:g} s what it is") from None
        try:
            said = json.loads(data) if answer.status == 200 else {}
        except (ValueError, RecursionError):
            said = {}
        return answer.status, said if isinstance(said, dict) else {}


def _searches(tool: Mapping[str, Any]) -> bool:
    function = tool.get("function")
    names = (tool.get("type"), tool.get("name"), function.get("name") if isinstance(function, dict) else None)
    return any(isinstance(name, str) and name.startswith(_SEARCHES) for name in names)
