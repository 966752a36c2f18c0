"""Children under a shim: started, heard, stopped, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from miyabi_llm.proc import Exit, identify, identity, launch, logs, ports
from miyabi_llm.proc.environ import child_environment
from miyabi_llm.types import Secret

ENV = {"PATH": os.environ["PATH"]}


def shell(script: str, tmp_path: Path, *, limit: int = logs.LIMIT):  # type: ignore[no-untyped-def]
    return launch(["/bin/sh", "-c", script], ENV, {}, tmp_path / "log", limit=limit)


def test_output_and_exit_code(tmp_path: Path) -> None:
    child = shell("echo out; echo err >&2; exit 7", tmp_path)
    ended = child.wait(5)
    assert ended is not None
    assert (ended.code, ended.signal, ended.asked) == (7, 0, False)
    child.stop()
    assert sorted(child.tail().split()) == ["err", "out"]
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_stop_is_term_then_kill(tmp_path: Path) -> None:
    child = shell("trap '' TERM; while :; do sleep 0.1; done", tmp_path)
    time.sleep(0.2)
    begin = time.monotonic()
    ended = child.stop(0.4)
    assert 0.3 < time.monotonic() - begin < 3
    assert (ended.signal, ended.asked) == (signal.SIGKILL, True)
    assert not ended.out_of_memory
    assert child.stop(0.4) == ended, "a second stop is harmless"


def test_a_gentle_end_keeps_its_code(tmp_path: Path) -> None:
    """Often enough to meet a server that ends while the table of processes is read."""
    for n in range(12):
        (tmp_path / str(n)).mkdir()
        child = shell("trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done", tmp_path / str(n))
        while "ready" not in child.tail():
            time.sleep(0.01)
        time.sleep(0.01)
        ended = child.stop(5)
        assert (ended.code, ended.asked, ended.lost) == (5, True, False)


@pytest.mark.parametrize(("program", "number"), [("/nowhere", 2), ("/", 13)])
def test_a_program_that_cannot_be_started(tmp_path: Path, program: str, number: int) -> None:
    child = launch([program], ENV, {}, tmp_path / "log")
    assert child.wait(5) == Exit(errno=number)
    child.stop()


def test_what_the_server_leaves_behind_goes_with_it(tmp_path: Path) -> None:
    child = shell("(setsid sh -c 'trap \"\" TERM; sleep 60; :' & ) ; exit 0", tmp_path)
    ended = child.wait(5)
    assert ended is not None
    assert ended.code == 0
    child.stop()
    assert identity.marked(child.nonce) == []


def test_the_log_is_a_ring(tmp_path: Path) -> None:
    child = shell(
        "i=0; while [ $i -lt 3000 ]; do echo line-$i-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; i=$((i+1)); done",
        tmp_path,
        limit=20_000,
    )
    assert child.wait(20) is not None
    child.stop()
    log = tmp_path / "log"
    assert log.stat().st_size <= 20_000
    assert logs.older(log).stat().st_size <= 20_000
    assert "line-2999-" in logs.last_lines(log, 1)[0]
    assert len(logs.last_lines(log, 300)) == 300, "lines are read across both files"
    assert "line-2999-" in child.tail()


def test_a_tail_is_of_this_launch_only(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("error: out of memory, long ago\n")
    child = shell("echo now", tmp_path)
    child.wait(5)
    child.stop()
    assert child.tail() == "now\n"


def test_a_log_that_is_a_planted_link_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "log").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        shell("echo theirs", tmp_path)
    assert victim.read_text() == "mine"


def test_a_log_that_cannot_be_written_blocks_nothing(tmp_path: Path) -> None:
    """/dev/full takes the open and refuses every write."""
    child = launch(["/bin/sh", "-c", "head -c 1000000 /dev/zero; exit 4"], ENV, {}, Path("/dev/full"))
    ended = child.wait(10)
    assert ended is not None
    assert ended.code == 4
    child.stop()


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert logs.clean(b"a\x1b[31mb\x1b]0;t\x07c\r\nd\x00e\xff") == "ab]0;tc\nde\ufffd"


def test_the_environment_is_an_allow_list() -> None:
    fine = {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "0",
        "LLAMA_ARG_NO_MMAP": "1",
        "LC_ALL": "C",
        "OMP_NUM_THREADS": "2",
        "GOMP_SPINCOUNT": "7",
    }
    foul = {"LD_PRELOAD": "x", "PYTHONPATH": "x", "HF_TOKEN": "x", "AWS_SECRET_ACCESS_KEY": "x", "https_proxy": "x"}
    stale = {"LLAMA_API_KEY": "stale", "LLAMA_ARG_HOST": "0.0.0.0", "LLAMA_ARG_API_KEY_FILE": "x"}
    added = {"LLAMA_API_KEY": "fresh", "MIYABI_LAUNCH": "n"}
    assert child_environment(fine | foul | stale, {"LLAMA_API_KEY": Secret("fresh")}, "n") == fine | added


@pytest.mark.parametrize("own", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}, {}])
def test_waiting_threads_sleep_early_unless_the_user_says_otherwise(own: dict[str, str]) -> None:
    found = child_environment(own, {}, "n")
    assert found == (own or {"GOMP_SPINCOUNT": "10000"}) | {"MIYABI_LAUNCH": "n"}


def test_a_signal_reaches_exactly_the_process_meant() -> None:
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
    who = identify(process.pid)
    assert who is not None
    assert who.alive
    other = identity.Identity(who.pid, who.start - 1, who.boot)
    assert not other.alive
    assert not identity.send(other, signal.SIGKILL)
    assert process.poll() is None
    assert identity.send(who, signal.SIGKILL)
    assert identity.wait_gone(who, 5), "a zombie is gone"
    process.wait()
    assert not identity.send(who, signal.SIGKILL)
    assert identify(process.pid) is None


def test_ports(unused_port: int) -> None:
    import socket

    assert not ports.is_busy("127.0.0.1", unused_port)
    with socket.create_server(("127.0.0.1", unused_port)):
        assert ports.is_busy("127.0.0.1", unused_port)
        assert ports.free("127.0.0.1", unused_port) != unused_port
        assert ports.listens([os.getpid()], unused_port) is True
        assert ports.listens([], unused_port) is False
        assert f"(pid {os.getpid()})" in (ports.holder(unused_port) or "")
    assert not ports.is_busy("127.0.0.1", unused_port)


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_the_shim_starts_fast(tmp_path: Path) -> None:
    """It stands before every server: less than 0.2 s even on a busy machine, best of five."""
    best = 9.0
    for _ in range(5):
        begin = time.monotonic()
        child = shell("exec sleep 5", tmp_path)
        while not child.pid:
            child.wait(0.01)
        best = min(best, time.monotonic() - begin)
        child.kill()
    assert best < 0.2
