"""The gateway's own process cannot reach anything but local servers: the interpreter refuses (PEP 578).

An audit hook cannot be taken out again. It sees what Python's own sockets do, so the guarded process runs asyncio's own
loop: uvloop connects without telling.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterable
from typing import Any, Final

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_STARTS: Final = frozenset(("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.spawn", "os.startfile"))
_SENDS: Final = frozenset(("socket.connect", "socket.sendto", "socket.sendmsg"))
_NAMES: Final = frozenset(("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"))


class EgressDenied(PermissionError):
    """The guarded process tried to reach what it may not reach."""


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Addresses and networks (`10.1.2.3`, `192.168.7.0/24`) as networks. Raises ValueError."""
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


def is_local(host: str, allowed: Iterable[Network] = ()) -> bool:
    """Whether an address (no name) is of this machine, or in an allowed network. Pure."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or any(address in network for network in allowed)


def install(allowed: Iterable[str], sockets: Iterable[str]) -> None:
    """Deny this process, from now on, every connection that is not to loopback, `allowed` or our own `sockets`.

    Looking names up and starting programs are denied too: both are ways out. Raises ValueError for a bad network.
    """
    nets, files = networks(allowed), frozenset(sockets)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _SENDS:
            where = arguments[1] if len(arguments) > 1 else None
            if where is not None and not _may_connect(where, nets, files):
                raise EgressDenied(f"this process may not reach {_shown(where)}")
        elif event in _NAMES:
            host = arguments[0]
            if host and not is_local(_text(host), nets) and _text(host) != "localhost":
                raise EgressDenied("this process may not look names up")
        elif event in _STARTS:
            raise EgressDenied("this process may not start programs")

    sys.addaudithook(hook)


def _may_connect(where: Any, nets: tuple[Network, ...], files: frozenset[str]) -> bool:
    if isinstance(where, str | bytes):
        return _text(where) in files
    return isinstance(where, tuple) and bool(where) and isinstance(where[0], str) and is_local(where[0], nets)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _shown(where: Any) -> str:
    return _text(where[0] if isinstance(where, tuple) and where else where)[:100]
