"""Plans for the fake server and for the real one, and a look for processes that should be gone."""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from miyabi_llm.config import Settings
from miyabi_llm.serve import Limits
from miyabi_llm.types import Endpoint, LaunchPlan, Secret

FAKE = Path(__file__).parent.parent / "fakellm.py"
# Everything short: the fake server starts in a tenth of a second.
QUICK = Limits(silent_s=5, load_s=20, first_token_s=2, probe_every_s=0.2, stall_s=0.8, grace_s=1.0, backoff_s=0.05)

MakePlan = Callable[..., LaunchPlan]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LD_PRELOAD": "", "HF_TOKEN": "canary"}
    return Settings(tmp_path / "data", tmp_path / "cache", tmp_path / "config", tmp_path, env=env)


# Several processes run tests at once, with pids that follow each other: each has 400 ports, below those of the kernel.
_PORTS = itertools.count(20000 + os.getpid() % 30 * 400)


def free_port() -> int:
    """A port nobody listens on, that no other test of this run was given."""
    for port in _PORTS:
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise AssertionError


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def alias() -> Iterator[str]:
    """A name that is in the command line of every process of the test, so that each can be found afterwards."""
    name = f"fake-{secrets.token_hex(6)}"
    yield name
    left = processes(name)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"processes left behind: {left}"


@pytest.fixture
def plan(port: int, alias: str) -> MakePlan:
    """`plan(mode, *arguments, key=True)`: a launch plan of the fake server."""

    def make(mode: str = "ok", *arguments: str, key: bool = True) -> LaunchPlan:
        return fake_plan(port, alias, mode, *arguments, key=key)

    return make


def fake_plan(port: int, alias: str, mode: str, *arguments: str, key: bool = True) -> LaunchPlan:
    secret = Secret(secrets.token_urlsafe(16)) if key else None
    argv = (sys.executable, "-I", "-S", str(FAKE), "--port", str(port), "--alias", alias, "--mode", mode, *arguments)
    endpoint = Endpoint(f"http://127.0.0.1:{port}", alias, ("openai",), secret)
    return LaunchPlan("fake", argv, {"LLAMA_API_KEY": secret} if secret else {}, endpoint)


def processes(word: str) -> list[int]:
    """Pids of the processes, zombies aside, whose command line holds `word`."""
    import psutil

    found = []
    for p in psutil.process_iter():
        try:
            hit = p.pid != os.getpid() and any(word in part for part in p.cmdline())
            if hit and p.status() != psutil.STATUS_ZOMBIE:
                found.append(p.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def all_gone(word: str, within: float) -> bool:
    """Whether every process with `word` in its command line ends within so many seconds."""
    deadline = time.monotonic() + within
    while processes(word):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def real_plan(real_server: Path, real_model: Path, port: int, alias: str) -> LaunchPlan:
    key = Secret(secrets.token_urlsafe(16))
    argv = (str(real_server), "-m", str(real_model), "--alias", alias, "--host", "127.0.0.1", "--port", str(port))
    argv += ("-c", "512", "-np", "1", "-t", "1", "--offline")
    return LaunchPlan("llama-cpp", argv, {"LLAMA_API_KEY": key}, Endpoint(f"http://127.0.0.1:{port}", alias, key=key))
