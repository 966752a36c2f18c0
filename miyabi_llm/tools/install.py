"""Getting llama.cpp onto this machine: a good one on PATH, a pinned published build, or a build from pinned source."""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from miyabi_llm import hardware as machine
from miyabi_llm.config import Settings
from miyabi_llm.errors import BackendMissing, Corrupt, Missing, MiyabiError, NetworkError, Unsafe
from miyabi_llm.tools import archive, build, compiler, installed, llama_cpp, lock, releases, sdist, toolchain
from miyabi_llm.tools.alone import alone
from miyabi_llm.tools.installed import Installation, Kept
from miyabi_llm.tools.program import How, Program
from miyabi_llm.tools.running import Shell
from miyabi_llm.types import Event, OnEvent, silent

if TYPE_CHECKING:
    import httpx

From = Literal["auto", "release", "build"]
GetSource = Callable[[lock.SourcePin, Path | None, Path, Shell], Path]
GetBuilders = Callable[[Settings, Shell], toolchain.Builders]
TOOLS = ("llama-quantize", "llama-bench", "llama-perplexity", "llama-gguf-split", "llama-imatrix", "llama-export-lora")


@dataclass(frozen=True, slots=True)
class World:
    """What an installation takes from outside: the pins, the machine, the index, build tools, the web."""

    pins: lock.Lock = field(default_factory=lock.load)
    hardware: machine.Hardware | None = None
    get_source: GetSource = sdist.download
    get_builders: GetBuilders = toolchain.builders
    client: httpx.Client | None = None


def install(
    settings: Settings,
    on_event: OnEvent = silent,
    *,
    source: From = "auto",
    tools: bool = False,
    world: World | None = None,
) -> Program:
    """The server's program, installed if it is not here yet; with `tools` quantize, bench and the others too.

    `auto` takes a usable one on PATH, else a pinned published build, else builds. Idempotent. Raises Missing when a
    compiler or the index is missing, MiyabiError when the build fails.
    """
    wanted = (llama_cpp.SERVER, *TOOLS) if tools else (llama_cpp.SERVER,)
    return install_programs(wanted, settings, on_event, source=source, world=world)[llama_cpp.SERVER]


def install_programs(
    names: Sequence[str],
    settings: Settings,
    on_event: OnEvent = silent,
    *,
    source: From = "auto",
    world: World | None = None,
) -> dict[str, Program]:
    """The programs `names` of llama.cpp, installing what is missing: as `install` does."""
    if here := _here(names, settings, source, on_event):
        return here
    world = world or World()
    with _alone(settings, on_event) as held:
        here = _here(names, settings, source, silent)  # another process may have installed it while we waited
        if here is None and source in ("auto", "release"):
            here = _from_release(names, settings, world, on_event, must=source == "release")
        if here is None:
            here = _from_source(names, settings, world, on_event, held)
    places = sorted({str(program.path.parent) for program in here.values()})
    on_event(Event("done", "install", f"{', '.join(here)} in {', '.join(places)}"))
    return here


def _here(names: Sequence[str], settings: Settings, source: From, on_event: OnEvent) -> dict[str, Program] | None:
    """The programs, when all of them are here already in the way that was asked for."""
    if source != "auto":
        for kept in installed.all_of(settings):
            if kept.how == source and (all_ := _of(kept, names)):
                return all_
        return None
    found = {name: llama_cpp.search(name, settings) for name in names}
    for bad in (bad for search in found.values() for bad in search.rejected):
        on_event(Event("warning", bad.name, f"passed over: {bad.path} {bad.reason}"))
    programs = {name: search.program for name, search in found.items() if search.program is not None}
    return programs if len(programs) == len(names) else None


def _of(kept: Installation, names: Sequence[str]) -> dict[str, Program] | None:
    programs = {name: p for name in names if (p := kept.program(name)) is not None}
    return programs if len(programs) == len(names) else None


@contextmanager
def _alone(settings: Settings, on_event: OnEvent) -> Iterator[tuple[int, ...]]:
    """Hold the one lock of installations, and clear away what a killed one left."""
    root = installed.root(settings)
    with alone(root, ".lock", on_event) as held:
        for left in (*root.glob(".new-*"), *root.glob("*/.sdist-*"), *root.glob("*/.source-*")):
            shutil.rmtree(left, ignore_errors=True)
        yield held


def _from_release(
    names: Sequence[str], settings: Settings, world: World, on_event: OnEvent, *, must: bool
) -> dict[str, Program] | None:
    """A published build; None when there is none that can be had and used here, unless it `must` be one."""
    assets = world.pins.for_machine(world.hardware or machine.look(settings.env))
    trouble: MiyabiError = BackendMissing("no published build of llama.cpp is pinned for this machine")
    if settings.offline:
        assets, trouble = (), NetworkError("offline: published builds are not fetched")
    for asset in assets:
        try:
            on_event(Event("phase", "download", asset.url))
            kept = _one_release(asset, settings, world, on_event)
        except (NetworkError, Corrupt, Unsafe, BackendMissing) as e:
            on_event(Event("warning", asset.file, f"not installed: {e.message}"))
            trouble = e
            if isinstance(e, NetworkError):
                break  # the others lie at the same place
            continue
        if programs := _of(kept, names):
            return programs
        trouble = BackendMissing(f"{asset.file} does not hold {', '.join(n for n in names if not kept.program(n))}")
    if must:
        raise type(trouble)(trouble.message, hint="Run `miyabi-llm backend install llama-cpp --from build`.")
    return None


