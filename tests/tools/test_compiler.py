"""The probe finds compilers that build a server which dies in its first matrix product."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from miyabi_llm import hardware
from miyabi_llm.tools.compiler import NO_AMX, safe_flags

AMX = frozenset({"amx_tile", "amx_int8", "amx_bf16"})


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def compiler_making(path: Path, rc: int) -> Path:
    """A compiler whose programs exit with `rc`."""
    return script(
        path, f'while [ "$1" != -o ]; do shift; done; printf "#!/bin/sh\\nexit {rc}\\n" > "$2"; chmod 755 "$2"'
    )


def test_a_cpu_without_amx_is_not_probed(tmp_path: Path) -> None:
    machine = replace(hardware.look(), cpu_flags=frozenset({"avx2"}))
    assert safe_flags(tmp_path / "no such compiler", machine) == ()


@pytest.mark.parametrize(("rc", "flags"), [(0, ()), (3, NO_AMX), (139, NO_AMX)])
def test_amx_is_switched_off_where_the_probe_fails(tmp_path: Path, rc: int, flags: tuple[str, ...]) -> None:
    machine = replace(hardware.look(), cpu_flags=AMX)
    assert safe_flags(compiler_making(tmp_path / "c++", rc), machine) == flags


@pytest.mark.parametrize("compiler", ["exit 1", "exec sleep 0.1; exit 9"])
def test_a_failing_compiler_switches_amx_off(tmp_path: Path, compiler: str) -> None:
    machine = replace(hardware.look(), cpu_flags=AMX)
    assert safe_flags(script(tmp_path / "c++", compiler), machine) == NO_AMX


def test_the_flags_really_switch_amx_off() -> None:
    import subprocess

    cxx = shutil.which("g++") or shutil.which("c++")
    if cxx is None or hardware.look().machine != "x86_64":
        pytest.skip("needs a C++ compiler on x86-64")
    done = subprocess.run(
        [cxx, *NO_AMX, "-march=native", "-dM", "-E", "-x", "c++", "-"], input="", capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "__AMX" not in done.stdout
