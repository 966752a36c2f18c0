"""What a server that is ready really takes: its own words about its buffers, and what the system counts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from miyabi_llm.proc.resident import Resident
from miyabi_llm.types import MemoryEstimate

MIB: Final = 1 << 20
PROGRAM_FILES: Final = 64 * MIB  # mapped files beyond the weights that are believed to be the program's own
_BUFFER: Final = re.compile(r"(\S+) +(model|KV|RS|compute|output) buffer size = +(\d+\.\d+) MiB")


@dataclass(frozen=True, slots=True)
class Buffers:
    """What llama-server said it allocated, in bytes; `mapped` is the part of `weights` that is the file itself.

    `gpu` is how much of all that lies on cards.
    """

    weights: int = 0
    repack: int = 0
    mapped: int = 0
    kv: int = 0
    compute: int = 0
    output: int = 0
    gpu: int = 0

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.repack + self.kv + self.compute + self.output


@dataclass(frozen=True, slots=True)
class Comparison:
    """An estimate against what was measured, in bytes.

    `measured` is the sum of the buffers the server allocated (`allocated`) and of what its process takes beside them
    (`program`). Where the server says nothing of its buffers it is what is resident, and the two are None.
    """

    estimated: int
    measured: int
    resident: int
    allocated: int | None = None
    program: int | None = None

    @property
    def error(self) -> float:
        """The estimate's error, as a share of what was measured; above zero when it was too high."""
        return self.estimated / self.measured - 1 if self.measured else 0.0


def buffers(log: str) -> Buffers | None:
    """The buffers that a llama-server's log (verbosity 4) tells; None when it tells none. Pure.

    The caches of layers that slide and of those that do not are two lines: they add up, as do those of several cards.
    """
    sums = dict.fromkeys(("weights", "repack", "mapped", "kv", "compute", "output", "gpu"), 0)
    latest: dict[tuple[str, str], int] = {}
    for device, kind, size in _BUFFER.findall(log):
        number = round(float(size) * MIB)
        if kind in ("compute", "output"):
            latest[(device, kind)] = number  # may be reserved anew
            continue
        name = {"KV": "kv", "RS": "kv"}.get(kind) or ("repack" if _is_copy(device) else "weights")
        sums[name] += number
        sums["mapped"] += number if device == "CPU_Mapped" else 0
        sums["gpu"] += number if _is_card(device) else 0
    for (device, kind), number in latest.items():
        sums[kind] += number
        sums["gpu"] += number if _is_card(device) else 0
    return Buffers(**sums) if sums["weights"] else None


def _is_copy(device: str) -> bool:
    return device in ("CPU_REPACK", "AMX")


def _is_card(device: str) -> bool:
    return not device.startswith(("CPU", "AMX", "BLAS")) and not device.endswith(("_Host", "_host"))


def compare(estimate: MemoryEstimate, told: Buffers | None, seen: Resident) -> Comparison | None:
    """The estimate against the server as it is now; None when nothing could be measured. Pure.

    Working memory is not touched before the first long prompt: so buffers count as allocated, not as resident, and
    the rest is what the process has beyond those that are touched at once.
    """
    if told is None:
        return Comparison(estimate.total, seen.total, seen.total) if seen.total else None
    if not seen.total or told.gpu:  # on a card, a process's memory says nothing of its buffers
        program = estimate.runtime
    else:
        own = max(0, seen.anonymous - (told.total - told.mapped - told.compute))
        program = own + min(PROGRAM_FILES, max(0, seen.file - told.mapped))
    return Comparison(estimate.total, told.total + program, seen.total, told.total, program)
