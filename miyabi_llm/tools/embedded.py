"""llama-cpp-python in an environment of its own, over the very llama.cpp that llama-server is built from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from miyabi_llm import hardware
from miyabi_llm.config import Settings
from miyabi_llm.errors import BackendMissing, MiyabiError
from miyabi_llm.tools import envs, installed, lock, sdist
from miyabi_llm.tools.alone import alone
from miyabi_llm.tools.install import From, GetSource, install_programs
from miyabi_llm.tools.llama_cpp import SERVER
from miyabi_llm.tools.program import How, Program, Unusable, run_briefly
from miyabi_llm.tools.running import Shell
from miyabi_llm.types import Event, OnEvent, silent

NAME = "embedded"
SCRIPT = Path(__file__).parent.parent / "embedded" / "child.py"
VARIABLE = "MIYABI_EMBEDDED_PYTHON"  # the user's own interpreter to run it with
KEY_VARIABLE = "MIYABI_EMBEDDED_KEY"
MARKER = "embedded.json"
SCHEMA = 1
# The first whose llama.cpp (b11312) we know to hold the fixes that FLOOR of tools/llama_cpp.py asks for.
FLOOR = (0, 3, 36)
PYTHON_FLOOR = (3, 11)
LIBRARIES = ("libllama.so", "libllama.dylib")
INSTALL_HINT = "Run `miyabi-llm backend install embedded`."
OWN_HINT = "`pip install 'llama-cpp-python[server]>=0.3.36'` into it brings what is needed."
CHECK_S = 60.0  # seconds for the first import, from a cold disk on a busy machine


@dataclass(frozen=True, slots=True)
class Found:
    """The interpreter to run it with, if any, and those that were passed over."""

    program: Program | None
    rejected: tuple[Unusable, ...] = ()


@dataclass(frozen=True, slots=True)
class World:
    """What an installation takes from outside: the pins and the source's archive."""

    pins: lock.Lock = field(default_factory=lock.load)
    get_source: GetSource = sdist.download


def search(settings: Settings) -> Found:
    """The interpreter the user names, else our own installation, else this very interpreter. Never raises.

    Nothing is imported: what an interpreter has is read from its metadata.
    """
    if named := settings.env.get(VARIABLE):
        seen = _ask(Path(named), settings)
        return Found(seen) if isinstance(seen, Program) else Found(None, (seen,))
    if (kept := own(settings)) is not None:
        return Found(kept)
    here = Path(sys.executable)
    if importlib.util.find_spec("llama_cpp") is None:
        return Found(None)
    lacking = [n for n in ("uvicorn", "starlette") if importlib.util.find_spec(n) is None]
    seen = _judge(here, _version(), sys.version_info[:2], lacking)
    return Found(seen) if isinstance(seen, Program) else Found(None, (seen,))


