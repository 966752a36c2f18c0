"""`miyabi-llm backend`, as typed."""

import json
import os
import subprocess
import sys
from pathlib import Path

from miyabi_llm.tools.llama_cpp import SERVER
from tests.tools.stubs import script, server


def run(tmp_path: Path, *words: str, path: str = "") -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k.startswith(("MIYABI_", "PYTHON", "LANG"))}
    env |= {"HOME": str(tmp_path), "PATH": path, "MIYABI_CACHE": str(tmp_path / "cache"), "MIYABI_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "miyabi_llm", "backend", *words], env=env, capture_output=True, text=True, timeout=60
    )


def test_list(tmp_path: Path) -> None:
    script(tmp_path / "bad" / SERVER, "kill -SEGV $$")
    server(tmp_path / "good" / SERVER)
    path = f"{tmp_path}/bad:{tmp_path}/good:/usr/bin:/bin"
    done = run(tmp_path, "list", "--json", path=path)
    assert done.returncode == 0, done.stderr
    states = {s["name"]: s for s in json.loads(done.stdout)}
    assert states["llama-cpp"]["ok"] is True
    assert states["llama-cpp"]["build"] == 11312
    assert states["llama-cpp"]["rejected"][0]["reason"] == "died of signal 11"
    seen = run(tmp_path, "list", path=path)
    assert "passed over" in seen.stderr
    assert str(tmp_path / "good" / SERVER) in seen.stdout


def test_install_takes_the_one_on_path(tmp_path: Path) -> None:
    place = server(tmp_path / "good" / SERVER)
    done = run(tmp_path, "install", "llama-cpp", "--json", path=f"{tmp_path}/good:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["program"] == str(place)


def test_install_without_a_compiler(tmp_path: Path) -> None:
    done = run(tmp_path, "install", "llama-cpp", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["code"] == "missing"
    assert "Run `" in done.stderr


def test_install_of_another_name(tmp_path: Path) -> None:
    assert run(tmp_path, "install", "nonsense").returncode == 2
