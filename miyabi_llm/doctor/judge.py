"""What the doctor thinks of what it is shown: pure judgements, each with its fix."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from miyabi_llm.gguf import Header
from miyabi_llm.hardware import Gpu, Hardware
from miyabi_llm.memory import MIB, Use, estimate, largest_ctx
from miyabi_llm.tools.program import Program, Ran, Unusable
from miyabi_llm.types import Finding, Level, counted

GIB: Final = 1 << 30
LOW_RAM: Final = 4 * GIB  # below it not even small models serve well
LOW_DISK: Final = 10 * GIB
NO_DISK: Final = 2 * GIB
PLANNED_CTX: Final = 8192  # tokens the default model is judged at
MARGIN: Final = 512 * MIB
INSTALL: Final = "miyabi-llm backend install llama-cpp"
_ORDER: Final[dict[Level, int]] = {"ok": 0, "unknown": 1, "warn": 2, "fail": 3}
_VERSION: Final = re.compile(r"\d+\.\d+(?:\.\d+)?[\w.+-]*")


class Server(Protocol):
    """What the doctor asks of a running server."""

    @property
    def name(self) -> str: ...
    @property
    def ref(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def restarts(self) -> int: ...
    @property
    def error(self) -> str | None: ...


def worst(findings: Iterable[Finding]) -> Level:
    """The gravest level among the findings."""
    return max((f.level for f in findings), key=_ORDER.__getitem__, default="ok")


def python(version: tuple[int, int, int], prefix: str) -> Finding:
    """The interpreter."""
    text = ".".join(map(str, version))
    if version < (3, 11):
        return Finding(
            "python", "fail", f"{text} is too old; 3.11 is needed", fix="pipx reinstall miyabi-llm --python 3.11"
        )
    return Finding("python", "ok", f"{text} in {prefix}")


def processor(hardware: Hardware) -> Finding:
    """The CPU and the instructions llama.cpp is fast with."""
    flags, cores = hardware.cpu_flags, f"{hardware.usable_cores} of {hardware.physical_cores} cores"
    known = {"avx512f": "AVX-512", "avx2": "AVX2", "amx_int8": "AMX", "asimddp": "dot product", "i8mm": "int8 matrix"}
    fast = [name for flag, name in known.items() if flag in flags]
    text = f"{hardware.cpu or hardware.machine}, {cores}" + (f", {', '.join(fast)}" if fast else "")
    data = {"cores": hardware.usable_cores, "machine": hardware.machine, "simd": fast}
    if flags and hardware.machine in ("x86_64", "AMD64") and "avx2" not in flags:
        return Finding("processor", "warn", f"{text}: without AVX2 models run several times slower", data=data)
    return Finding("processor", "ok", text, data=data)


def memory(hardware: Hardware) -> Finding:
    """The memory that is free for a model."""
    total, free = hardware.ram_total, hardware.ram_available
    data = {"total": total, "available": free, "limit": hardware.ram_limit}
    if not total:
        return Finding("memory", "unknown", "cannot be read", fix="cat /proc/meminfo", data=data)
    where = " (the container's limit)" if hardware.ram_limit else ""
    text = f"{_gib(free)} free of {_gib(total)}{where}"
    if free < LOW_RAM:
        return Finding("memory", "warn", f"{text}: only the smallest models fit", fix="miyabi-llm ps", data=data)
    return Finding("memory", "ok", text, data=data)


def gpus(found: Sequence[Gpu], notes: Sequence[str]) -> list[Finding]:
    """The cards; a driver's tool that does not answer is a fault of its own."""
    bad = []
    for note in notes:
        tool = note.partition(":")[0]
        if "did not end" in note:
            bad.append(Finding("gpu", "unknown", note, fix=f"timeout 10 {tool}"))
        else:
            bad.append(Finding("gpu", "warn", f"{note}: the driver does not work, models run on the CPU", fix=tool))
    good = [
        Finding("gpu", "ok", f"{g.name}, {_gib(g.memory_free)} free of {_gib(g.memory_total)}", data={"kind": g.kind})
        for g in found
    ]
    return bad + good or [Finding("gpu", "ok", "none: models run on the CPU")]


def disk(name: str, path: Path, free: int | None, *, writable: bool) -> Finding:
    """The place of the store or the cache."""
    data = {"path": path, "free": free}
    if not writable:
        return Finding(name, "fail", f"{path} cannot be written", fix=f"chmod u+rwx {path}", data=data)
    if free is None:
        return Finding(name, "unknown", f"{path}: the free space cannot be read", fix=f"df -h {path}", data=data)
    text = f"{_gib(free)} free at {path}"
    if free < LOW_DISK:
        level: Level = "fail" if free < NO_DISK else "warn"
        return Finding(name, level, f"{text}: too little for most models", fix="miyabi-llm prune", data=data)
    return Finding(name, "ok", text, data=data)


def llama_cpp(program: Program | None, rejected: Sequence[Unusable]) -> list[Finding]:
    """The server for GGUF models, and every broken one that lies in its way."""
    bad = [_broken(r, passed_over=program is not None) for r in rejected]
    if program is not None:
        text = f"{program.version} at {program.path} ({program.how})"
        return [Finding("llama-cpp", "ok", text, data={"path": program.path, "version": program.version}), *bad]
    if any(_hung(r) for r in rejected):
        return [Finding("llama-cpp", "unknown", "no program that answers", fix=INSTALL), *bad]
    text = "llama-server is not installed" if not rejected else "no usable llama-server"
    return [Finding("llama-cpp", "fail", text, fix=INSTALL), *bad]


