"""A ready server that dies, wedges or keeps dying, and a supervisor that is asked to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from miyabi_llm import serve
from miyabi_llm.config import Settings
from miyabi_llm.errors import MiyabiError
from miyabi_llm.serve.probe import Probe
from miyabi_llm.serve.supervisor import Status, Supervisor
from miyabi_llm.types import Event, LaunchPlan

from .conftest import QUICK, MakePlan, processes

SCRIPT = Path(__file__).with_name("supervise.py")


def wait_for(happened: Callable[[], object], within: float = 8.0) -> None:
    """Fail unless it happens in time."""
    deadline = time.monotonic() + within
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_p2_a_ready_server_that_dies_comes_back_on_the_same_port(plan: MakePlan, settings: Settings) -> None:
    """P2."""
    made, events = plan(), list[Event]()
    with serve.running(made, settings, events.append, limits=QUICK):
        (before,) = serve.ps(settings)
        os.kill(before.pid, signal.SIGSEGV)
        wait_for(lambda: [s for s in serve.ps(settings) if s.state == "ready" and s.pid != before.pid])
        (after,) = serve.ps(settings)
        assert after.restarts == 1
        assert after.port == before.port
        with Probe(made) as probe:
            assert probe.token(2.0) == ("ok", "")
    assert any("SIGSEGV" in e.message for e in events if e.kind == "warning")


def test_p11_a_killed_shim_takes_its_server_along_and_the_server_comes_back(
    plan: MakePlan, settings: Settings, alias: str
) -> None:
    """P11: even the grandchild that left the session dies, by its mark."""
    with serve.running(plan("grandchild"), settings, limits=QUICK):
        (before,) = serve.ps(settings)
        old = set(processes(alias))
        shim = next(p for p in old if _parent(p) == os.getpid())
        os.kill(shim, signal.SIGKILL)
        wait_for(lambda: [s for s in serve.ps(settings) if s.state == "ready" and s.pid != before.pid])
        assert not old & set(processes(alias))


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def test_p3_a_crash_loop_is_given_up_with_the_last_words(plan: MakePlan, settings: Settings, tmp_path: Path) -> None:
    """P3: five deaths within ten minutes."""
    statuses: list[Status] = []
    limits = replace(QUICK, probe_every_s=0.05, backoff_s=0.01)
    supervisor = Supervisor(
        plan("crash-token"), settings.env, tmp_path / "log", limits, lambda e: None, statuses.append
    )
    supervisor.start()  # the first token is the proof; the watchdog asks for the second, and it dies
    assert supervisor.ended.wait(20)
    supervisor.stop()
    assert isinstance(supervisor.failure, MiyabiError)
    assert "given up after 5 deaths" in supervisor.failure.message
    assert "| fatal: the token that broke it" in supervisor.failure.message
    assert statuses[-1].state == "dead"
    assert [s.state for s in statuses].count("ready") == 5


def test_the_pause_between_restarts_doubles(plan: MakePlan, settings: Settings, tmp_path: Path) -> None:
    events: list[Event] = []
    limits = replace(QUICK, probe_every_s=0.05, backoff_s=0.02, backoff_limit_s=0.05)
    supervisor = Supervisor(plan("crash-token"), settings.env, tmp_path / "log", limits, events.append, lambda s: None)
    supervisor.start()
    assert supervisor.ended.wait(20)
    supervisor.stop()
    pauses = [e.message.rpartition("restarting in ")[2] for e in events if e.kind == "warning"]
    assert pauses == ["0.02 s", "0.04 s", "0.05 s", "0.05 s"]


def test_p4_a_server_that_is_healthy_but_gives_no_token_is_restarted(plan: MakePlan, settings: Settings) -> None:
    """P4: within stall_s + 5."""
    with serve.running(plan("hang"), settings, limits=QUICK):
        (before,) = serve.ps(settings)
        begin = time.monotonic()
        wait_for(lambda: [s for s in serve.ps(settings) if s.state == "ready" and s.restarts], QUICK.stall_s + 5)
        (after,) = serve.ps(settings)
        assert after.pid != before.pid
        assert time.monotonic() - begin < QUICK.stall_s + 5


def test_p20_a_stopped_server_process_is_wedged_once(plan: MakePlan, settings: Settings) -> None:
    """P20."""
    with serve.running(plan(), settings, limits=QUICK):
        (before,) = serve.ps(settings)
        os.kill(before.pid, signal.SIGSTOP)
        wait_for(lambda: [s for s in serve.ps(settings) if s.state == "ready" and s.pid != before.pid])
        time.sleep(2 * QUICK.stall_s)
        (after,) = serve.ps(settings)
        assert after.restarts == 1


def test_stopping_while_it_waits_to_restart_is_quick(plan: MakePlan, settings: Settings, tmp_path: Path) -> None:
    limits = replace(QUICK, backoff_s=60)
    states: list[Event] = []
    supervisor = Supervisor(plan(), settings.env, tmp_path / "log", limits, states.append, lambda s: None)
    supervisor.start()
    (pid,) = [p for p in processes("fakellm.py") if _parent(_parent(p)) == os.getpid()]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: states and states[-1].kind == "warning")
    begin = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - begin < 2


def test_stopping_while_it_loads_is_quick(plan: MakePlan, settings: Settings, tmp_path: Path, alias: str) -> None:
    made = plan("ok", "--load", "30")
    supervisor = Supervisor(made, settings.env, tmp_path / "log", QUICK, lambda e: None, lambda s: None)
    timer = threading.Timer(0.5, supervisor.stop)
    timer.start()
    begin = time.monotonic()
    with pytest.raises(MiyabiError, match="stopped"):
        supervisor.start()
    assert time.monotonic() - begin < 4
    timer.join()
    assert not processes(alias)


def foreground(plan: LaunchPlan, home: Path, how: str = "forever", *, grace: float = 1.0) -> subprocess.Popen[str]:
    """A supervisor process of that kind."""
    assert plan.endpoint.key is not None
    port = int(plan.endpoint.base_url.rpartition(":")[2])
    order = {"argv": plan.argv, "port": port, "alias": plan.endpoint.model, "key": plan.endpoint.key.reveal()}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(home), json.dumps(order | {"grace": grace}), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ready(process: subprocess.Popen[str]) -> str:
    """Wait until it says that it is ready; what it said."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        assert process.stderr is not None
        pytest.fail(process.stderr.read())
    return line.strip()


