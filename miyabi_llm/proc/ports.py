"""Ports: whether one is free, who holds it, and whether the listener on it is ours."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Container, Iterable

from miyabi_llm.errors import BadUsage, MachineLimit, PortTaken

FIRST = 8080
ANYWHERE = ("0.0.0.0", "::", "")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`. A name other than localhost does not count."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def reachable(host: str) -> str:
    """The address by which this machine reaches a server bound to `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def is_busy(host: str, port: int) -> bool:
    """Whether a server could not bind `host`:`port`, or somebody answers there. Raises BadUsage on a bad host."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, OverflowError, UnicodeError) as e:
        raise BadUsage(f"{host}:{port} is no address to listen on: {e}") from None
    with socket.socket(family, kind, proto) as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is not busy
        try:
            probe.bind(address)
        except OSError as e:
            if e.errno == errno.EADDRINUSE:
                return True
            raise BadUsage(f"cannot listen on {host}:{port}: {e.strerror}") from None
    with socket.socket(family, kind, proto) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((reachable(host), port)) == 0


def free(
    host: str = "127.0.0.1", start: int = FIRST, *, tries: int = 200, promised: Container[int] = frozenset()
) -> int:
    """The first free port from `start` on that is not among the `promised` ones.

    Raises MachineLimit when there is none among `tries`.
    """
    for port in range(start, min(start + tries, 65536)):
        if port not in promised and not is_busy(host, port):
            return port
    raise MachineLimit(f"no free port from {start} to {start + tries - 1} on {host}", hint="Give one with --port.")


def chosen(host: str = "127.0.0.1") -> int:
    """A free port that the system picks: two callers at the same moment are given two."""
    with socket.socket() as s:
        s.bind((host, 0))
        port: int = s.getsockname()[1]
        return port


def holder(port: int) -> str | None:
    """`name (pid N)` of the process that listens on `port`, where the system lets us see it."""
    import psutil

    try:
        for c in psutil.net_connections(kind="tcp"):
            if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid:
                return f"{psutil.Process(c.pid).name()} (pid {c.pid})"
    except (psutil.Error, OSError):
        pass
    return None


def listens(pids: Iterable[int], port: int) -> bool | None:
    """Whether one of `pids` listens on `port`; None when the system does not let us see it."""
    import psutil

    hidden = False
    for pid in pids:
        try:
            for c in psutil.Process(pid).net_connections(kind="tcp"):
                if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port:
                    return True
        except psutil.NoSuchProcess:
            continue
        except (psutil.Error, OSError):
            hidden = True
    return None if hidden else False


def refuse_busy(host: str, port: int) -> None:
    """Raise PortTaken when `port` is taken, naming who holds it and a free one."""
    if is_busy(host, port):
        raise taken(host, port)


def taken(host: str, port: int) -> PortTaken:
    """The error that says who holds `port` and which one is free."""
    who = holder(port)
    message = f"port {port} is taken by {who}" if who else f"port {port} is taken"
    return PortTaken(message, hint=f"Use --port {free(host, port + 1)}.", port=port, holder=who)