def _hung(bad: Unusable) -> bool:
    return "did not end" in bad.reason


def _broken(bad: Unusable, *, passed_over: bool) -> Finding:
    text, look = f"{bad.path} {bad.reason}", f"timeout 10 {shlex.quote(str(bad.path))} --version"
    if passed_over:  # installing another one would change nothing: its owner must look at it, or remove it
        text += "; it is passed over"
    fix = look if passed_over or _hung(bad) else INSTALL
    return Finding("llama-cpp", "unknown" if _hung(bad) else "warn", text, fix=fix, data={"path": bad.path})


def optional(name: str, path: str | None, said: Ran | None) -> Finding:
    """A backend that may be there: its version, or why it does not answer. `said` None: it was not asked."""
    if path is None:
        return Finding(name, "ok", "not installed (optional)")
    data: dict[str, object] = {"path": path}
    if said is None:
        return Finding(name, "ok", f"at {path} (its version is not asked: it takes long to start)", data=data)
    if said.trouble:
        level: Level = "unknown" if "did not end" in said.trouble else "warn"
        return Finding(name, level, f"{path} {said.trouble}", fix=f"timeout 10 {path} --version", data=data)
    match = _VERSION.search(said.text)
    if said.code != 0 or match is None:
        words = next((line.strip()[:80] for line in said.text.splitlines() if line.strip()), f"exit code {said.code}")
        message = f"{path} says no version: {words!r}"
        return Finding(name, "warn", message, fix=f"{path} --version", data=data)
    return Finding(name, "ok", f"{match[0]} at {path}", data=data | {"version": match[0]})


def environment(name: str, program: Program | None, rejected: Sequence[Unusable]) -> Finding:
    """A backend in a Python environment, judged by its files: none was started."""
    if program is not None:
        data: dict[str, object] = {"path": program.path, "version": program.version}
        return Finding(name, "ok", f"{program.version} at {program.path} ({program.how})", data=data)
    if rejected:
        fix = f"miyabi-llm backend install {name}"
        return Finding(name, "warn", f"{rejected[0].path} {rejected[0].reason}", fix=fix)
    return Finding(name, "ok", "not installed (optional)")


def build(tools: Mapping[str, bool], install_compiler: str, *, needed: bool) -> Finding:
    """What a build of llama.cpp takes: `tools` has c++, venv and pip. Missing ones matter when one is `needed`."""
    lacking = [name for name, here in tools.items() if not here]
    if not lacking:
        return Finding("build tools", "ok", "a compiler and pip are here")
    fix = install_compiler if "c++" in lacking else "sudo apt-get install python3-venv python3-pip"
    text = f"no {', no '.join(lacking)}"
    if not needed:
        return Finding("build tools", "ok", f"{text}; not needed, llama-server is here")
    return Finding("build tools", "warn", f"{text}: llama.cpp cannot be built here", fix=fix)


def default_model(ref: str, header: Header | None, hardware: Hardware | None, use: Use | None = None) -> Finding:
    """The model that is served when none is named; `header` None: it is not here. `use`: how it would be served."""
    if header is None:
        return Finding("default model", "warn", f"{ref} is not here", fix=f"miyabi-llm pull {ref}")
    if hardware is None or not hardware.ram_total:
        return Finding("default model", "ok", f"{ref} is here")
    ctx = min(PLANNED_CTX, header.context_length or PLANNED_CTX)
    use = use or Use(repack=hardware.cpu_flags)
    needed = estimate(header, ctx, use).total
    free = hardware.ram_available - MARGIN
    most = largest_ctx(header, free, use)
    data = {"needed": needed, "available": free, "ctx": ctx, "largest_ctx": most}
    text = f"{ref} needs {_gib(needed)} at {ctx} tokens, {_gib(free)} may be used"
    if needed <= free:
        return Finding("default model", "ok", f"{text}: it fits, up to {most} tokens", data=data)
    rest = f": {most} tokens would fit" if most else ": it does not fit"
    return Finding("default model", "warn", text + rest, fix=f"miyabi-llm fit {ref}", data=data)


def servers(running: Sequence[Server]) -> list[Finding]:
    """The servers we started."""
    found = []
    for s in running:
        text = f"{s.ref} on port {s.port}: {s.state}" + (f", {s.error}" if s.error else "")
        if s.state == "dead":
            found.append(Finding(f"server {s.name}", "warn", text, fix=f"miyabi-llm logs {s.name}"))
        elif s.restarts:
            text = f"{text}, restarted {counted(s.restarts, 'time')}"
            found.append(Finding(f"server {s.name}", "warn", text, fix=f"miyabi-llm logs {s.name}"))
        else:
            found.append(Finding(f"server {s.name}", "ok", text))
    return found or [Finding("servers", "ok", "none running")]


def network(*, offline: bool, hub: str, token: str | None) -> list[Finding]:
    """Whether sources may be asked, and where the hub's token comes from (never the token)."""
    reach = "offline by choice: nothing is fetched" if offline else f"allowed; the hub is {hub}"
    held = f"found in {token}" if token else "none: gated models cannot be pulled (`hf auth login` makes one)"
    return [Finding("network", "ok", reach), Finding("hub token", "ok", held)]


def silent(name: str, seconds: float) -> Finding:
    """A look that did not come back in time."""
    return Finding(name, "unknown", f"did not answer in {seconds:g} s", fix="miyabi-llm doctor")


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / GIB:.1f} GiB" if size >= GIB else f"{max(0, size) / MIB:.0f} MiB"
