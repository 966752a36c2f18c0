"""Little programs that answer like llama.cpp's, or badly; and a tiny source that builds into one."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

from miyabi_llm import config
from miyabi_llm.config import Settings
from miyabi_llm.tools.llama_cpp import REQUIRED
from miyabi_llm.tools.lock import Lock, SourcePin

HELP = "\n".join(
    ["----- common params -----", "-h,    --help, --usage    print usage", "-c,    --ctx-size N     size"]
    + [f"{flag} X    what it does" for flag in sorted(REQUIRED)]
    + ["--no-ui, --no-webui     no page", "--jinja, --no-jinja   templates", "--offline   no network"]
    + ["--api-key KEY   key", "                        (env: LLAMA_API_KEY)"]
)
GOOD = "version: 0.5.0 (build 11312, commit 0c1e57098)"


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def alive_in_group(group: int) -> list[str]:
    """Processes of a process group that still live (the dead may wait for init to fetch them)."""
    import psutil

    alive = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process.name())
        except (psutil.Error, OSError):
            continue
    return alive


def server(path: Path, version: str = GOOD, help_: str = HELP) -> Path:
    """A program that knows --version and --help, on stderr and stdout like the real one."""
    return script(
        path,
        f"""case "$*" in
*--version*) echo '{version}' >&2;;
*--help*) cat <<'END'
{help_}
END
;;
*) exit 1;;
esac""",
    )


def settings(tmp_path: Path, *folders: Path, **env: str) -> Settings:
    """Settings with a cache of their own and a PATH of `folders` before the system's own shell."""
    path = ":".join([*map(str, folders), "/usr/bin", "/bin"])
    return config.load({"HOME": str(tmp_path), "PATH": path, "MIYABI_CACHE": str(tmp_path / "cache"), **env})


CMAKE = """cmake_minimum_required(VERSION 3.14...3.28)
project(fake C CXX)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_library(answers SHARED answers.c)
set_target_properties(answers PROPERTIES VERSION 1.2.3 SOVERSION 1)
target_compile_definitions(answers PRIVATE BUILD=${LLAMA_BUILD_NUMBER} COMMIT="${LLAMA_BUILD_COMMIT}")
foreach(name llama-server llama-quantize)
  add_executable(${name} main.cpp)
  target_link_libraries(${name} PRIVATE answers)
endforeach()
"""
MAIN = """#include <cstring>
extern "C" int answer(const char *);
int main(int n, char ** words) { return n > 1 ? answer(words[1]) : 1; }
"""


def answers() -> str:
    lines = "\n".join(f'    puts("{line}");' for line in HELP.splitlines())
    return f"""#include <stdio.h>
#include <string.h>
int answer(const char * word) {{
    if (!strcmp(word, "--version"))
        return fprintf(stderr, "version: 0.5.0-dev (build %d, commit %s)\\n", BUILD, COMMIT) < 0;
{lines}
    return 0;
}}
"""


def source(path: Path, **changed: str) -> Lock:
    """Write a source distribution of a tiny llama.cpp to `path`; the lock that pins it."""
    files = {"CMakeLists.txt": CMAKE, "main.cpp": MAIN, "answers.c": answers(), "docs/big.md": "left out"} | changed
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"fake-1.0/vendor/llama.cpp/{name}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
        tar.addfile(tarfile.TarInfo("fake-1.0/vendor/other/file"), io.BytesIO())
    data = path.read_bytes()
    pin = SourcePin("fake", "1.0", hashlib.sha256(data).hexdigest(), len(data), "vendor/llama.cpp")  # type: ignore[arg-type]
    return Lock(11312, "0c1e57098bba43ac29e6e3b677cdceebdd22334f", pin, ())