def _one_release(asset: lock.Asset, settings: Settings, world: World, on_event: OnEvent) -> Installation:
    """Fetch, check, unpack, inspect, and only then give it its name."""
    root = installed.root(settings)
    final = root / f"b{world.pins.build}-release-{asset.system}-{asset.machine}-{asset.variant}".lower()
    if (kept := installed.read(final)) is not None:
        return kept
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
    try:
        releases.fetch(asset, fresh / asset.file, on_event, client=world.client)
        archive.unpack(fresh / asset.file, fresh / "tree")
        source = {"url": asset.url, "sha256": asset.sha256}
        kept = _record(fresh / "tree", "release", world.pins, settings, source)
        kept.write()
        shutil.rmtree(final, ignore_errors=True)
        kept.folder.replace(final)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    done = installed.read(final)
    assert done is not None
    return done


def _from_source(
    names: Sequence[str], settings: Settings, world: World, on_event: OnEvent, held: tuple[int, ...]
) -> dict[str, Program]:
    """Build what is missing, in the kept tree of an earlier build if there is one."""
    if platform.system() == "Windows":
        raise Missing("llama.cpp is not built on Windows", hint="Run `winget install llama.cpp`.")
    cc = toolchain.compilers(settings.env)  # first: it is what most machines lack, and known at once
    hardware = world.hardware or machine.look(settings.env)
    build.check_space(settings.cache)
    flags = build.cmake_flags(world.pins, hardware, settings.env, compiler.safe_flags(cc.cxx, hardware))
    folder = installed.root(settings) / f"b{world.pins.build}-build-{build.key(flags, cc)}"
    folder.mkdir(exist_ok=True)
    on_event(Event("phase", "tools", "cmake and ninja"))
    shell = Shell(folder / build.LOG, settings.env, on_event, held)
    builders = world.get_builders(settings, shell)
    order = build.Order(folder, flags, cc, builders, build.jobs(hardware), shell)
    if not (order.source / "CMakeLists.txt").is_file():
        _unpack_source(order, world)
    before = installed.read(folder)
    targets = sorted({*names, *(before.programs if before else ())})
    started = time.monotonic()
    build.compile_targets(order, targets)
    build.publish(order)
    source = {
        "dist": f"{world.pins.source.dist}=={world.pins.source.version}",
        "sha256": world.pins.source.sha256,
        "flags": list(flags),
        "compiler": cc.version,
        "seconds": round(time.monotonic() - started, 1),
    }
    kept = _record(folder, "build", world.pins, settings, source)
    kept.write()
    programs = _of(kept, names)
    if programs is None:
        lacking = ", ".join(name for name in names if kept.program(name) is None)
        raise BackendMissing(f"the build made no usable {lacking}", hint=f"See {shell.log}.")
    return programs


def _unpack_source(order: build.Order, world: World) -> None:
    pin = world.pins.source
    order.shell.on_event(Event("phase", "source", f"{pin.dist} {pin.version}"))
    place = Path(tempfile.mkdtemp(prefix=".sdist-", dir=order.folder))
    try:
        found = world.get_source(pin, order.builders.python, place, order.shell)
        sdist.unpack(found, pin, order.source)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _record(folder: Path, how: How, pins: lock.Lock, settings: Settings, source: Mapping[str, object]) -> Installation:
    """Inspect every program in `folder`; what was found. Raises BackendMissing when the server is unusable."""
    programs: dict[str, Kept] = {}
    version, number, commit = "", None, None
    for name in llama_cpp.UNIFIED:
        path = _locate(folder, name)
        if path is None:
            continue
        # a first start may read its libraries from a cold disk
        seen = llama_cpp.inspect(path, name=name, how=how, env=settings.env, timeout=20)
        if not isinstance(seen, Program):
            if name == llama_cpp.SERVER:
                raise BackendMissing(f"{path.name} {seen.reason}", hint="See `miyabi-llm backend list`.")
            continue
        if seen.version and not version:
            version, number, commit = seen.version, seen.build, seen.commit
        now = path.stat()
        programs[name] = Kept(
            str(path.relative_to(folder)),
            now.st_size,
            now.st_mtime_ns,
            tuple(sorted(seen.flags)),
            tuple(sorted(seen.environment)),
        )
    if not programs:
        raise BackendMissing(f"no program of llama.cpp in {folder}")
    return Installation(
        folder=folder,
        how=how,
        version=version or f"b{pins.build}",
        build=number or pins.build,
        commit=commit or pins.commit[:9],
        made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        machine=machine.machine_key() if how == "build" else machine.platform_key(),
        programs=programs,
        source=dict(source),
    )


def _locate(folder: Path, name: str) -> Path | None:
    """The program in an installation: in `bin` of a build, anywhere in an unpacked archive."""
    names = (name, f"{name}.exe")
    for own in names:
        if (folder / "bin" / own).is_file():
            return folder / "bin" / own
    if (folder / "work").is_dir():
        return None
    return next((p for own in names for p in sorted(folder.rglob(own)) if p.is_file() and not p.is_symlink()), None)
