"""What is written down: a command of this machine, or a container with a model beside it; and the text it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Kind = Literal["systemd", "quadlet", "compose", "kube", "launchd"]


@dataclass(frozen=True, slots=True)
class Native:
    """A command of this machine to keep running. `command` starts with an absolute path, `env` goes with it.

    `name` is what the service is called (see `identifier`), `model` what it serves, `log` where launchd lets it write.
    """

    name: str
    model: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    log: Path


@dataclass(frozen=True, slots=True)
class Image:
    """A backend's published container image, and how its server is told things.

    `entry` replaces the image's own entry point when it is not empty. The server takes its key from the variable
    `key_variable`, or from a file by `key_option` when it has one. `probe` is a command inside the container that
    succeeds when a URL answers.
    """

    name: str
    key_variable: str
    probe: tuple[str, ...]
    entry: tuple[str, ...] = ()
    key_option: str = ""
    shared_memory: bool = False


@dataclass(frozen=True, slots=True)
class Mount:
    """One file of the model: where it is here, where the container sees it, and its bytes. `size` in bytes."""

    host: Path
    inside: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Container:
    """A server in a container. `args` are its options with paths as the container sees them; they hold no key.

    `port` is the same inside and out; `address` is where this machine publishes it. `memory` in bytes, `gpus` per
    machine, `nodes` machines. `key_file` is the file on this machine that holds the key.
    """

    name: str
    model: str
    image: Image
    args: tuple[str, ...]
    env: Mapping[str, str]
    mounts: tuple[Mount, ...]
    port: int
    key_file: Path
    memory: int
    health: str = "/health"
    address: str = "127.0.0.1"
    gpus: int = 0
    nodes: int = 1
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """The text, the file name it wants, and the commands to type next."""

    kind: Kind
    file: str
    text: str
    next: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
