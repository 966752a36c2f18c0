"""The programs of llama.cpp: where they are, which build they are, and whether that build may be used."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.config import Settings
from miyabi_llm.errors import BackendMissing
from miyabi_llm.tools.program import (
    TIMEOUT,
    How,
    Program,
    Unusable,
    parse_environment,
    parse_flags,
    run_briefly,
)

SERVER = "llama-server"
# Name of the own program -> word of the unified `llama` (app/llama.cpp); None where it has no such word.
UNIFIED: dict[str, str | None] = {
    SERVER: "serve",
    "llama-quantize": "quantize",
    "llama-perplexity": "perplexity",
    "llama-bench": "bench",
    "llama-cli": "cli",
    "llama-fit-params": "fit-params",
    "llama-imatrix": None,
    "llama-gguf-split": None,
    "llama-export-lora": None,
}

# b10436 (6fed9f6ff, 2026-08-14) is the first build with the fixes of four memory errors that a crafted model
# file triggers while it loads (lmstudio-ai/lmstudio-bug-tracker#2289, ggml-org/llama.cpp#26511); the server's
# n_discard overflow CVE-2026-21869 (#22267) and CVE-2026-27940 (b8146) are older and fixed in it too.
FLOOR = 10436
_NUMBERED = 1000  # a smaller number is no build number: sources without their git history print 0 or 1
# What we call by name. A build that does not say its number is judged by these: the newest of them
# (--load-mode, which replaced --no-mmap) keeps old ones out.
REQUIRED = frozenset(
    {"--model", "--host", "--port", "--alias", "--ctx-size", "--threads", "--api-key", "--cache-ram", "--load-mode"}
)
INSTALL_HINT = "Run `miyabi-llm backend install llama-cpp`."


@dataclass(frozen=True, slots=True)
class Search:
    """The first usable program of that name, if any, and those before it that were passed over."""

    program: Program | None
    rejected: tuple[Unusable, ...] = ()


def find(name: str, settings: Settings) -> Program:
    """The usable program `name`. Raises BackendMissing, naming every unusable one that was found."""
    found = search(name, settings)
    if found.program is not None:
        return found.program
    if not found.rejected:
        raise BackendMissing(f"{name} is not installed", hint=INSTALL_HINT)
    reasons = "; ".join(f"{r.path} {r.reason}" for r in found.rejected)
    raise BackendMissing(f"no usable {name}: {reasons}", hint=INSTALL_HINT)


def search(name: str, settings: Settings, *, timeout: float = TIMEOUT) -> Search:
    """Look through what we installed ourselves, newest first, then PATH. Never raises.

    An own installation comes first: it exists only because PATH had none, or because the user asked for it.
    """
    from miyabi_llm.tools import installed

    rejected: list[Unusable] = []
    for kept in installed.programs(name, settings):
        return Search(kept)
    start = time.monotonic()
    for path, word in candidates(name, settings.env.get("PATH", "")):
        if time.monotonic() - start > 2 * timeout - 0.1:
            rejected.append(Unusable(name, path, "was not looked at: those before it took too long"))
            continue
        seen = inspect(path, name=name, word=word, env=settings.env, timeout=timeout)
        if isinstance(seen, Program):
            return Search(seen, tuple(rejected))
        rejected.append(seen)
    return Search(None, tuple(rejected))


def beside(settings: Settings) -> dict[str, Path]:
    """The other programs of llama.cpp that are here, by name, without running them."""
    from miyabi_llm.tools import installed

    tools: dict[str, Path] = {}
    for name in UNIFIED:
        own = (program.path for program in installed.programs(name, settings))
        on_path = (path for path, _ in candidates(name, settings.env.get("PATH", "")))
        place = next(own, None) or next(on_path, None)
        if place is not None and name != SERVER:
            tools[name] = place
    return tools


def candidates(name: str, path_variable: str) -> Iterator[tuple[Path, str | None]]:
    """Every program of that name on PATH in order, each with the word to call it by if it is the unified one."""
    seen: set[str] = set()
    for own, word in ((name, None), ("llama", UNIFIED.get(name))):
        if own == "llama" and word is None:
            continue
        for folder in path_variable.split(os.pathsep):
            if not os.path.isabs(folder):
                continue  # an empty or relative entry is the current directory: never run what lies there
            hit = shutil.which(own, path=folder)
            if hit and os.path.realpath(hit) + (word or "") not in seen:
                seen.add(os.path.realpath(hit) + (word or ""))
                yield Path(hit), word


def inspect(
    path: Path,
    *,
    name: str = SERVER,
    word: str | None = None,
    how: How = "path",
    env: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> Program | Unusable:
    """Run `--version` and `--help` of one program, each for at most `timeout` seconds, and judge it. Never raises.

    `word` is the unified program's subcommand (`serve`). A program that hangs, floods, crashes or belongs to another
    machine is Unusable with the reason.
    """
    argv = (str(path), word) if word else (str(path),)
    said = run_briefly((str(path), "--version"), timeout=timeout, env=env)
    if said.trouble:
        return Unusable(name, path, said.trouble)
    version, build, commit = parse_version(said.text)
    if not version and (word or name == SERVER):
        first = next((line.strip() for line in said.text.splitlines() if line.strip()), "")
        return Unusable(name, path, f"is no llama.cpp program: --version says {first[:80]!r}")
    told = run_briefly((*argv, "--help"), timeout=timeout, env=env)
    if told.trouble:
        return Unusable(name, path, f"--help {told.trouble}", version)
    program = Program(
        name, path, argv, version, how, build, commit, parse_flags(told.text), parse_environment(told.text)
    )
    reason = judge(program)
    return Unusable(name, path, reason, version) if reason else program


_VERSION = re.compile(r"^version: (?P<version>\S+) \((?:build (?P<build>\d+), commit )?(?P<commit>\w+)\)", re.M)


def parse_version(text: str) -> tuple[str, int | None, str | None]:
    """Version text, build number and commit out of `--version`; ("", None, None) where it is not llama.cpp's.

    Releases before the semantic versions print `version: 10488 (abc1234)`, later ones
    `version: 0.5.0 (build 11312, commit 0c1e57098)`. A build that does not know its number has None.
    """
    m = _VERSION.search(text)
    if m is None:
        return "", None, None
    number = m["build"] or (m["version"] if m["version"].isdigit() else "")
    build = int(number) if number and int(number) >= _NUMBERED else None
    commit = None if m["commit"] == "unknown" else m["commit"]
    label = m["version"] if not m["version"].isdigit() else f"b{m['version']}"
    return (f"{label} (b{build})" if build and not label.startswith("b") else label), build, commit


def judge(program: Program) -> str | None:
    """Why `program` must not be used, or None. Pure.

    A numbered build must reach FLOOR. The server must list every flag of REQUIRED; of an unnumbered build this is
    all that can be checked.
    """
    if program.build is not None and program.build < FLOOR:
        return f"is build b{program.build}; builds before b{FLOOR} have known memory errors"
    if program.name == SERVER and (lacking := sorted(REQUIRED - program.flags)):
        return f"does not know {', '.join(lacking)}: too old, or not llama.cpp's server"
    if not program.flags:
        return "lists no flags with --help"
    return None
