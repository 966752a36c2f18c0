"""The environments that engines train in: made from pins by the user's own package index, found in milliseconds."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import platform
import re
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.config import Settings
from miyabi_llm.errors import Missing, NetworkError
from miyabi_llm.tools import envs
from miyabi_llm.tools.alone import alone
from miyabi_llm.tools.running import Shell
from miyabi_llm.types import Event, OnEvent, silent

MANIFEST = "train.json"
SCHEMA = 1
INSTALL_HINT = "Run `miyabi-llm finetune install`."
MISSING_TORCH = "No matching distribution found for torch=="


@dataclass(frozen=True, slots=True)
class Pins:
    """What an environment is made of: `packages` pinned by version; `lock` is the file under data/ that pins hashes
    for Linux on x86-64 with CPython 3.11 and no GPU, if there is one; `size` says about how much disk it takes.
    """

    name: str
    packages: tuple[str, ...]
    lock: str | None = None
    size: str = "2 GB"

    @property
    def versions(self) -> Mapping[str, str]:
        """Package name -> pinned version."""
        return dict(p.split("==", 1) for p in self.packages)


def find(pins: Pins, settings: Settings) -> envs.Env | None:
    """The newest whole environment of these pins. Reads files only."""
    found = []
    for marker in (settings.cache / "envs").glob(f"{pins.name}-*/{MANIFEST}"):
        try:
            told = json.loads(marker.read_text(encoding="utf-8"))
            env = envs.Env(marker.parent)
            if told["schema"] == SCHEMA and told["packages"] == list(pins.packages) and env.python.exists():
                found.append((told["made_at"], env))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # half-made or unreadable: as good as not there
    return max(found, key=lambda f: str(f[0]))[1] if found else None


def need(pins: Pins, settings: Settings) -> envs.Env:
    """The environment. Raises Missing when it is not here."""
    env = find(pins, settings)
    if env is None:
        raise Missing(f"the environment {pins.name} is not here", hint=INSTALL_HINT)
    return env


def install(pins: Pins, settings: Settings, on_event: OnEvent = silent, *, gpu: bool = False) -> envs.Env:
    """The environment, made if it is not here. Idempotent; one process at a time makes it.

    Raises Missing when the package index does not give the packages, NetworkError when offline by choice.
    """
    if (env := find(pins, settings)) is not None:
        return env
    if settings.offline:
        raise NetworkError(f"the environment {pins.name} is not here, and you are offline", hint=settings.offline_hint)
    root = settings.cache / "envs"
    with alone(root, f".{pins.name}.lock", on_event) as held:
        if (env := find(pins, settings)) is not None:
            return env  # another process made it while we waited
        started = time.monotonic()
        on_event(Event("phase", "environment", f"{pins.name}: about {pins.size} on disk, once"))
        env, hashed = _make(pins, Shell(root / f"{pins.name}.log", settings.env, on_event, held), gpu=gpu)
        body = {
            "schema": SCHEMA,
            "packages": list(pins.packages),
            "hashed": hashed,
            "versions": installed(env),
            "seconds": round(time.monotonic() - started, 1),
            "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        part = env.folder / f".{MANIFEST}.part"
        part.write_text(json.dumps(body, indent=1), encoding="utf-8")
        part.replace(env.folder / MANIFEST)  # last: it says that the environment is whole
    on_event(Event("done", "install", f"{pins.name} in {env.folder}"))
    return env


def locked(pins: Pins, *, gpu: bool) -> str | None:
    """The text of the lock with hashes that fits this Python and machine, or None."""
    here = (platform.system(), platform.machine(), platform.python_implementation(), sys.version_info[:2])
    if pins.lock is None or gpu or here != ("Linux", "x86_64", "CPython", (3, 11)):
        return None
    return importlib.resources.files("miyabi_llm.data").joinpath(pins.lock).read_text(encoding="utf-8")


def _make(pins: Pins, shell: Shell, *, gpu: bool) -> tuple[envs.Env, bool]:
    """The environment, and whether every file of it was checked against a pinned hash."""
    root = shell.log.parent
    if (text := locked(pins, gpu=gpu)) is not None:
        # The name holds the content's hash: the environment's key is made of these words.
        path = root / f"{pins.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.txt"
        path.write_text(text, encoding="utf-8")
        try:
            return envs.make(root, pins.name, ("--require-hashes", "--no-deps", "-r", str(path)), shell), True
        except Missing as e:
            # An index without the CPU build of torch is nothing suspicious; a wrong hash is, and stays an error.
            if MISSING_TORCH not in e.message:
                raise
            shell.on_event(Event("warning", "lock", "this index has no CPU build of torch; its usual build is taken"))
    else:
        shell.on_event(Event("warning", "lock", "no hashes are pinned for this Python and machine; versions are"))
    return envs.make(root, pins.name, pins.packages, shell), False


def site(env: envs.Env) -> Path:
    """Where its packages lie."""
    return next(env.folder.glob("lib/python3*/site-packages"), env.folder / "Lib" / "site-packages")


def installed(env: envs.Env) -> dict[str, str]:
    """Distribution -> version, by the names of the metadata folders. Nothing is imported."""
    found = {}
    for folder in sorted(site(env).glob("*.dist-info")):
        name, _, version = folder.name.removesuffix(".dist-info").rpartition("-")
        found[re.sub(r"[-_.]+", "-", name).lower()] = version
    return found


def extra(name: str, packages: tuple[str, ...], env: envs.Env, settings: Settings, on_event: OnEvent) -> Path:
    """A folder with `packages`, for the end of the module path of `env`: what few people ask for (a tracker).

    The environment's own versions are kept; the folder appears whole or not at all. Raises Missing, NetworkError.
    """
    key = hashlib.sha256("\n".join((str(env.folder), *packages)).encode()).hexdigest()[:10]
    root = settings.cache / "envs"
    folder = root / f"extra-{name}-{key}"
    if folder.is_dir():
        return folder
    if settings.offline:
        raise NetworkError(f"{name} is not here, and you are offline", hint=settings.offline_hint)
    with alone(root, ".extra.lock", on_event) as held:
        if folder.is_dir():
            return folder
        on_event(Event("phase", "environment", f"{name}, once"))
        part, pinned = root / f".extra-{name}-{key}.part", root / f"extra-{name}-{key}.txt"
        shutil.rmtree(part, ignore_errors=True)
        pinned.write_text("".join(f"{n}=={v}\n" for n, v in installed(env).items() if n != "pip"), encoding="utf-8")
        shell = Shell(root / "extra.log", settings.env, on_event, held)
        argv = (str(env.python), *envs.PIP, "install", *envs.RETRIES, "--target", str(part), "-c", str(pinned))
        code, tail = shell.run((*argv, *packages), f"environment {name}")
        if code != 0:
            shutil.rmtree(part, ignore_errors=True)
            raise Missing(f"no {name}: {tail[-1] if tail else f'exit code {code}'}", hint=f"See {shell.log}.")
        part.rename(folder)
    return folder
