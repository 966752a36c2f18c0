"""What the tests of the sources share: data, settings, quick limits, one pull into a real store."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import httpcore

from miyabi_llm.config import Settings
from miyabi_llm.refs import Digest
from miyabi_llm.sources.net import Wire
from miyabi_llm.sources.transfer import download
from miyabi_llm.sources.tries import Limits
from miyabi_llm.store import Store
from miyabi_llm.types import Event, RemoteFile

KIB = 1024
DATA = random.Random(7).randbytes(700 * KIB + 13)
SHA = Digest(hashlib.sha256(DATA).hexdigest())
QUICK = Limits(
    connections=4, segment=64 * KIB, tries=4, backoff=0.002, backoff_most=0.01, every=0.005, wire=Wire(stall=0.4)
)
ONE = replace(QUICK, segment=1 << 30)  # never in ranges


def settings(tmp_path: Path, **more: object) -> Settings:
    return Settings(
        home=tmp_path / "data",
        cache=tmp_path / "cache",
        config=tmp_path / "config",
        user_home=tmp_path,
        env={"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"},
        **more,  # type: ignore[arg-type]
    )


class Puller:
    """Downloads into a store below `tmp_path`, and remembers the events."""

    def __init__(self, tmp_path: Path) -> None:
        self.settings = settings(tmp_path)
        self.store = Store(self.settings.store)
        self.events: list[Event] = []

    def pull(self, *urls: str, size: int | None = len(DATA), sha: Digest | None = SHA, limits: Limits = QUICK) -> bytes:
        """The bytes that were published."""
        file = RemoteFile("m.gguf", size, sha, urls)
        key = sha or hashlib.sha256(urls[0].encode()).hexdigest()
        with self.store.part(key, size) as part:
            download(file, part, self.settings, self.events.append, limits=limits)
            blob = part.commit(sha, size)
        return self.store.blob(blob.sha256).read_bytes()

    def published(self) -> list[Path]:
        return [p for p in self.settings.store.rglob("*") if p.is_file() and p.parent.parent.name == "blobs"]

    def said(self) -> str:
        return "\n".join(e.message for e in self.events)


class Elsewhere(httpcore.NetworkBackend):
    """Connects to loopback whatever public address was judged: the resolver of these tests tells stories."""

    def __init__(self) -> None:
        self.dialled: list[str] = []

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[object] | None = None,
    ) -> httpcore.NetworkStream:
        self.dialled.append(host)
        return httpcore.SyncBackend().connect_tcp("127.0.0.1", port, timeout)
