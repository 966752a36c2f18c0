"""The pins of llama.cpp: which source and which published builds may be installed, by sha256."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources

from miyabi_llm.hardware import Hardware
from miyabi_llm.refs import Digest, digest


@dataclass(frozen=True, slots=True)
class SourcePin:
    """A source distribution on the package index; llama.cpp is its folder `inner`. `size` in bytes."""

    dist: str
    version: str
    sha256: Digest
    size: int
    inner: str


@dataclass(frozen=True, slots=True)
class Asset:
    """One published build: for which machine, where, and its pinned hash. `seen` says where the hash was read."""

    system: str
    machine: str
    variant: str
    url: str
    size: int
    sha256: Digest
    seen: str

    @property
    def file(self) -> str:
        """The archive's name."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class Lock:
    """Everything that may be installed: one llama.cpp, as source and as published builds."""

    build: int
    commit: str
    source: SourcePin
    assets: tuple[Asset, ...]

    def for_machine(self, hardware: Hardware) -> tuple[Asset, ...]:
        """The published builds that fit, best first: with a GPU the one that uses it, then the CPU's. Pure."""
        fitting = [a for a in self.assets if (a.system, a.machine) == (hardware.system, hardware.machine)]
        wanted = ("metal", "vulkan", "cpu") if hardware.gpus else ("metal", "cpu")
        return tuple(sorted((a for a in fitting if a.variant in wanted), key=lambda a: wanted.index(a.variant)))


def load() -> Lock:
    """The pins that came with this version."""
    return parse(resources.files("miyabi_llm.data").joinpath("llama_cpp_lock.toml").read_text(encoding="utf-8"))


def parse(text: str) -> Lock:
    """A lock file's text as a value."""
    body = tomllib.loads(text)
    source = SourcePin(**body["source"] | {"sha256": digest(body["source"]["sha256"])})
    assets = tuple(Asset(**a | {"sha256": digest(a["sha256"])}) for a in body.get("asset", ()))
    return Lock(body["build"], body["commit"], source, assets)
