"""Amounts of memory as people write them."""

from __future__ import annotations

import re
from typing import Final

from miyabi_llm.errors import BadUsage

_UNITS: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def memory(text: str, option: str) -> int:
    """Bytes out of 4GiB, 300MiB, 2.5G or 16GB. Raises BadUsage that names the option."""
    m = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?) *([kmgt]?)(i?b)?", text.lower())
    if m is None or not float(m[1]):
        raise BadUsage(f"{option} {text!r} is no amount of memory", hint=f"Write {option} 4GiB or {option} 300MiB.")
    if m[3] == "b" and m[2]:
        return int(float(m[1]) * 1000 ** (_UNITS[m[2]] // 10))
    return int(float(m[1]) * 2 ** _UNITS[m[2]])
