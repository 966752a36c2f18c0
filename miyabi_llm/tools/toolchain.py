"""What a build needs: a C++ compiler that works, cmake and ninja."""

from __future__ import annotations

import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.config import Settings
from miyabi_llm.errors import Missing
from miyabi_llm.tools import envs
from miyabi_llm.tools.program import run_briefly
from miyabi_llm.tools.running import Shell
from miyabi_llm.types import Event

CMAKE_FLOOR = (3, 14)  # llama.cpp's CMakeLists.txt: cmake_minimum_required(VERSION 3.14...)
PROBE_TIMEOUT = 60.0  # seconds for a compiler to compile ten lines on a busy machine

_INSTALL = {
    "debian": "sudo apt-get install build-essential",
    "ubuntu": "sudo apt-get install build-essential",
    "fedora": "sudo dnf install gcc gcc-c++",
    "rhel": "sudo dnf install gcc gcc-c++",
    "arch": "sudo pacman -S base-devel",
    "alpine": "sudo apk add build-base linux-headers",
    "suse": "sudo zypper install gcc gcc-c++",
    "opensuse": "sudo zypper install gcc gcc-c++",
}
_PROBE = """
#include <cstdio>
#include <filesystem>
#include <thread>
int main() { std::thread([] { std::puts("ok"); }).join(); return std::filesystem::path().empty() ? 0 : 1; }
"""


@dataclass(frozen=True, slots=True)
class Compilers:
    """A C and a C++ compiler; `version` is what the C++ one says of itself."""

    c: Path
    cxx: Path
    version: str


@dataclass(frozen=True, slots=True)
class Builders:
    """cmake, ninja, and an interpreter with pip (None: only the system's own cmake and ninja are there)."""

    cmake: Path
    ninja: Path
    python: Path | None


def compilers(env: Mapping[str, str]) -> Compilers:
    """The compilers of CC and CXX, else the first of the usual names that compiles C++17.

    Raises Missing with this system's command to install them.
    """
    path = env.get("PATH", "")
    troubles = []
    pairs = [(env["CC"], env["CXX"])] if env.get("CC") and env.get("CXX") else [("cc", "c++"), ("gcc", "g++")]
    for c_name, cxx_name in [*pairs, ("clang", "clang++")]:
        c, cxx = shutil.which(c_name, path=path), shutil.which(cxx_name, path=path)
        if c is None or cxx is None:
            continue
        trouble = _probe(cxx, env)
        if trouble is None:
            said = run_briefly((cxx, "--version"), timeout=PROBE_TIMEOUT, env=env).text
            return Compilers(Path(c), Path(cxx), next(iter(said.splitlines()), "unknown"))
        troubles.append(f"{cxx}: {trouble}")
    raise Missing(
        "no working C++ compiler" + (f" ({'; '.join(troubles)})" if troubles else ""),
        hint=f"Run `{install_command(platform.system(), _os_release())}`, then the same command again.",
    )


def _probe(cxx: str, env: Mapping[str, str]) -> str | None:
    """Why this compiler cannot compile and link a C++17 program, or None."""
    with tempfile.TemporaryDirectory(prefix="miyabi-cxx-") as tmp:
        source = Path(tmp, "probe.cpp")
        source.write_text(_PROBE, encoding="utf-8")
        argv = (cxx, "-std=c++17", "-pthread", str(source), "-o", str(Path(tmp, "probe")))
        ran = run_briefly(argv, timeout=PROBE_TIMEOUT, env=env)
    if ran.trouble or ran.code != 0:
        return ran.trouble or next((line for line in ran.text.splitlines() if "error" in line), f"exit {ran.code}")
    return None


def _os_release() -> Mapping[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def install_command(system: str, os_release: Mapping[str, str]) -> str:
    """What to type on this system to get a C++ compiler. Pure."""
    if system == "Darwin":
        return "xcode-select --install"
    for name in (os_release.get("ID", ""), *os_release.get("ID_LIKE", "").split()):
        if name in _INSTALL:
            return _INSTALL[name]
    return "the package manager's install command for gcc and g++ (or clang)"


MakeEnv = Callable[[], envs.Env]


def builders(settings: Settings, shell: Shell, *, make: MakeEnv | None = None) -> Builders:
    """cmake and ninja in an environment of their own, else the system's. Raises Missing when there are neither.

    The environment comes first: its cmake is new enough everywhere, and its pip honours the user's own index.
    """
    make = make or (lambda: envs.make(settings.cache / "envs", "build", ("cmake", "ninja"), shell))
    try:
        env = make()
    except (Missing, OSError) as e:
        trouble: str = str(e)
        python = None
    else:
        cmake, ninja = env.program("cmake"), env.program("ninja")
        if cmake is not None and ninja is not None:
            return Builders(cmake, ninja, env.python)
        trouble, python = f"{env.folder} has no cmake and ninja", env.python
    path = settings.env.get("PATH", "")
    cmake_path, ninja_path = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
    if cmake_path and ninja_path and _cmake_version(cmake_path, settings.env) >= CMAKE_FLOOR:
        shell.on_event(Event("warning", "cmake", f"using the system's: {trouble}"))
        return Builders(Path(cmake_path), Path(ninja_path), python)
    raise Missing(f"no cmake and ninja: {trouble}", hint="Run `pipx install cmake ninja`, or install both packages.")


def _cmake_version(cmake: str, env: Mapping[str, str]) -> tuple[int, ...]:
    m = re.search(r"cmake version (\d+)\.(\d+)", run_briefly((cmake, "--version"), env=env).text)
    return (int(m[1]), int(m[2])) if m else (0,)