def own(settings: Settings) -> Program | None:
    """What `install` made, if it is whole and fits this machine."""
    for marker in sorted((settings.cache / "envs").glob(f"{NAME}-*/{MARKER}"), key=_made, reverse=True):
        try:
            told = json.loads(marker.read_text(encoding="utf-8"))
            fits = told["schema"] == SCHEMA and told["machine"] in (hardware.machine_key(), hardware.platform_key())
            python = envs.Env(marker.parent).python
            if fits and python.exists() and Path(told["package"]).is_dir():
                how: How = "release" if told["how"] == "release" else "build"
                return _program(python, told["version"], how, ("--own-library",), told["build"], told["commit"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # half-made or unreadable: as good as not there
    return None


def install(
    settings: Settings, on_event: OnEvent = silent, *, source: From = "auto", world: World | None = None
) -> Program:
    """The interpreter with llama-cpp-python, made if it is not here yet. Idempotent.

    llama.cpp itself comes from an installation of llama-cpp with the same commit, which is made first if it is not
    here; of llama-cpp-python only its Python files are taken, from the same pinned source distribution. So nothing
    is compiled twice. Raises Missing, NetworkError, Corrupt and what installing llama-cpp raises.
    """
    world = world or World()
    if (here := _current(settings, source, world)) is not None:
        return here
    with _alone(settings, on_event):
        if (here := _current(settings, source, world)) is not None:
            return here  # another process made it while we waited
        made = _environment(settings, on_event, world)
        trouble: MiyabiError | None = None
        for how in _order(settings, source, world):
            try:
                return _finish(made, _llama_cpp(how, settings, on_event, world), settings, on_event)
            except MiyabiError as e:
                on_event(Event("warning", NAME, f"not from a {how}: {e.message}"))
                trouble = e
        assert trouble is not None
        raise trouble


def _current(settings: Settings, source: From, world: World) -> Program | None:
    """What is here, when it is the pinned version in the way that was asked for."""
    here = own(settings)
    current = here is not None and here.version == world.pins.source.version and source in ("auto", here.how)
    return here if current else None


def _order(settings: Settings, source: From, world: World) -> tuple[Literal["release", "build"], ...]:
    """Where llama.cpp is taken from: what is here already first, else a published build, which is quicker."""
    if source != "auto":
        return (source,)
    released, built = (_fitting(settings, how, world) for how in ("release", "build"))
    return ("build", "release") if built is not None and released is None else ("release", "build")


@dataclass(frozen=True, slots=True)
class _Made:
    """An environment with the Python half of llama-cpp-python in it, at `package`."""

    env: envs.Env
    package: Path
    version: str


def _environment(settings: Settings, on_event: OnEvent, world: World) -> _Made:
    on_event(Event("phase", "environment", f"{world.pins.source.dist} {world.pins.source.version}"))
    root = settings.cache / "envs"
    text = resources.files("miyabi_llm.data").joinpath("embedded_requirements.txt").read_bytes()
    wanted = root / f"{NAME}-{hashlib.sha256(text).hexdigest()[:12]}.txt"  # its name tells `envs.make` its content
    wanted.write_bytes(text)
    shell = Shell(root / f"{NAME}.log", settings.env, on_event)
    env = envs.make(root, NAME, ("--require-hashes", "--requirement", str(wanted)), shell)
    (env.folder / MARKER).unlink(missing_ok=True)
    asked = run_briefly(
        (str(env.python), "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"), timeout=CHECK_S
    )
    if asked.code != 0:
        raise BackendMissing(f"{env.python} {asked.trouble or asked.text[-300:]}", hint=f"Remove {env.folder}.")
    package = Path(asked.text.strip()) / "llama_cpp"
    place = Path(tempfile.mkdtemp(prefix=".sdist-", dir=env.folder))
    try:
        pin = replace(world.pins.source, inner="llama_cpp")
        sdist.unpack(world.get_source(world.pins.source, env.python, place, shell), pin, package)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return _Made(env, package, world.pins.source.version)


def _llama_cpp(
    how: Literal["release", "build"], settings: Settings, on_event: OnEvent, world: World
) -> installed.Installation:
    """An installation of the pinned llama.cpp that has shared libraries, made now if there is none."""
    kept = _fitting(settings, how, world)
    if kept is None:
        install_programs((SERVER,), settings, on_event, source=how)
        kept = _fitting(settings, how, world)
    if kept is None:
        raise BackendMissing(f"the installed llama.cpp has no {LIBRARIES[0]}", hint=INSTALL_HINT)
    return kept


def _fitting(settings: Settings, how: Literal["release", "build"], world: World) -> installed.Installation | None:
    """The bindings know the layout of llama.cpp's structures at one commit: no other build may be loaded."""
    right = (k for k in installed.all_of(settings) if (k.build, k.how) == (world.pins.build, how))
    return next((kept for kept in right if _library(kept) is not None), None)


def _library(kept: installed.Installation) -> Path | None:
    """The folder of its shared libraries."""
    server = kept.program(SERVER)
    if server is None:
        return None
    return next((server.path.parent for name in LIBRARIES if (server.path.parent / name).exists()), None)


def _finish(made: _Made, kept: installed.Installation, settings: Settings, on_event: OnEvent) -> Program:
    """Put the libraries beside the bindings, try them, and only then say that it is there."""
    folder = _library(kept)
    assert folder is not None
    place = made.package / "lib"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for file in sorted(folder.iterdir()):
        if re.match(r"lib.+\.(so|dylib)(\.|$)|lib.+\.\d.*\.dylib$", file.name) or file.suffix == ".metallib":
            shutil.copy2(file, place / file.name, follow_symlinks=False)
    on_event(Event("phase", "check", f"{made.env.python} with llama.cpp b{kept.build}"))
    argv = (str(made.env.python), "-I", str(SCRIPT), "--check")
    ran = run_briefly(argv, timeout=CHECK_S, env=settings.env)
    if ran.code != 0 or ran.trouble:
        why = ran.trouble or (ran.text.strip().splitlines() or [f"exit code {ran.code}"])[-1]
        raise BackendMissing(f"llama-cpp-python does not work with {folder}: {why}", hint=INSTALL_HINT)
    body = {
        **{"schema": SCHEMA, "version": made.version, "build": kept.build, "commit": kept.commit, "how": kept.how},
        **{"machine": kept.machine, "package": str(made.package), "libraries": str(folder)},
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    part = made.env.folder / f".{MARKER}.part"
    part.write_text(json.dumps(body, indent=1), encoding="utf-8")
    part.replace(made.env.folder / MARKER)
    done = own(settings)
    if done is None:
        raise BackendMissing("the installed environment does not fit this machine", hint=INSTALL_HINT)
    on_event(Event("done", "install", f"{NAME} in {made.env.folder}"))
    return done


@contextmanager
def _alone(settings: Settings, on_event: OnEvent) -> Iterator[None]:
    """Hold the lock of this installation. It is taken before that of llama.cpp's, never after."""
    root = settings.cache / "envs"
    with alone(root, f".{NAME}.lock", on_event):
        for left in root.glob(f"{NAME}-*/.sdist-*"):
            shutil.rmtree(left, ignore_errors=True)  # of an installation that was killed
        yield


def _program(
    python: Path,
    version: str,
    how: How,
    words: tuple[str, ...] = (),
    build: int | None = None,
    commit: str | None = None,
) -> Program:
    argv = (str(python), "-I", str(SCRIPT), *words)
    return Program(NAME, python, argv, version, how, build, commit, frozenset(), frozenset({KEY_VARIABLE}))


def _made(marker: Path) -> float:
    try:
        return marker.stat().st_mtime
    except OSError:
        return 0.0


def _version() -> str:
    try:
        return importlib.metadata.version("llama_cpp_python")
    except importlib.metadata.PackageNotFoundError:
        return ""


_QUESTION = """
import importlib.metadata as m, importlib.util as u, json, sys
try: version = m.version("llama_cpp_python")
except m.PackageNotFoundError: version = ""
lacking = [n for n in ("llama_cpp", "uvicorn", "starlette") if u.find_spec(n) is None]
print(json.dumps({"version": version, "python": sys.version_info[:2], "lacking": lacking}))
"""


def _ask(python: Path, settings: Settings) -> Program | Unusable:
    """What the user's interpreter says it has."""
    ran = run_briefly((str(python), "-I", "-c", _QUESTION), env=settings.env)
    if ran.trouble:
        return Unusable(NAME, python, ran.trouble)
    try:
        told: dict[str, Any] = json.loads(ran.text)
        return _judge(python, str(told["version"]), tuple(told["python"]), [str(n) for n in told["lacking"]])
    except (ValueError, KeyError, TypeError):
        return Unusable(NAME, python, f"is no Python: it says {ran.text[:80]!r}")


def _judge(python: Path, version: str, running: tuple[int, ...], lacking: list[str]) -> Program | Unusable:
    if running < PYTHON_FLOOR:
        return Unusable(NAME, python, f"is Python {'.'.join(map(str, running))}; 3.11 is needed", version)
    if lacking:
        return Unusable(NAME, python, f"lacks {', '.join(lacking)}: {OWN_HINT}", version)
    if tuple(int(n) for n in re.findall(r"\d+", version)[:3]) < FLOOR:
        known = "llama-cpp-python before 0.3.36 holds a llama.cpp with known memory errors"
        return Unusable(NAME, python, f"has version {version or 'unknown'}; {known}", version)
    return _program(python, version, "path")
