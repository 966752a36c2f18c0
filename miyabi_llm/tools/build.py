"""Building llama.cpp for this machine: configured and compiled in one kept folder, published from it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from miyabi_llm.errors import DiskFull, MiyabiError
from miyabi_llm.hardware import Hardware, disk_free, machine_key
from miyabi_llm.tools.lock import Lock
from miyabi_llm.tools.running import Shell
from miyabi_llm.tools.toolchain import Builders, Compilers
from miyabi_llm.types import Event, OnEvent

SPACE = 1 << 30  # bytes: archive, source, objects and programs of a CPU build take about a third of this
MEMORY_PER_JOB = 1 << 30  # bytes: the server's larger files need nearly this much to compile
LOG = "build.log"

_FLAGS = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF"),
    # the prebuilt page would be fetched from the network in the middle of the build
    *("-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF", "-DGGML_CCACHE=OFF"),
    # Programs find their libraries beside themselves, wherever the folder lies. Not cmake's build RPATH: that one is
    # padded with an empty entry, which makes the loader look in the current directory.
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
)


@dataclass(frozen=True, slots=True)
class Order:
    """Everything a build depends on. `folder` holds source, work (objects), bin (what is published) and the log."""

    folder: Path
    flags: tuple[str, ...]
    compilers: Compilers
    builders: Builders
    jobs: int
    shell: Shell

    @property
    def source(self) -> Path:
        """The unpacked source."""
        return self.folder / "source"

    @property
    def work(self) -> Path:
        """The build tree."""
        return self.folder / "work"


def cmake_flags(
    lock: Lock, hardware: Hardware, env: Mapping[str, str], compiler_flags: Sequence[str]
) -> tuple[str, ...]:
    """cmake's -D flags for this machine. `compiler_flags` are added to those of CFLAGS and CXXFLAGS.

    Metal is on by itself on Apple machines; CUDA is asked for when its compiler and such a GPU are both here.
    """
    beside = "@loader_path" if hardware.system == "Darwin" else "$ORIGIN"
    flags = [*_FLAGS, f"-DCMAKE_INSTALL_RPATH={beside}"]
    flags += [f"-DLLAMA_BUILD_NUMBER={lock.build}", f"-DLLAMA_BUILD_COMMIT={lock.commit[:9]}"]
    if any(gpu.kind == "cuda" for gpu in hardware.gpus) and shutil.which("nvcc", path=env.get("PATH", "")):
        flags.append("-DGGML_CUDA=ON")
    if compiler_flags:
        for variable, own in (("CMAKE_C_FLAGS", "CFLAGS"), ("CMAKE_CXX_FLAGS", "CXXFLAGS")):
            flags.append(f"-D{variable}={' '.join((env.get(own, ''), *compiler_flags)).strip()}")
    return tuple(flags)


def key(flags: Iterable[str], compilers: Compilers) -> str:
    """A short name for a build: the same flags, compiler and kind of processor give the same."""
    text = "\n".join((*flags, compilers.version, machine_key()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def jobs(hardware: Hardware) -> int:
    """Compilers to run at once: one a core, as far as memory goes. Pure."""
    return max(1, min(hardware.usable_cores, hardware.ram_available // MEMORY_PER_JOB))


def check_space(folder: Path) -> None:
    """Raises DiskFull when a build would not fit."""
    free = disk_free(folder)
    if free is not None and free < SPACE:
        raise DiskFull(f"a build needs 1 GiB, {folder} has {free >> 20} MiB free", hint="Free some disk space.")


def compile_targets(order: Order, targets: Sequence[str]) -> None:
    """Configure if needed, then build `targets` in `work`. An interrupted build goes on where it stopped.

    Raises MiyabiError with the compiler's first errors and the path of the log.
    """
    if not (order.work / "build.ninja").is_file():
        shutil.rmtree(order.work, ignore_errors=True)
        order.shell.on_event(Event("phase", "configure", f"llama.cpp with {order.compilers.version}"))
        argv = [str(order.builders.cmake), "-S", str(order.source), "-B", str(order.work), "-G", "Ninja"]
        argv += [f"-DCMAKE_MAKE_PROGRAM={order.builders.ninja}", *order.flags]
        argv += [f"-DCMAKE_C_COMPILER={order.compilers.c}", f"-DCMAKE_CXX_COMPILER={order.compilers.cxx}"]
        try:
            _run(order, argv, "configure")
        except BaseException:
            (order.work / "build.ninja").unlink(missing_ok=True)  # half a configuration must not be built on
            raise
    order.shell.on_event(
        Event("phase", "build", f"{', '.join(targets)} with {order.jobs} compilers at once; log: {order.shell.log}")
    )
    argv = [str(order.builders.cmake), "--build", str(order.work), "-j", str(order.jobs), "--target", *targets]
    _run(order, argv, "build", progress(order.shell.on_event))


def _run(order: Order, argv: Sequence[str], name: str, on_line: Callable[[str], None] | None = None) -> None:
    env = {k: v for k, v in order.shell.env.items() if k not in ("CMAKE_GENERATOR", "DESTDIR", "NINJA_STATUS")}
    env |= {"NINJA_STATUS": "[%f/%t] ", "LC_ALL": "C"}
    code, tail = replace(order.shell, env=env).run(argv, name, on_line)
    if code != 0:
        errors = [line for line in tail if "error" in line.lower() or "FAILED" in line] or tail
        raise MiyabiError(
            f"llama.cpp: {name} failed: " + "\n  ".join(errors[-5:] or [f"exit code {code}"]),
            hint=f"See {order.shell.log}.",
        )


_STEP = re.compile(r"\[(\d+)/(\d+)\] ?(.*)")
_ENOUGH = 20  # steps before a guess at the time left is worth telling
# The later files are the larger ones: in a measured build a sixth, a half and two thirds of the steps took 7%, 33% and
# 48% of the time, that is, the share of the time goes with the share of the steps to this power.
_LATE = 1.6


def progress(on_event: OnEvent, clock: Callable[[], float] = time.monotonic) -> Callable[[str], None]:
    """Turns ninja's `[n/m] what` lines into progress events with a guess at the time left."""
    start = clock()

    def line(text: str) -> None:
        m = _STEP.match(text)
        if m is None:
            return  # warnings by the thousand: they are in the log
        done, total = int(m[1]), int(m[2])
        left = (clock() - start) * ((total / done) ** _LATE - 1) if done >= _ENOUGH else None
        message = (
            "" if left is None else f"about {left:.0f} s left" if left < 100 else f"about {left / 60:.0f} min left"
        )
        on_event(Event("progress", "build", message, done, total, "steps", {} if left is None else {"eta_s": left}))

    return line


def publish(order: Order) -> Path:
    """Copy programs and libraries from the build tree to `bin`, each by rename; a running server keeps its files."""
    made, into = order.work / "bin", order.folder / "bin"
    into.mkdir(exist_ok=True)
    for source in sorted(made.iterdir()):
        place = into / source.name
        if source.is_symlink():
            target = os.readlink(source)
            if not (place.is_symlink() and os.readlink(place) == target):
                part = _part(place)
                os.symlink(target, part)
                part.replace(place)
        elif source.is_file() and not _same(source, place):
            part = _part(place)
            shutil.copy2(source, part)
            part.replace(place)
    return into


def _part(place: Path) -> Path:
    part = place.with_name(f".{place.name}.part")
    part.unlink(missing_ok=True)
    return part


def _same(a: Path, b: Path) -> bool:
    try:
        x, y = a.stat(), b.lstat()
    except OSError:
        return False
    return (x.st_size, x.st_mtime_ns) == (y.st_size, y.st_mtime_ns)
