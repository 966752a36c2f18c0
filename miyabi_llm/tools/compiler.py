"""What the C++ compiler of this machine must be told so that a native build runs on it."""

from __future__ import annotations

import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from miyabi_llm.hardware import Hardware

NO_AMX = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")
TIMEOUT = 60  # seconds for compiling or running the probe


def safe_flags(cxx: Path, hardware: Hardware) -> tuple[str, ...]:
    """Compiler flags that switch off what this compiler gets wrong on this CPU; empty where nothing is wrong.

    A CPU that advertises AMX is probed by compiling and running a program of a few lines: g++ 12.2 loads a
    half-initialised tile configuration, and a server built with it dies in its first matrix product.
    """
    if not any(flag.startswith("amx") for flag in hardware.cpu_flags):
        return ()
    with tempfile.TemporaryDirectory(prefix="miyabi-amx-") as tmp:
        source, probe = Path(tmp, "amx_probe.cpp"), Path(tmp, "amx_probe")
        source.write_text(resources.files("miyabi_llm.data").joinpath("amx_probe.cpp").read_text(encoding="utf-8"))
        compile_ = [str(cxx), "-std=c++17", "-O2", "-march=native", str(source), "-o", str(probe)]
        try:
            for argv in (compile_, [str(probe)]):
                done = subprocess.run(argv, capture_output=True, timeout=TIMEOUT, cwd=tmp, check=False)
                if done.returncode != 0:
                    return NO_AMX
        except (OSError, subprocess.TimeoutExpired):
            return NO_AMX
    return ()
