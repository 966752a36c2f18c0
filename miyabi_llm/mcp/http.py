"""The streamable HTTP transport: bound to loopback, or with a token; Host and Origin are always checked."""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecuritySettings

from miyabi_llm.errors import BadUsage, PortTaken
from miyabi_llm.proc.ports import is_loopback
from miyabi_llm.types import Event, OnEvent, Secret

PATH = "/mcp"
LOCAL = ("127.0.0.1", "localhost", "[::1]")
ENTITLED = "Bearer "

Scope = dict[str, Any]
App = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where to listen. `names` are further host names clients may call it by; `token` is demanded when there is one."""

    host: str = "127.0.0.1"
    port: int = 0
    token: Secret | None = None
    names: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise BadUsage when other machines could reach it without a token."""
        if not is_loopback(self.host) and not self.token:
            raise BadUsage(
                f"an MCP server on {self.host} can be reached from other machines: it needs a token",
                hint="Give one with --token-file FILE, or leave out --host.",
            )

    def security(self) -> TransportSecuritySettings:
        """The Host and Origin headers that are let in: those of this machine, and the names that were given. Pure."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        wild = self.host in ("0.0.0.0", "::", "")
        names = list(dict.fromkeys((*LOCAL, *(() if wild else (host,)), *self.names)))
        return TransportSecuritySettings(
            enable_dns_rebinding_protection=True,
            allowed_hosts=[text for name in names for text in (name, f"{name}:*")],
            allowed_origins=[text for name in names for text in (f"http://{name}", f"http://{name}:*")],
        )


def app(server: MCPServer[Any], place: Place, **more: Any) -> App:
    """The ASGI application, guarded; `more` goes to the SDK. What the conformance suite asks is made here too."""
    inner = server.streamable_http_app(
        streamable_http_path=PATH, transport_security=place.security(), host=place.host, **more
    )
    return Guard(inner, place.token)


class Guard:
    """Refuses before the body is read: a doubled Host header, and a request without the token."""

    def __init__(self, inner: App, token: Secret | None) -> None:
        self._inner, self._token = inner, token

    async def __call__(self, scope: Scope, receive: App, send: App) -> None:
        """ASGI."""
        if scope["type"] == "http":
            headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
            if sum(name == b"host" for name, _ in headers) != 1:
                await _refuse(send, 400, b"one Host header is wanted")
                return
            if self._token and not self._entitled(headers):
                await _refuse(send, 401, b"a token is wanted: Authorization: Bearer TOKEN")
                return
            # RFC 9110 5.5: blanks around a value are no part of it, and the SDK compares values with the body
            scope = {**scope, "headers": [(name, value.strip(b" \t")) for name, value in headers]}
        await self._inner(scope, receive, send)

    def _entitled(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        given = [value for name, value in headers if name == b"authorization"]
        wanted = (ENTITLED + (self._token.reveal() if self._token else "")).encode()
        return len(given) == 1 and hmac.compare_digest(given[0], wanted)


async def _refuse(send: App, status: int, words: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(words)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words})


def serve(server: MCPServer[Any], place: Place, close: Callable[[], None], on_event: OnEvent, **more: Any) -> None:
    """Serve until a signal; then `close` what was started. A `done` event tells the address once it listens.

    Raises BadUsage (open to others without a token), PortTaken.
    """
    import uvicorn

    place.check()
    listening = _listen(place)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    config = uvicorn.Config(
        app(server, place, **more),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    uvicorn_server = uvicorn.Server(config)
    try:
        on_event(Event("done", "ready", f"http://{shown}:{port}{PATH}", data={"url": f"http://{shown}:{port}{PATH}"}))
        asyncio.run(uvicorn_server.serve(sockets=[listening]))
    finally:
        listening.close()
        close()


def _listen(place: Place) -> socket.socket:
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((place.host, place.port))
        found.listen(128)
    except OSError as e:
        found.close()
        raise PortTaken(f"{place.host}:{place.port}: {e.strerror}", hint="Choose another port, or 0 for any.") from e
    return found
