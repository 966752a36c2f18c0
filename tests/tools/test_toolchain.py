"""Compilers are proven before they are used; what is missing is told with the command that mends it."""

import shutil
from pathlib import Path

import pytest

from miyabi_llm.errors import Missing, NetworkError
from miyabi_llm.tools import envs, sdist
from miyabi_llm.tools.lock import SourcePin
from miyabi_llm.tools.running import Shell
from miyabi_llm.tools.toolchain import builders, compilers, install_command
from miyabi_llm.types import Event
from tests.tools.stubs import script, settings


@pytest.mark.parametrize(
    ("system", "release", "words"),
    [
        ("Darwin", {}, "xcode-select --install"),
        ("Linux", {"ID": "debian"}, "apt-get install build-essential"),
        ("Linux", {"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, "apt-get"),
        ("Linux", {"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, "dnf install"),
        ("Linux", {"ID": "alpine"}, "apk add"),
        ("Linux", {"ID": "nixos"}, "package manager"),
    ],
)
def test_the_command_to_type(system: str, release: dict[str, str], words: str) -> None:
    assert words in install_command(system, release)


def test_a_compiler_that_cannot_compile_is_passed_over(tmp_path: Path) -> None:
    for name in ("cc", "c++"):
        script(tmp_path / "bad" / name, "echo 'fatal error: cstdio: No such file' >&2; exit 1")
    with pytest.raises(Missing, match="cstdio: No such file"):
        compilers({"PATH": str(tmp_path / "bad")})
    if shutil.which("g++", path="/usr/bin"):
        found = compilers({"PATH": f"{tmp_path / 'bad'}:/usr/bin"})
        assert found.cxx == Path("/usr/bin/g++")
        assert found.version


def test_no_environment_falls_back_to_the_systems_cmake(tmp_path: Path) -> None:
    def fail() -> envs.Env:
        raise Missing("no index")

    script(tmp_path / "bin" / "cmake", "echo cmake version 3.25.1")
    script(tmp_path / "bin" / "ninja", "echo 1.11")
    events = list[Event]()
    s = settings(tmp_path, tmp_path / "bin")
    found = builders(s, Shell(tmp_path / "log", s.env, events.append), make=fail)
    assert (found.cmake, found.python) == (tmp_path / "bin" / "cmake", None)
    assert any("no index" in e.message for e in events)
    script(tmp_path / "bin" / "cmake", "echo cmake version 3.10.2")
    with pytest.raises(Missing, match="no index"):
        builders(s, Shell(tmp_path / "log", s.env), make=fail)


def test_an_environment_is_made_once(tmp_path: Path) -> None:
    s = settings(tmp_path)
    made = envs.make(tmp_path / "envs", "empty", (), Shell(tmp_path / "log", s.env))
    assert made.python.exists()
    stamp = (made.folder / envs.MARKER).stat().st_mtime_ns
    assert envs.make(tmp_path / "envs", "empty", (), Shell(tmp_path / "log", s.env)) == made
    assert (made.folder / envs.MARKER).stat().st_mtime_ns == stamp


def test_an_index_that_does_not_answer_leaves_no_environment(tmp_path: Path) -> None:
    s = settings(
        tmp_path,
        PIP_CONFIG_FILE="/dev/null",
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_RETRIES="0",
        PIP_NO_INDEX="",
    )
    with pytest.raises(Missing):
        envs.make(tmp_path / "envs", "x", ("no-such-thing-here",), Shell(tmp_path / "log", s.env))
    assert list((tmp_path / "envs").iterdir()) == []


def test_a_failing_pip_is_told_with_its_own_words(tmp_path: Path) -> None:
    pin = SourcePin("fake", "1.0", "0" * 64, 1, "vendor")  # type: ignore[arg-type]
    python = script(tmp_path / "python", "echo 'ERROR: THESE PACKAGES DO NOT MATCH THE HASHES' >&2; exit 1")
    with pytest.raises(NetworkError, match="DO NOT MATCH"):
        sdist.download(pin, python, tmp_path / "in", Shell(tmp_path / "log", {"PATH": "/usr/bin:/bin"}))
    quiet = script(tmp_path / "python", "exit 0")
    with pytest.raises(NetworkError, match="no source"):
        sdist.download(pin, quiet, tmp_path / "in", Shell(tmp_path / "log", {"PATH": "/usr/bin:/bin"}))
    with pytest.raises(Missing):
        sdist.download(pin, None, tmp_path / "in", Shell(tmp_path / "log", {}))
