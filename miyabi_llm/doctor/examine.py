"""The doctor's looks at the machine, all at once, none of which may make the others wait."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from miyabi_llm import calibration, catalog, gguf, hardware
from miyabi_llm.config import Settings
from miyabi_llm.doctor import judge
from miyabi_llm.doctor.judge import Server
from miyabi_llm.errors import MiyabiError
from miyabi_llm.hardware import Hardware
from miyabi_llm.memory import Use
from miyabi_llm.refs import ModelRef
from miyabi_llm.shards import join
from miyabi_llm.store import Store
from miyabi_llm.tools import embedded, installed, vllm
from miyabi_llm.tools import llama_cpp as llama
from miyabi_llm.tools.program import Program, Unusable, run_briefly
from miyabi_llm.tools.toolchain import install_command
from miyabi_llm.types import Finding, counted

BUDGET: Final = 2.0  # seconds for everything
ASK: Final = 1.5  # seconds for a program to say its version
INSPECT: Final = 0.9  # seconds for each of llama-server's --version and --help

# backend -> (program, what asks it for its version; None: starting it takes longer than the doctor has)
OPTIONAL: Final[dict[str, tuple[str, tuple[str, ...] | None]]] = {
    "ollama": ("ollama", ("--version",)),
    "vllm": ("vllm", None),
    "local-ai": ("local-ai", ("--version",)),
    "lm-studio": ("lms", ("version",)),
}

Look = Callable[[], list[Finding]]


@dataclass
class _Seen:
    """What one look leaves for another."""

    machine: Hardware | None = None
    machine_known: threading.Event = field(default_factory=threading.Event)
    has_server: bool = False
    server_known: threading.Event = field(default_factory=threading.Event)


def examine(
    settings: Settings,
    *,
    servers: Callable[[], Sequence[Server]] = tuple,
    config_error: MiyabiError | None = None,
    budget: float = BUDGET,
) -> list[Finding]:
    """Look at everything a model needs here and judge it, in `budget` seconds at most.

    What does not answer by then is `unknown`. `servers` lists those we run, `config_error` is what was wrong
    with the configuration that `settings` replaces. Never raises for what it finds.
    """
    seen = _Seen()
    table: dict[str, Look] = {
        "python": lambda: [judge.python(sys.version_info[:3], sys.prefix)],
        "config": lambda: [_config(settings, config_error)],
        "processor": lambda: _machine(seen),
        "gpu": lambda: judge.gpus(*hardware.look_for_gpus(settings.env, 0, 0, timeout=ASK)),
        "disk": lambda: _disks(settings),
        "llama-cpp": lambda: _llama_cpp(settings, seen),
        "build tools": lambda: _build(settings, seen, budget),
        **{name: _optional(name, settings) for name in OPTIONAL},
        "vllm": lambda: _vllm(settings),
        "embedded": lambda: [_embedded(settings)],
        "store": lambda: _store(settings),
        "default model": lambda: _default_model(settings, seen, budget),
        "servers": lambda: judge.servers(servers()),
        "network": lambda: _network(settings),
    }
    return _all(table, budget)


def _all(table: dict[str, Look], budget: float) -> list[Finding]:
    """Every look's findings in the order of the table; daemon threads, so that none can hold up the exit."""
    found: dict[str, list[Finding]] = {}

    def run(name: str, look: Look) -> None:
        try:
            found[name] = look()
        except (MiyabiError, OSError, ValueError) as e:
            hint = e.hint if isinstance(e, MiyabiError) else None
            found[name] = [Finding(name, "fail", str(e) or type(e).__name__, fix=hint)]

    deadline = time.monotonic() + budget
    threads = [threading.Thread(target=run, args=item, daemon=True) for item in table.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [f for name in table for f in found.get(name, [judge.silent(name, budget)])]


def _config(settings: Settings, error: MiyabiError | None) -> Finding:
    path = settings.config / "config.toml"
    if error is not None:
        return Finding("config", "fail", error.message, fix=error.hint or f"$EDITOR {path}", data={"path": path})
    return Finding("config", "ok", str(path) if path.exists() else "built-in settings", data={"path": path})


def _machine(seen: _Seen) -> list[Finding]:
    try:
        seen.machine = hardware.look({"PATH": ""})  # cards are another look's: their tools may hang
    finally:
        seen.machine_known.set()
    return [judge.processor(seen.machine), judge.memory(seen.machine)]


def _disks(settings: Settings) -> list[Finding]:
    places = (("store disk", settings.store), ("cache disk", settings.cache))
    return [judge.disk(name, path, hardware.disk_free(path), writable=_writable(path)) for name, path in places]


def _writable(path: Path) -> bool:
    """Whether `path`, or the nearest folder it would be made in, can be written."""
    for place in (path, *path.parents):
        if place.exists():
            return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    return False


def _llama_cpp(settings: Settings, seen: _Seen) -> list[Finding]:
    """Every llama-server: our own, whose metadata is enough, and those on PATH, asked all at the same time."""
    try:
        answers: dict[Path, Program | Unusable] = {}

        def ask(path: Path, word: str | None) -> None:
            answers[path] = llama.inspect(path, word=word, env=settings.env, timeout=INSPECT)

        candidates = list(llama.candidates(llama.SERVER, settings.env.get("PATH", "")))[:16]
        threads = [threading.Thread(target=ask, args=c, daemon=True) for c in candidates]
        for thread in threads:
            thread.start()
        own = next(installed.programs(llama.SERVER, settings), None)
        for thread in threads:
            thread.join()
        on_path = [answers[path] for path, _ in candidates]
        program = own or next((p for p in on_path if isinstance(p, Program)), None)
        seen.has_server = program is not None
    finally:
        seen.server_known.set()
    return judge.llama_cpp(program, [p for p in on_path if isinstance(p, Unusable)])


def _build(settings: Settings, seen: _Seen, budget: float) -> list[Finding]:
    path = settings.env.get("PATH", "")
    compiler = settings.env.get("CXX") or next(
        (n for n in ("c++", "g++", "clang++") if shutil.which(n, path=path)), None
    )
    tools = {
        "c++": compiler is not None and shutil.which(compiler, path=path) is not None,
        "venv": importlib.util.find_spec("venv") is not None,
        "pip": any(importlib.util.find_spec(name) is not None for name in ("pip", "ensurepip")),
    }
    seen.server_known.wait(budget)
    return [judge.build(tools, install_command(platform.system(), _os_release()), needed=not seen.has_server)]


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _optional(name: str, settings: Settings) -> Look:
    program, arguments = OPTIONAL[name]

    def look() -> list[Finding]:
        folders = [f for f in settings.env.get("PATH", "").split(os.pathsep) if os.path.isabs(f)]
        path = shutil.which(program, path=os.pathsep.join(folders)) if folders else None
        said = None
        if path is not None and arguments is not None:
            said = run_briefly((path, *arguments), timeout=ASK, env=settings.env)
        return [judge.optional(name, path, said)]

    return look


def _vllm(settings: Settings) -> list[Finding]:
    """Our own environment, whose version its files tell; else what lies on PATH."""
    found = vllm.search(settings)
    if found.program is None:
        return _optional("vllm", settings)()
    return [judge.environment("vllm", found.program, ())]


def _embedded(settings: Settings) -> Finding:
    found = embedded.search(settings)
    return judge.environment("embedded", found.program, found.rejected)


def _store(settings: Settings) -> list[Finding]:
    if not settings.store.exists():
        return [Finding("store", "ok", f"empty; it will be at {settings.store}")]
    store = Store(settings.store)
    found = [_as_of_store(f) for f in store.problems()]
    usage = store.df()
    if usage.partial:
        text = f"{usage.partial >> 20} MiB of downloads that were broken off"
        found.append(Finding("store", "warn", text, fix="miyabi-llm prune"))
    text = f"{counted(len(usage.models), 'model')}, {usage.blobs >> 20} MiB at {settings.store}"
    return found or [Finding("store", "ok", text)]


def _as_of_store(f: Finding) -> Finding:
    return Finding("store", f.level, f"{f.name}: {f.message}", fix=f.fix, data=f.data)


def _default_model(settings: Settings, seen: _Seen, budget: float) -> list[Finding]:
    ref = catalog.load(settings).canonical(ModelRef.parse(settings.default_model))
    header = _header(settings, ref)
    seen.machine_known.wait(budget)
    use = None
    if seen.machine is not None:
        flags = calibration.cpu_flags(seen.machine, amx=calibration.server_uses_amx(settings))
        use = Use(repack=flags, runtime=calibration.runtime(settings, "llama-cpp"))
    return [judge.default_model(str(ref), header, seen.machine, use)]


def _header(settings: Settings, ref: ModelRef) -> gguf.Header | None:
    """The stored model's header; None when it is not here (or is no GGUF)."""
    store = Store(settings.store)
    here = next((a for a in store.list() if a.ref == ref and a.format == "gguf"), None)
    if here is None:
        return None
    headers = {}
    for file in here.files:
        if file.name.endswith(".gguf") and not file.name.startswith("mmproj"):
            with store.blob(file.sha256).open("rb") as f:
                headers[file.name] = gguf.read(f, file.size)
    return join(headers) if headers else None


def _network(settings: Settings) -> list[Finding]:
    return judge.network(offline=settings.offline, hub=settings.hf_endpoint, token=_token_place(settings))


def _token_place(settings: Settings) -> str | None:
    """Where a hub token lies, as a name a person knows; its text is not read."""
    env = settings.env
    if env.get("HF_TOKEN"):
        return "HF_TOKEN"
    home = Path(env.get("HF_HOME") or settings.user_home / ".cache" / "huggingface")
    path = Path(env.get("HF_TOKEN_PATH") or home / "token")
    return str(path) if path.is_file() else None
