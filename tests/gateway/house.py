"""A whole gateway in a thread: its front, its process that sends (here in the same loop), its books, its policy."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from miyabi_llm.gateway import locality
from miyabi_llm.gateway.assemble import Gateway, Parts, assemble, listen
from miyabi_llm.gateway.books import open_files, written
from miyabi_llm.gateway.egress import Egress, clouds
from miyabi_llm.gateway.http1 import Times
from miyabi_llm.gateway.roads import Out
from miyabi_llm.gateway.values import Order
from miyabi_llm.route import policy as policies
from miyabi_llm.types import Secret

SEAL = b"s" * 32
CLOUD_KEY = "sk-ant-canary-0123456789"
TIMES = Times(connect=5.0, head=20.0, idle=20.0)
HELLO = {"model": "claude-sonnet-5-5", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}
CHAT = {"model": "normal", "messages": [{"role": "user", "content": "Hello"}]}


@dataclass
class House:
    """A gateway that runs. `http` is a client of it."""

    url: str
    port: int
    gateway: Gateway
    work: Path
    http: httpx.Client

    def messages(self, stream: bool = True, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        """Ask for a message."""
        said = {"anthropic-version": "2023-06-01"} | (headers or {})
        return self.http.post("/v1/messages", json=HELLO | {"stream": stream} | more, headers=said)

    def chat(self, model: str = "normal", stream: bool = True, **more: Any) -> httpx.Response:
        """Ask for a chat completion."""
        return self.http.post("/v1/chat/completions", json=CHAT | {"model": model, "stream": stream} | more)

    def cut(self, path: str, body: dict[str, Any]) -> bytes:
        """What came of a stream that is then cut; fails when it ends in good order."""
        got = b""
        try:
            with self.http.stream("POST", path, json=body | {"stream": True}) as response:
                assert response.status_code == 200
                for part in response.iter_raw():
                    got += part
        except httpx.RemoteProtocolError:
            return got
        raise AssertionError(f"ended in good order: {got[-200:]!r}")

    def raw(self, data: bytes) -> bytes:
        """Everything the gateway says to these bytes, until it closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as s:
            s.sendall(data)
            got = b""
            while more := s.recv(1 << 16):
                got += more
            return got


def policy(*targets: str, mode: str = "hybrid", more: str = "") -> str:
    """A policy whose clean requests are public. A target is `NAME claude|local URL [key = value]...`, one line each."""
    lines = ["version = 1", f'mode = "{mode}"']
    for target in targets:
        name, kind, url, *rest = target.split(" ", 3)
        lines += [
            f"[targets.{name}]",
            f'kind = "{kind}"',
            f'url = "{url}"',
            *(r for part in rest for r in part.split(";")),
        ]
    return "\n".join([*lines, more, "[privacy]", 'default_verdict = "public"', "# end of policy", ""])


@contextmanager
def running(
    text: str, *, key: str = "", times: Times = TIMES, keys: Mapping[str, str] = MappingProxyType({}), spoil: str = ""
) -> Iterator[House]:
    """A gateway with this policy for as long as the block runs.

    `keys` are those of local targets; the file `spoil` of its books cannot be opened.
    """
    host = "127.0.0.1"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "policy.toml").write_text(text, encoding="utf-8", errors="surrogateescape")
        if spoil:
            (work / spoil).mkdir()
        order = Order(host, 0, work, work / "audit.jsonl", work / "ledger.sqlite", work / "policy.toml", ui=True)
        loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
        found: dict[str, Any] = {}

        async def live() -> None:
            known = policies.load(work / "policy.toml")
            out = Out(order.socket, SEAL)
            sender = Egress(
                clouds(known.targets, {"ANTHROPIC_API_KEY": CLOUD_KEY}),
                SEAL,
                lambda t, n: written(order.audit, t, n),
                times,
            )
            places = {t.name: locality.find(t) for t in known.targets if t.local}
            given = {name: Secret(k) for name, k in keys.items()}
            files = open_files(order)
            parts = Parts(files, places, given, out, Secret(key) if key else None, times)
            gateway = assemble(order, known, parts)
            async with (
                await asyncio.start_unix_server(sender.serve, str(order.socket)),
                listen(gateway, host, 0, 0.5) as port,
            ):
                found.update(port=port, gateway=gateway)
                ready.set()
                await stop.wait()
            sender.close()
            files.close()
            await asyncio.sleep(0)

        def run() -> None:
            try:
                loop.run_until_complete(live())
            finally:
                ready.set()
                loop.run_until_complete(loop.shutdown_default_executor())
                loop.close()

        thread = threading.Thread(target=run, name="gateway")
        thread.start()
        assert ready.wait(30)
        assert found, "the gateway did not start"
        url = f"http://127.0.0.1:{found['port']}"
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as http:
                yield House(url, found["port"], found["gateway"], work, http)
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """The environment of a child: ours without keys and proxies."""
    gone = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    return {k: v for k, v in os.environ.items() if k not in gone} | more
