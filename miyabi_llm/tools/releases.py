"""A published build of llama.cpp: fetched, hashed, and only then unpacked."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from miyabi_llm.errors import Corrupt, NetworkError, Unsafe
from miyabi_llm.tools.lock import Asset
from miyabi_llm.types import Event, OnEvent

if TYPE_CHECKING:
    import httpx

CONNECT = 5.0  # seconds: without a network the build from source must begin soon
READ = 20.0


def fetch(asset: Asset, place: Path, on_event: OnEvent, *, client: httpx.Client | None = None) -> None:
    """Download `asset` to `place`, and leave it there only when size and hash are the pinned ones.

    Raises NetworkError when it cannot be had, Corrupt when it is not what was pinned, Unsafe when an https address
    leads to a plain one.
    """
    import httpx

    part = place.with_name(place.name + ".part")
    own = client or httpx.Client(
        timeout=httpx.Timeout(READ, connect=CONNECT), follow_redirects=True, max_redirects=5, trust_env=True
    )
    try:
        found = _stream(own, asset, part, on_event)
        if found != (asset.sha256, asset.size):
            raise Corrupt(
                f"{asset.file} is not the pinned file: sha256 {found[0]}, {found[1]} bytes; "
                f"pinned: {asset.sha256}, {asset.size} bytes"
            )
        part.replace(place)
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        raise NetworkError(f"{asset.file} cannot be fetched: {e or type(e).__name__}") from e
    finally:
        part.unlink(missing_ok=True)
        if client is None:
            own.close()


def _stream(client: httpx.Client, asset: Asset, part: Path, on_event: OnEvent) -> tuple[str, int]:
    """Write the answer to `part`; its sha256 and size. Stops at the first byte beyond the pinned size."""
    hashed, size = hashlib.sha256(), 0
    # identity: the hash is of the file, and a coded answer could grow without bound
    with client.stream("GET", asset.url, headers={"Accept-Encoding": "identity"}) as answer, part.open("wb") as out:
        plain = any(hop.url.scheme != "https" for hop in (*answer.history, answer))
        if asset.url.startswith("https:") and plain:
            raise Unsafe(f"{asset.file}: the address leads from https to http")
        if answer.status_code != 200:
            raise NetworkError(f"{asset.file}: the server answers {answer.status_code}")
        for block in answer.iter_raw(1 << 16):
            size += len(block)
            if size > asset.size:
                raise Corrupt(f"{asset.file} is longer than the pinned {asset.size} bytes")
            hashed.update(block)
            out.write(block)
            on_event(Event("progress", asset.file, done=size, total=asset.size, unit="bytes"))
    return hashed.hexdigest(), size
