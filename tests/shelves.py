"""Far sides for tests of `pull`: shelves of files, and a store and settings of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from miyabi_llm import config
from miyabi_llm.config import Settings
from miyabi_llm.pull import Options, pull
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.sources.base import Part, Source
from miyabi_llm.store import Fs, Store
from miyabi_llm.types import Event, Listing, OnEvent, RemoteFile
from tests import ggufs

MODEL = ggufs.tiny()
HEX = hashlib.sha256(MODEL).hexdigest()
OTHER = ggufs.tiny(tokens=41)


def sha(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())


@dataclass
class Shelf:
    """A far side with files by name. `says` overrides the hash it publishes; `sends` what really comes, try by try."""

    files: dict[str, bytes] = field(default_factory=lambda: {"m.gguf": MODEL})
    hashes: bool = True
    sends: list[bytes | BaseException] = field(default_factory=list)
    fails: Exception | None = None
    listed: int = 0
    fetched: list[str] = field(default_factory=list)
    scheme: str = "hf"

    def list(self, ref: ModelRef) -> Listing:
        self.listed += 1
        if self.fails:
            raise self.fails
        files = tuple(
            RemoteFile(n, len(d), sha(d) if self.hashes else None, urls=(f"https://example.org/{n}",))
            for n, d in self.files.items()
        )
        return Listing(ref, ref.pinned("c0ffee"), "gguf", files, "mit", notes=("a note",), card={"downloads": 3})

    def fetch(self, file: RemoteFile, part: Part, on_event: OnEvent) -> None:
        self.fetched.append(file.name)
        data = self.sends.pop(0) if self.sends else self.files[file.name]
        if isinstance(data, BaseException):
            half = self.files[file.name][: len(self.files[file.name]) // 2]
            part.write(0, half)
            raise data
        part.reset(None, len(data))
        part.write(0, data)


@dataclass
class World:
    """A store, settings and shelves, one for each source in the order they are opened."""

    settings: Settings
    store: Store
    shelves: Sequence[Shelf]
    events: list[Event] = field(default_factory=list)
    opened: int = 0

    def open(self, scheme: str, settings: Settings) -> Source:
        self.opened += 1
        return self.shelves[(self.opened - 1) % len(self.shelves)]

    def pull(self, name: str = "hf:a/b", **options: object):
        chosen = replace(Options(open_source=self.open), **options)  # type: ignore[arg-type]
        return pull(ModelRef.parse(name), self.store, self.settings, self.events.append, options=chosen)

    def said(self, kind: str) -> str:
        return "\n".join(e.message for e in self.events if e.kind == kind)


def world(tmp_path: Path, *shelves: Shelf, catalog: str = "", fs: Fs | None = None) -> World:
    (tmp_path / "config").mkdir(exist_ok=True)
    (tmp_path / "config/catalog.toml").write_text(catalog, encoding="utf-8")
    names = {"HOME": tmp_path, "MIYABI_HOME": tmp_path / "data", "MIYABI_CONFIG": tmp_path / "config"}
    settings = config.load({k: str(v) for k, v in names.items()})
    return World(settings, Store(settings.store, fs), shelves or (Shelf(),))


TWO = """
[models."two:a"]
{}
sources = ["hf:a/one", "hf:a/two"]
"""
PINNED = TWO.format(f'file = "short.gguf"\nsha256 = "{HEX}"\nsize = {len(MODEL)}\nnote = "two sources"')
