"""Finding and installing llama-cpp-python: what is whole and new enough is used, everything else is named."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from miyabi_llm import hardware
from miyabi_llm.config import Settings
from miyabi_llm.tools import embedded, installed
from miyabi_llm.types import Event
from tests.conftest import USER
from tests.tools.stubs import script, settings


def made(home: Path, **changes: object) -> Path:
    """An installation as `install` leaves it, of empty files."""
    folder = settings(home).cache / "envs" / "embedded-0"
    package = folder / "lib" / "llama_cpp"
    package.mkdir(parents=True)
    python = script(folder / "bin" / "python", "exit 0")
    body = {"schema": 1, "version": "0.3.36", "build": 11312, "commit": "abc", "how": "build"}
    body |= {"machine": hardware.machine_key(), "package": str(package)} | changes
    (folder / "embedded.json").write_text(json.dumps(body))
    return python


def answering(path: Path, **changes: object) -> Path:
    told = {"version": "0.3.36", "python": [3, 12], "lacking": []} | changes
    return script(path, f"echo '{json.dumps(told)}'")


def named(home: Path, python: Path) -> Settings:
    here = settings(home)
    return replace(here, env={**here.env, embedded.VARIABLE: str(python)})


def test_our_own_installation(tmp_path: Path) -> None:
    python = made(tmp_path)
    found = embedded.search(settings(tmp_path))
    assert found.program is not None
    assert found.program.argv == (str(python), "-I", str(embedded.SCRIPT), "--own-library")
    assert (found.program.version, found.program.build, found.program.how) == ("0.3.36", 11312, "build")
    assert embedded.SCRIPT.is_file()


@pytest.mark.parametrize("change", [{"machine": "another"}, {"schema": 9}, {"package": "/nowhere"}])
def test_an_installation_that_does_not_fit_is_as_good_as_none(tmp_path: Path, change: dict[str, object]) -> None:
    made(tmp_path, **change)
    assert embedded.own(settings(tmp_path)) is None


def test_an_installation_without_its_interpreter(tmp_path: Path) -> None:
    """The system's Python was replaced: the link in the environment leads nowhere."""
    python = made(tmp_path)
    python.unlink()
    python.symlink_to("/nowhere/python3")
    assert embedded.own(settings(tmp_path)) is None
    (python.parent.parent / "embedded.json").write_text("{")
    assert embedded.own(settings(tmp_path)) is None


def test_the_interpreter_the_user_names_comes_first(tmp_path: Path) -> None:
    made(tmp_path)
    python = answering(tmp_path / "mine" / "python")
    found = embedded.search(named(tmp_path, python))
    assert found.program is not None
    assert found.program.argv == (str(python), "-I", str(embedded.SCRIPT))
    assert (found.program.version, found.program.how) == ("0.3.36", "path")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": "0.3.16"}, "known memory errors"),
        ({"version": ""}, "unknown"),
        ({"lacking": ["uvicorn", "starlette"]}, "lacks uvicorn, starlette"),
        ({"python": [3, 9]}, "is Python 3.9"),
        ({"python": None}, "is no Python"),
    ],
)
def test_a_named_interpreter_that_will_not_do(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    """It is not passed over for another one: the user asked for this one."""
    made(tmp_path)
    found = embedded.search(named(tmp_path, answering(tmp_path / "mine" / "python", **change)))
    assert found.program is None
    assert reason in found.rejected[0].reason


def test_a_named_interpreter_that_hangs_or_is_none(tmp_path: Path) -> None:
    begin = time.monotonic()
    found = embedded.search(named(tmp_path, script(tmp_path / "slow", "sleep 60")))
    assert "did not end" in found.rejected[0].reason
    assert time.monotonic() - begin < 10
    for bad in (tmp_path / "nowhere", script(tmp_path / "no", "echo hello")):
        assert embedded.search(named(tmp_path, bad)).rejected


def test_a_real_interpreter_without_it(tmp_path: Path) -> None:
    found = embedded.search(named(tmp_path, Path(sys.executable)))
    assert found.program is None or found.program.version
    assert found.program is not None or "lacks" in found.rejected[0].reason


def test_everything_that_is_installed_is_pinned_by_hash() -> None:
    text = resources.files("miyabi_llm.data").joinpath("embedded_requirements.txt").read_text()
    wanted = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert {line.split("==")[0] for line in wanted} >= {"numpy", "diskcache", "jinja2", "uvicorn", "starlette"}
    assert all("==" in line and "--hash=sha256:" in line for line in wanted)


@pytest.mark.slow
def test_a_real_installation_compiles_nothing_twice(tmp_path: Path) -> None:
    """Into a new cache that has only the llama.cpp that was built before."""
    if not any(kept.how == "build" for kept in installed.all_of(USER)):
        pytest.skip("no llama.cpp was built here: `miyabi-llm backend install llama-cpp --from build`")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "llama-cpp").symlink_to(installed.root(USER), target_is_directory=True)
    own = replace(USER, cache=cache, env=dict(os.environ))
    events: list[Event] = []
    program = embedded.install(own, events.append)
    assert program.build == 11312
    assert not [e for e in events if e.kind == "warning" or e.name == "build"]
    assert embedded.search(own).program == program
    events.clear()
    assert embedded.install(own, events.append) == program
    assert not events, "the second time there is nothing to do"
