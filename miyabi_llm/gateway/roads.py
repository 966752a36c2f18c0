"""The ways to a target: straight to a local server at the addresses found at the start, or through the process out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from miyabi_llm.gateway import cloud, permit
from miyabi_llm.gateway.adapt import Adapted
from miyabi_llm.gateway.asked import Asked, Readable, Record
from miyabi_llm.gateway.headers import Pairs, up
from miyabi_llm.gateway.http1 import Answer, Failed, Order, Pool, Times, origin
from miyabi_llm.gateway.locality import OllamaCheck, Place
from miyabi_llm.route.values import Decision, Target
from miyabi_llm.types import Secret

_CLOUD_QUERIES: Final = ("", "beta=true")  # what else stands there may be anything


@dataclass(frozen=True, slots=True)
class Out:
    """How to ask the process that has the keys: its socket, and the key that seals permits."""

    socket: Path
    seal: bytes


class Roads:
    """Sends requests. `keys` are those of local targets, by target name; a cloud's key is not in this process."""

    def __init__(
        self, places: Mapping[str, Place], keys: Mapping[str, Secret], out: Out | None, times: Times | None = None
    ) -> None:
        self._places, self._keys, self._out = places, keys, out
        self._pool = Pool(times)
        self._ollama = OllamaCheck(self._straight)

    async def local(self, target: Target, asked: Asked, adapted: Adapted) -> Readable:
        """Send to a local target, after a look at where it really is. Raises Failed."""
        place = self._places.get(target.name)
        if place is None or place.elsewhere:
            raise Failed("elsewhere", place.elsewhere if place else "it was not found at the start")
        model = target.endpoint.model or asked.body.get("model") or asked.body.get("name") or ""
        if why := await self._ollama.refusal(target, str(model), asked.body.plain()):
            raise Failed("elsewhere", why)
        path = f"{asked.path}?{asked.query}" if asked.query else asked.path
        return await self._straight(target, Order(asked.method, path, up(adapted.headers, cloud=False), adapted.data))

    async def cloud(
        self, target: Target, asked: Asked, adapted: Adapted, decision: Decision, record: Record
    ) -> Readable:
        """Have a permit made for exactly these bytes and send them through the process out. Raises Failed."""
        if self._out is None:
            raise Failed("permit", "no process sends to clouds")
        if asked.query not in _CLOUD_QUERIES:
            raise Failed("permit", "the address has a query that is not sent to a cloud")
        path = f"{asked.path}?{asked.query}" if asked.query else asked.path
        wanted = permit.Permit(
            target=target.name,
            path=path,
            headers=up(adapted.headers, cloud=True),
            digest=permit.digest(adapted.data),
            verdict=decision.verdict.name,
            audit=record.number,
            nonce=record.nonce,
            expires=time.monotonic() + permit.GOOD_S,
        )
        try:
            text = permit.sign(wanted, self._out.seal)
        except permit.NoPermit as e:
            raise Failed("permit", str(e)) from None
        return await cloud.send(self._out.socket, text, adapted.data)

    async def look(self, target: Target, path: str) -> tuple[int, Pairs, bytes]:
        """A small question to a local target: status, headers and body of its answer. Raises Failed."""
        place = self._places.get(target.name)
        if place is None or place.elsewhere:
            raise Failed("elsewhere", place.elsewhere if place else "it was not found at the start")
        answer = await self._straight(target, Order("GET", path, ()))
        try:
            return answer.status, answer.headers, await answer.read(8 << 20)
        finally:
            answer.close()

    def close(self) -> None:
        """End the kept connections."""
        self._pool.close()

    async def _straight(self, target: Target, order: Order) -> Answer:
        headers = (*order.headers, ("accept-encoding", "identity"))
        if key := self._keys.get(target.name):
            headers = (*headers, ("authorization", f"Bearer {key.reveal()}"))
        at = origin(target.endpoint.base_url, self._places[target.name].addresses)
        return await self._pool.send(at, Order(order.method, order.path, headers, order.body))
