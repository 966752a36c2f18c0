"""What this machine has: processors, memory, accelerators. It is looked at, never judged, here."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from miyabi_llm.tools.program import run_briefly

GPU_TIMEOUT = 2.0  # seconds for nvidia-smi or rocm-smi: a broken driver makes them hang


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator. Memory in bytes, None where unknown; on Apple machines it is the machine's own memory."""

    kind: Literal["cuda", "rocm", "metal"]
    name: str
    memory_total: int | None = None
    memory_free: int | None = None
    driver: str = ""
    compute: str = ""


@dataclass(frozen=True, slots=True)
class Hardware:
    """The machine as this process may use it.

    `physical_cores` and `logical_cores` are the machine's; `usable_cores` is what affinity and the container's quota
    leave, counted in physical cores (the right number of threads for llama.cpp). Memory in bytes:
    `ram_total` and `ram_available` are already cut to the container's limit, `ram_limit` is that limit or None.
    """

    system: str
    machine: str
    cpu: str
    physical_cores: int
    logical_cores: int
    usable_cores: int
    cpu_flags: frozenset[str]
    ram_total: int
    ram_available: int
    ram_limit: int | None
    swap_total: int
    gpus: tuple[Gpu, ...]
    notes: tuple[str, ...] = ()

    def disk_free(self, path: Path) -> int | None:
        """Bytes free where `path` is or will be; None when that cannot be told."""
        return disk_free(path)


def look(env: Mapping[str, str] | None = None) -> Hardware:
    """Look at the machine. Never raises: what cannot be told is zero, empty or None, with a note."""
    logical, physical, total, available, swap = _counts()
    notes = [] if total else ["the amount of memory could not be read"]
    limit, used = memory_limit()
    if limit is not None and total and limit < total:
        total = limit
        available = max(0, min(available, limit - (used or 0)))
    else:
        limit = None
    gpus, gpu_notes = look_for_gpus(env, total, available)
    return Hardware(
        system=platform.system(),
        machine=platform.machine(),
        cpu=cpu_name(),
        physical_cores=physical,
        logical_cores=logical,
        usable_cores=usable_cores(logical, physical, allowed_cpus(), cpu_quota()),
        cpu_flags=cpu_flags(),
        ram_total=total,
        ram_available=available,
        ram_limit=limit,
        swap_total=swap,
        gpus=gpus,
        notes=(*notes, *gpu_notes),
    )


def available() -> int | None:
    """Bytes of memory this process could still take, the container's limit counted; None when it cannot be told."""
    _, _, total, free, _ = _counts()
    if not total:
        return None
    limit, used = memory_limit()
    return free if limit is None or limit >= total else min(free, limit - (used or 0))


