"""What processes have in memory, as the system counts it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Resident:
    """What of a process tree is in memory, in bytes: its own pages, pages of files, and pages that were swapped out."""

    anonymous: int = 0
    file: int = 0
    swapped: int = 0

    @property
    def total(self) -> int:
        """Bytes in memory."""
        return self.anonymous + self.file


def resident(pids: Iterable[int]) -> Resident:
    """What these processes have in memory, from /proc; zeros where there is none."""
    found = {"RssAnon": 0, "RssFile": 0, "RssShmem": 0, "VmSwap": 0}
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, rest = line.partition(":")
            if name in found and (word := rest.split())[:1] and word[0].isdigit():
                found[name] += int(word[0]) << 10
    return Resident(found["RssAnon"] + found["RssShmem"], found["RssFile"], found["VmSwap"])
