"""Servers near by: whether an address is this machine's or its network's, and programs beside them."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
from pathlib import Path
from urllib.parse import urlsplit

from miyabi_llm.errors import NetworkError, Unsafe

LOOK_S = 0.5  # seconds to find out what answers on a port of this machine


def refuse_far(base_url: str) -> None:
    """Raise Unsafe when `base_url` leads to a public address, NetworkError when its name means nothing.

    Commands that load and unload models belong to servers of this machine and its own network.
    """
    url = urlsplit(base_url)
    host = url.hostname or ""
    if url.scheme not in ("http", "https") or not host:
        raise Unsafe(f"{base_url} is no address of a server", hint="It reads http://127.0.0.1:PORT.")
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as e:
        raise NetworkError(f"{host} has no address: {e}", hint="`miyabi-llm ps`") from e
    for text in found:
        address = ipaddress.ip_address(str(text).partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        if (mapped or address).is_global or address.is_multicast:
            raise Unsafe(f"{host} is a public address ({text})", hint="Use a server of this machine or its network.")


def answers(base_url: str, path: str, *, token: str | None = None) -> tuple[int, object]:
    """Status and JSON of a quick GET, without proxy or redirect; (0, None) when nobody answers. Never raises."""
    import httpx

    from miyabi_llm.backends.wire import parse

    headers = {"authorization": f"Bearer {token}"} if token else {}
    said = bytearray()
    try:
        with (
            httpx.Client(trust_env=False, timeout=LOOK_S, headers=headers) as http,
            http.stream("GET", base_url + path) as response,
        ):
            for chunk in response.iter_bytes():
                said += chunk
                if len(said) > 1 << 20:
                    return 0, None
            return response.status_code, parse(bytes(said))
    except (httpx.HTTPError, httpx.InvalidURL):
        return 0, None


def on_path(name: str, path: str | None, *more: Path) -> Path | None:
    """The program `name` in the absolute folders of `path` (None: this process's PATH), then at one of `more`."""
    words = os.get_exec_path() if path is None else path.split(os.pathsep)
    folders = [folder for folder in words if os.path.isabs(folder)]  # never run what lies in the current directory
    found = shutil.which(name, path=os.pathsep.join(folders)) if folders else None
    if found:
        return Path(found)
    return next((place for place in more if shutil.which(str(place))), None)
