"""What the servers' processes take while they are measured: memory, processor time, energy, and the memory of cards."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlsplit

from miyabi_llm.proc.ports import is_loopback
from miyabi_llm.types import Endpoint

EVERY_S: Final = 1.0  # a look costs about a millisecond per process: rare enough to disturb nothing
POWERCAP: Final = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class Resources:
    """What one server's process tree took during its own blocks of a run.

    `memory` is resident bytes: the peak and the mean of the looks. `cpu_s` is processor time of the tree over
    `seconds` of wall clock, so `cpu_s / seconds` is cores in use. `energy_j` is that of the processor packages of the
    whole machine, ours included; `gpu_memory` the most the tree held on NVIDIA cards, in bytes, and `gpu_energy_j` what
    those cards took. None where the system does not tell.
    """

    seconds: float
    cpu_s: float
    memory_peak: int
    memory_mean: int
    looks: int
    energy_j: float | None = None
    gpu_memory: int | None = None
    gpu_energy_j: float | None = None

    @property
    def cores(self) -> float:
        """Cores in use, on the average."""
        return self.cpu_s / self.seconds if self.seconds > 0 else 0.0


def server_pid(endpoint: Endpoint) -> int | None:
    """The process that listens at a loopback endpoint; None when it is elsewhere, or not ours to see."""
    import psutil

    url = urlsplit(endpoint.base_url)
    if not is_loopback(url.hostname or ""):
        return None
    port = url.port or (443 if url.scheme == "https" else 80)
    with suppress(psutil.Error, OSError):
        for c in psutil.net_connections("tcp"):
            if c.status == psutil.CONN_LISTEN and c.laddr.port == port and c.pid:
                return int(c.pid)
    return None


class Meter:
    """Looks at one process tree from a thread of its own while it is entered; may be entered again and again."""

    def __init__(self, endpoint: Endpoint, powercap: Path = POWERCAP) -> None:
        self._endpoint = endpoint
        self._packages = packages(powercap)
        self._cards: Cards | None = None
        self._looks: list[int] = []
        self._seconds = self._cpu = 0.0
        self._energy: float | None = None
        self._gpu_memory: int | None = None
        self._gpu_energy: float | None = None
        self._stop = threading.Event()

    def __enter__(self) -> Meter:
        self._pid = server_pid(self._endpoint)  # anew each time: a server may have been restarted
        self._begin, self._cpu_seen = time.perf_counter(), self._tree_cpu()
        self._cards = Cards.open()
        self._gpu_begin = self._cards.energy_j() if self._cards else None
        self._energy_begin = read_energy(self._packages)
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, name="resources", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self._seconds += time.perf_counter() - self._begin
        now = self._tree_cpu()  # by process: one that was restarted meanwhile starts at zero
        self._cpu += sum(max(0.0, t - self._cpu_seen.get(pid, 0.0)) for pid, t in now.items())
        used = spent(self._energy_begin, read_energy(self._packages), self._packages)
        if used is not None:
            self._energy = (self._energy or 0.0) + used
        if self._cards is not None:
            after = self._cards.energy_j()
            if after is not None and self._gpu_begin is not None:
                self._gpu_energy = (self._gpu_energy or 0.0) + after - self._gpu_begin
            self._cards.close()

    def result(self) -> Resources | None:
        """What was seen; None when the processes are not to be seen from here."""
        if not self._looks:
            return None
        mean = round(sum(self._looks) / len(self._looks))
        return Resources(
            self._seconds, self._cpu, max(self._looks), mean, len(self._looks),
            self._energy, self._gpu_memory, self._gpu_energy,
        )  # fmt: skip

    def _watch(self) -> None:
        self._look()
        while not self._stop.wait(EVERY_S):
            self._look()

    def _look(self) -> None:
        import psutil

        total = 0
        tree = self._tree()
        for p in tree:
            with suppress(psutil.Error):
                total += p.memory_info().rss
        if total:
            self._looks.append(total)
        if self._cards is not None and (held := self._cards.memory({p.pid for p in tree})) is not None:
            self._gpu_memory = max(self._gpu_memory or 0, held)

    def _tree(self) -> list[Any]:
        import psutil

        if self._pid is None:
            return []
        with suppress(psutil.Error):
            root = psutil.Process(self._pid)
            return [root, *root.children(recursive=True)]
        return []

    def _tree_cpu(self) -> dict[int, float]:
        import psutil

        found = {}
        for p in self._tree():
            with suppress(psutil.Error):
                times = p.cpu_times()
                found[p.pid] = times.user + times.system
        return found


def packages(root: Path = POWERCAP) -> Mapping[Path, int]:
    """The energy counters of the processor packages that we may read, each with the count at which it wraps, in uJ.

    Only whole packages (`intel-rapl:0`): their parts (`intel-rapl:0:0`) are counted in them. Since 2020 Linux lets only
    root read them (CVE-2020-8694).
    """
    found = {}
    with suppress(OSError):
        for folder in sorted(root.glob("intel-rapl:*")):
            if folder.name.count(":") != 1:
                continue
            with suppress(OSError, ValueError):
                if (folder / "name").read_text().startswith("package"):
                    int((folder / "energy_uj").read_text())
                    found[folder / "energy_uj"] = int((folder / "max_energy_range_uj").read_text())
    return found


def read_energy(counters: Mapping[Path, int]) -> tuple[int, ...] | None:
    """Every counter now, in microjoules; None without one."""
    try:
        return tuple(int(path.read_text()) for path in counters) or None
    except (OSError, ValueError):
        return None


def spent(before: Sequence[int] | None, after: Sequence[int] | None, counters: Mapping[Path, int]) -> float | None:
    """Joules between two readings; each counter may have wrapped once. Pure."""
    if before is None or after is None:
        return None
    gone = ((b - a) if b >= a else (b + wrap - a) for a, b, wrap in zip(before, after, counters.values(), strict=True))
    return sum(gone) / 1e6


class Cards:
    """NVIDIA's cards, by their own library, where the package `nvidia-ml-py` is installed."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]

    @classmethod
    def open(cls) -> Cards | None:
        """The cards of this machine; None without the package, the driver or a card."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            return cls(pynvml)
        except pynvml.NVMLError:
            return None

    def memory(self, pids: set[int]) -> int | None:
        """Bytes these processes hold on the cards; None where the driver does not say."""
        total = None
        with suppress(self._nvml.NVMLError):
            for handle in self._handles:
                for p in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                    if p.pid in pids and p.usedGpuMemory is not None:
                        total = (total or 0) + int(p.usedGpuMemory)
        return total

    def energy_j(self) -> float | None:
        """Joules since the driver was loaded, of all cards; None before Volta."""
        try:
            return sum(float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(h)) for h in self._handles) / 1e3
        except self._nvml.NVMLError:
            return None

    def close(self) -> None:
        """Let the library go."""
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()