def usable_cores(logical: int, physical: int, allowed: int | None, quota: float | None) -> int:
    """Physical cores this process may use, at least 1. Pure.

    `allowed` logical processors of the affinity mask are taken as whole cores with all their threads; `quota` is
    the container's, in processors.
    """
    threads_per_core = max(1, logical // max(1, physical))
    cores = physical if allowed is None else min(physical, -(-allowed // threads_per_core))
    if quota is not None:
        cores = min(cores, int(quota))
    return max(1, cores)


def disk_free(path: Path) -> int | None:
    """Bytes free where `path` is, or at its nearest folder that exists; None when that cannot be told."""
    for place in (path, *path.parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def _counts() -> tuple[int, int, int, int, int]:
    """Logical and physical processors, memory in all and available, swap in all."""
    import psutil

    try:
        logical = psutil.cpu_count() or os.cpu_count() or 1
        physical = psutil.cpu_count(logical=False) or logical
        memory, swap = psutil.virtual_memory(), psutil.swap_memory().total
    except (OSError, RuntimeError, psutil.Error):  # a hardened container may hide /proc
        cores = os.cpu_count() or 1
        return cores, cores, 0, 0, 0
    return logical, min(physical, logical), int(memory.total), int(memory.available), int(swap)


def allowed_cpus() -> int | None:
    """Logical processors in this process's affinity mask; None where the system has no such thing."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return None


def _cgroup_folders(root: Path, controller: str, membership: str) -> list[Path]:
    """The folders of the v2 tree, then of the v1 `controller`, that hold this process, innermost first. Pure."""
    places: list[Path] = []
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, inner = rest.partition(":")
        base = root if not controllers else root / controller if controller in controllers.split(",") else None
        if base is not None:
            here = Path(inner.lstrip("/"))
            places += [base / here, *(base / p for p in here.parents)]
    return [*places, root, root / controller]


def _numbers(path: Path) -> list[int | None]:
    try:
        return [int(word) if word.lstrip("-").isdigit() else None for word in path.read_text().split()]
    except (OSError, ValueError):
        return []


_CGROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60  # v1 writes a number near 2^63 where there is no limit


def _membership() -> str:
    try:
        return Path("/proc/self/cgroup").read_text()
    except OSError:
        return ""


def memory_limit(root: Path = _CGROUPS, membership: str | None = None) -> tuple[int | None, int | None]:
    """The smallest memory limit of this process's control groups and what that group uses now, in bytes.

    Page cache that the kernel can drop (inactive_file) does not count as used.
    """
    best: tuple[int | None, int | None] = (None, None)
    for folder in _cgroup_folders(root, "memory", _membership() if membership is None else membership):
        for limit_name, usage_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit = next(iter(_numbers(folder / limit_name)), None)
            if limit is None or limit >= _NO_LIMIT or (best[0] is not None and best[0] <= limit):
                continue
            used = next(iter(_numbers(folder / usage_name)), None)
            best = (limit, None if used is None else max(0, used - _droppable(folder)))
    return best


def _droppable(folder: Path) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stat = dict(line.split(" ", 1) for line in lines if " " in line)
    value = stat.get("total_inactive_file", stat.get("inactive_file", "0"))
    return int(value) if value.isdigit() else 0


def cpu_quota(root: Path = _CGROUPS, membership: str | None = None) -> float | None:
    """Processors the control groups' quota leaves, or None without a quota."""
    quotas: list[float] = []
    for folder in _cgroup_folders(root, "cpu", _membership() if membership is None else membership):
        match _numbers(folder / "cpu.max"):
            case [int(quota), int(period)] if quota > 0 and period > 0:
                quotas.append(quota / period)
        match _numbers(folder / "cpu.cfs_quota_us"), _numbers(folder / "cpu.cfs_period_us"):
            case [int(quota)], [int(period)] if quota > 0 and period > 0:
                quotas.append(quota / period)
    return min(quotas, default=None)


@lru_cache(maxsize=1)
def _cpuinfo() -> Mapping[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty on other systems."""
    info: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, colon, value = line.partition(":")
                if colon:
                    info.setdefault(key.strip(), value.strip())
                elif info and "flags" in info:
                    break
    except OSError:
        pass
    return info


def cpu_flags() -> frozenset[str]:
    """The abilities of the processor as the kernel names them; empty where they cannot be read."""
    info = _cpuinfo()
    return frozenset((info.get("flags") or info.get("Features") or "").split())


def cpu_name() -> str:
    """The processor's name, or its architecture."""
    info = _cpuinfo()
    name = info.get("model name") or info.get("Model") or ""
    if not name and sys.platform == "darwin":
        name = run_briefly(("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"), timeout=1).text.strip()
    return name or platform.processor() or platform.machine()


def platform_key() -> str:
    """System and architecture: what a published program depends on."""
    return f"{platform.system()}-{platform.machine()}"


def machine_key() -> str:
    """A short name for what a natively built program depends on: system, architecture, processor abilities."""
    text = " ".join((platform.system(), platform.machine(), *sorted(cpu_flags())))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def look_for_gpus(
    env: Mapping[str, str] | None, ram_total: int, ram_available: int, *, timeout: float = GPU_TIMEOUT
) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """The accelerators and notes on tools that did not answer. The memory sizes serve Apple's shared memory.

    A tool may take `timeout` seconds; after one that took longer the next gets a short chance only.
    """
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return (Gpu("metal", cpu_name(), ram_total or None, ram_available or None),), ()
    gpus: list[Gpu] = []
    notes: list[str] = []
    path = None if env is None else env.get("PATH", "")
    for tool, query, parse in (
        ("nvidia-smi", _NVIDIA, parse_nvidia_smi),
        ("rocm-smi", _ROCM, parse_rocm_smi),
    ):
        program = shutil.which(tool, path=path)
        if program is None:
            continue
        said = run_briefly((program, *query), timeout=timeout, env=env)
        timeout = timeout if said.code is not None else min(timeout, 0.3)
        if said.trouble or said.code != 0:
            notes.append(f"{tool}: {said.trouble or _first_line(said.text) or f'exit code {said.code}'}")
            continue
        gpus += parse(said.text)
    return tuple(gpus), tuple(notes)


_NVIDIA = (
    "--query-gpu=name,memory.total,memory.free,driver_version,compute_cap",
    "--format=csv,noheader,nounits",
)
_ROCM = ("--showproductname", "--showmeminfo", "vram", "--csv")


def parse_nvidia_smi(text: str) -> list[Gpu]:
    """The GPUs of `nvidia-smi --query-gpu=name,memory.total,memory.free,driver_version,compute_cap` (MiB). Pure."""
    gpus = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 5 and cells[0]:
            gpus.append(Gpu("cuda", cells[0], _mib(cells[1]), _mib(cells[2]), cells[3], cells[4]))
    return gpus


def parse_rocm_smi(text: str) -> list[Gpu]:
    """The GPUs of `rocm-smi --showproductname --showmeminfo vram --csv` (bytes). Pure."""
    import csv

    lines = [line for line in text.splitlines() if "," in line]
    gpus = []
    for row in csv.DictReader(lines):
        low = {key.lower(): value for key, value in row.items() if key and isinstance(value, str)}
        name = next((v for k, v in low.items() if "series" in k or "product name" in k or "card model" in k), "")
        total = next((v for k, v in low.items() if "total memory" in k), "")
        used = next((v for k, v in low.items() if "used memory" in k), "")
        size = int(total) if total.isdigit() else None
        free = size - int(used) if size is not None and used.isdigit() else None
        if low.get("device", "").startswith("card"):
            gpus.append(Gpu("rocm", name or low["device"], size, free))
    return gpus


def _mib(cell: str) -> int | None:
    return int(cell) << 20 if cell.isdigit() else None


def _first_line(text: str) -> str:
    return next((line.strip()[:120] for line in text.splitlines() if line.strip()), "")