def finish(process: subprocess.Popen[str]) -> int:
    """Collect it."""
    process.communicate(timeout=15)
    return process.returncode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_foreground_server_with_code_zero(
    plan: MakePlan, tmp_path: Path, alias: str, number: signal.Signals
) -> None:
    process = foreground(plan("grandchild"), tmp_path)
    ready(process)
    process.send_signal(number)
    assert finish(process) == 0
    assert not processes(alias)
    assert [p.name for p in (tmp_path / "data" / "run").iterdir() if p.suffix == ".json"] == []


def test_a_signal_while_it_loads_ends_it_too(plan: MakePlan, tmp_path: Path, alias: str) -> None:
    process = foreground(plan("ok", "--load", "60"), tmp_path)
    wait_for(lambda: len(processes(alias)) >= 3)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert finish(process) == 0
    assert not processes(alias)


def test_a_second_ctrl_c_kills_at_once(plan: MakePlan, tmp_path: Path, alias: str) -> None:
    process = foreground(plan("ignore-term"), tmp_path, grace=30)
    ready(process)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert processes(alias)
    process.send_signal(signal.SIGINT)
    assert finish(process) == 0
    assert time.monotonic() - begin < 5
    assert not processes(alias)


def test_p17_a_signal_with_ten_streams_waits_for_those_that_end_within_the_grace(
    plan: MakePlan, tmp_path: Path
) -> None:
    """P17: the others are cut, so that no client takes them for whole."""
    slow = plan("slow")
    process = foreground(slow, tmp_path, grace=2.0)
    ready(process)
    with ThreadPoolExecutor(10) as pool:
        begun = threading.Barrier(11)
        streams = [pool.submit(stream, slow, 1.0 if n % 2 else 60.0, begun) for n in range(10)]
        begun.wait(20)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert finish(process) == 0
        assert time.monotonic() - begin < 4.5
        assert [s.result(10) for s in streams] == ["cut", "whole"] * 5


def stream(plan: LaunchPlan, seconds: float, begun: threading.Barrier) -> str:
    """How a streamed chat ended that takes so long; `begun` is met when its first piece is here."""
    assert plan.endpoint.key is not None
    url = f"{plan.endpoint.base_url}/v1/chat/completions"
    headers = {"authorization": f"Bearer {plan.endpoint.key.reveal()}"}
    body = {"stream": True, "seconds": seconds}
    with httpx.stream("POST", url, json=body, headers=headers, timeout=90, trust_env=False) as answer:
        lines = answer.iter_lines()
        said = [next(lines)]
        begun.wait(20)
        try:
            said.extend(lines)
        except httpx.RemoteProtocolError:
            return "cut"
    return "whole" if "data: [DONE]" in said else "ended as if it were whole"


def test_a_second_signal_does_not_wait_for_requests(plan: MakePlan, tmp_path: Path) -> None:
    slow = plan("slow", "--answer", "60")
    process = foreground(slow, tmp_path, grace=30)
    ready(process)
    chat = ask(slow)
    wait_for(lambda: busy(slow), 20)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert finish(process) == 0
    assert time.monotonic() - begin < 3
    chat.communicate(timeout=10)


def busy(plan: LaunchPlan) -> bool:
    """Whether the plan's server has a chat in progress."""
    assert plan.endpoint.key is not None
    headers = {"authorization": f"Bearer {plan.endpoint.key.reveal()}"}
    slots = httpx.get(f"{plan.endpoint.base_url}/slots", headers=headers, trust_env=False, timeout=20).json()
    return any(slot["is_processing"] for slot in slots)


def ask(plan: LaunchPlan) -> subprocess.Popen[bytes]:
    """A chat with the plan's server, in a process of its own that prints the answer."""
    assert plan.endpoint.key is not None
    code = (
        "import sys, urllib.request as u; "
        "r = u.Request(sys.argv[1], b'{}', {'authorization': 'Bearer ' + sys.argv[2]}); "
        "print(u.build_opener(u.ProxyHandler({})).open(r).read())"
    )
    url = f"{plan.endpoint.base_url}/v1/chat/completions"
    command = [sys.executable, "-c", code, url, plan.endpoint.key.reveal()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def test_p16_a_second_foreground_server_of_the_same_name_is_refused(plan: MakePlan, tmp_path: Path, alias: str) -> None:
    """P16."""
    first = foreground(plan(), tmp_path)
    ready(first)
    second = foreground(plan(), tmp_path)
    _, said = second.communicate(timeout=15)
    assert second.returncode != 0
    assert "runs already" in said
    first.terminate()
    assert finish(first) == 0
