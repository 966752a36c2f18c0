"""Who we connect to: every address a name resolves to is judged, and the judged address is the one dialled."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import Any

import httpcore
import httpx

from miyabi_llm.errors import Unsafe

# bytes asked of a socket at once: fewer calls than with the HTTP library's 64 KiB, at a few such pieces of memory
# for each connection
READ = 1 << 18

# seconds for one address to answer the call, and for all addresses of a name; encryption has more time after it
ANSWER, ANSWER_ALL = 3.0, 6.0

Resolve = Callable[[str, int], list[str]]


class Reach(IntEnum):
    """How public an address is. A redirect never goes to a less public one than where it came from."""

    NOWHERE = 0  # unspecified, link-local (cloud metadata), multicast, reserved: never asked
    LOOPBACK = 1
    PRIVATE = 2
    PUBLIC = 3


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def reach(host: str, *, unknown: Reach = Reach.NOWHERE) -> Reach:
    """How public the literal address `host` is; `unknown` for what is not a literal address."""
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return unknown
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner:
            return reach(str(inner))
    if address.is_loopback:
        return Reach.LOOPBACK
    if address.is_unspecified or address.is_link_local or address.is_multicast or address.is_reserved:
        return Reach.NOWHERE
    return Reach.PUBLIC if address.is_global else Reach.PRIVATE


def system_resolve(host: str, port: int) -> list[str]:
    """The addresses of `host`, as the system's resolver gives them. Raises OSError."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Dialer(httpcore.NetworkBackend):
    """Connects to names whose every address lies between `least` and `most`; refuses the others with Unsafe."""

    def __init__(self, least: Reach, most: Reach, resolve: Resolve, backend: httpcore.NetworkBackend) -> None:
        self._least, self._most, self._resolve, self._backend = least, most, resolve, backend
        self._live: set[_Stream] = set()
        self._lock = threading.Lock()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolve once, judge every address, connect to the first of them that answers."""
        try:
            addresses = list(dict.fromkeys(self._resolve(host, port)))
        except (OSError, UnicodeError) as e:
            raise httpcore.ConnectError(f"the name {host} cannot be resolved: {e}") from e
        for address in addresses:
            self._judge(host, address)
        error: Exception = httpcore.ConnectError("the name has no address")
        end = time.monotonic() + ANSWER_ALL
        for address in addresses:
            most = min(ANSWER, end - time.monotonic(), ANSWER if timeout is None else timeout)
            if most <= 0:
                break
            try:
                stream = self._backend.connect_tcp(address, port, most, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as e:
                error = e
                continue
            return self.keep(_Stream(stream, self, (address, port)))
        raise type(error)(f"{host}:{port} cannot be reached: {error}")

    def _judge(self, host: str, address: str) -> None:
        found = reach(address)
        if found < self._least or found is Reach.NOWHERE:
            raise Unsafe(f"{host} is {address}, which is not a place to download from (redirected inwards?)")
        if found > self._most:
            raise Unsafe(f"http://{host} is not this machine: only https:// is safe there", hint="Use https://.")

    def keep(self, stream: _Stream) -> _Stream:
        """`stream` is live: `abort` reaches it."""
        with self._lock:
            self._live.add(stream)
        return stream

    def forget(self, stream: _Stream) -> None:
        """`stream` is closed."""
        with self._lock:
            self._live.discard(stream)

    def abort(self) -> None:
        """Shut every live connection down, so that threads blocked in a read return."""
        with self._lock:
            live = list(self._live)
        for stream in live:
            with contextlib.suppress(OSError):
                stream.socket.shutdown(socket.SHUT_RDWR)


class _Stream(httpcore.NetworkStream):
    """A connection that reads in larger pieces than the HTTP library asks for, and can be woken up."""

    def __init__(self, inner: httpcore.NetworkStream, dialer: Dialer, address: tuple[str, int]) -> None:
        self._inner, self._dialer, self._address = inner, dialer, address
        self.socket: socket.socket = inner.get_extra_info("socket")

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """The next bytes, more than asked for when they are there."""
        return self._inner.read(max(max_bytes, READ), timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of `buffer`."""
        self._inner.write(buffer, timeout)

    def close(self) -> None:
        """Close the connection."""
        self._dialer.forget(self)
        self._inner.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """The same connection, encrypted."""
        self._dialer.forget(self)
        inner = self._inner.start_tls(ssl_context, server_hostname, timeout)
        return self._dialer.keep(_Stream(inner, self._dialer, self._address))

    def get_extra_info(self, info: str) -> Any:
        """What the HTTP library knows of the connection; `server_addr` is the address that was judged."""
        return self._address if info == "server_addr" else self._inner.get_extra_info(info)


def proxy_for(url: httpx.URL, env: Mapping[str, str]) -> str | None:
    """The HTTP proxy the user's environment names for `url`; never one for this machine itself."""
    proxy = env.get("https_proxy") or env.get("HTTPS_PROXY") or env.get("all_proxy") or env.get("ALL_PROXY")
    if not proxy or url.scheme != "https" or url.host == "localhost" or reach(url.host) is Reach.LOOPBACK:
        return None
    if not proxy.startswith(("http://", "https://")):
        return None
    for entry in (env.get("no_proxy") or env.get("NO_PROXY") or "").split(","):
        name = entry.strip().lstrip("*").lstrip(".")
        if entry.strip() == "*" or (name and (url.host == name or url.host.endswith("." + name))):
            return None
    return proxy
