"""From a plan to a server that is proven to be ours, and back to nothing."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from miyabi_llm import serve
from miyabi_llm.config import Settings
from miyabi_llm.errors import BackendMissing, MachineLimit, PortTaken, ServerFailed
from miyabi_llm.proc import ports
from miyabi_llm.serve.probe import Probe
from miyabi_llm.types import Event, LaunchPlan

from .conftest import QUICK, MakePlan, processes


def start(plan: LaunchPlan, settings: Settings, limits: serve.Limits = QUICK) -> None:
    with serve.running(plan, settings, limits=limits):
        pass


def test_a_server_is_ready_inside_the_block_and_gone_after_it(plan: MakePlan, settings: Settings, alias: str) -> None:
    events: list[Event] = []
    made = plan()
    with serve.running(made, settings, events.append, limits=QUICK) as endpoint:
        assert endpoint == made.endpoint
        with Probe(made) as probe:
            assert probe.identity() == ("ours", "")
            assert probe.token(2.0) == ("ok", "")
        (info,) = serve.ps(settings)
        assert (info.state, info.kind, info.port) == ("ready", "temporary", int(endpoint.base_url.split(":")[-1]))
        assert info.pid in processes(alias)
        assert info.memory > 1 << 20
    assert not processes(alias)
    assert serve.ps(settings) == []
    assert list(settings.run.iterdir()) == []
    assert [e.kind for e in events] == ["phase"]


def test_the_block_may_run_in_a_thread_that_ends_before_the_server(plan: MakePlan, settings: Settings) -> None:
    """A parent-death signal would fire when the starting thread ends."""
    made = plan()
    block = serve.running(made, settings, limits=QUICK)
    starter = threading.Thread(target=block.__enter__)
    starter.start()
    starter.join()
    time.sleep(0.3)
    try:
        with Probe(made) as probe:
            assert probe.token(2.0) == ("ok", "")
    finally:
        block.__exit__(None, None, None)


def test_an_error_in_the_block_ends_the_server(plan: MakePlan, settings: Settings, alias: str) -> None:
    with pytest.raises(ZeroDivisionError), serve.running(plan(), settings, limits=QUICK):
        raise ZeroDivisionError
    assert not processes(alias)


def test_attaching_proves_and_starts_nothing(plan: MakePlan, settings: Settings, tmp_path: Path) -> None:
    elsewhere = replace(settings, home=tmp_path / "elsewhere")
    with serve.running(plan(), settings, limits=QUICK) as endpoint:
        with serve.running(LaunchPlan("fake", None, {}, endpoint), elsewhere) as found:
            assert found is endpoint
        assert not elsewhere.run.exists()
        other = replace(endpoint, model="another")
        with pytest.raises(ServerFailed, match="not 'another'"):
            serve.attach(LaunchPlan("fake", None, {}, other))
    with pytest.raises(ServerFailed, match="no fake answers"):
        serve.attach(LaunchPlan("fake", None, {}, endpoint))


def test_p1_a_crash_while_loading_is_told_within_a_second_with_the_last_words(
    plan: MakePlan, settings: Settings
) -> None:
    """P1."""
    begin = time.monotonic()
    with pytest.raises(ServerFailed, match="does not know the option --nonsense") as e:
        start(plan("crash-load"), settings)
    assert time.monotonic() - begin < 1.5  # the interpreter of the fake server included
    assert "| error: invalid argument: --nonsense" in e.value.message
    assert e.value.details["exit_code"] == 3
    assert e.value.hint


def test_p13_a_loading_server_killed_from_outside_is_told_as_out_of_memory(plan: MakePlan, settings: Settings) -> None:
    """P13: no evidence of the kernel's hand, so the word is `likely`, or the signal itself where the kernel counts."""
    with (
        pytest.raises(ServerFailed, match="SIGKILL")
        if _kernel_counts()
        else pytest.raises(MachineLimit, match="memory")
    ):
        start(plan("oom"), settings)


def _kernel_counts() -> bool:
    from miyabi_llm.proc.launch import memory_kills

    return memory_kills() is not None


def test_p13_a_context_nobody_asked_for_is_halved_once(plan: MakePlan, settings: Settings, port: int) -> None:
    told: list[Event] = []
    small = replace(plan(), ctx=2048)
    big = replace(plan("oom"), ctx=4096, endpoint=small.endpoint, smaller=small)
    if _kernel_counts():
        big = replace(big, argv=(sys.executable, "-c", "import sys; sys.exit('failed to allocate buffer')"))
    with serve.running(big, settings, told.append, limits=QUICK):
        (info,) = serve.ps(settings)
        assert info.ctx == 2048
    assert next(e.message for e in told if e.kind == "warning").endswith("once more with a context of 2048 tokens")


def test_p5_a_slow_load_that_says_something_is_waited_for(plan: MakePlan, settings: Settings) -> None:
    """P5, first half."""
    start(plan("ok", "--load", "2.0"), settings, replace(QUICK, silent_s=0.8))


def test_p5_a_silent_load_times_out(plan: MakePlan, settings: Settings, alias: str) -> None:
    """P5, second half."""
    begin = time.monotonic()
    with pytest.raises(ServerFailed, match="not ready after"):
        start(plan("ok", "--load", "60", "--quiet"), settings, replace(QUICK, silent_s=1.2))
    assert time.monotonic() - begin < 8
    assert not processes(alias)


def test_a_load_has_an_end_even_when_it_chatters(plan: MakePlan, settings: Settings) -> None:
    with pytest.raises(ServerFailed, match="not ready after"):
        start(plan("ok", "--load", "60"), settings, replace(QUICK, load_s=1.0))


def test_p6_the_port_of_a_server_that_loads_is_not_given_to_another(
    plan: MakePlan, settings: Settings, port: int
) -> None:
    """P6: it does not listen yet, as vLLM for its first minute."""
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(start, plan("never-binds"), settings, replace(QUICK, silent_s=3))
        end = time.monotonic() + 20
        while port not in serve.promised(settings):
            assert time.monotonic() < end
            time.sleep(0.02)
        assert not ports.is_busy("127.0.0.1", port)
        assert ports.free(start=port, promised=serve.promised(settings)) != port
        with pytest.raises(ServerFailed):
            started.result(30)
    assert port not in serve.promised(settings)


def test_p6_a_busy_port_is_refused_before_anything_starts(plan: MakePlan, settings: Settings, port: int) -> None:
    """P6."""
    with socket.create_server(("127.0.0.1", port)), pytest.raises(PortTaken) as e:
        start(plan(), settings)
    assert f"port {port} is taken by" in e.value.message
    assert f"(pid {os.getpid()})" in e.value.message
    assert "--port" in (e.value.hint or "")


def test_a_server_that_finds_its_port_taken_says_so(plan: MakePlan, settings: Settings) -> None:
    with pytest.raises(PortTaken):
        start(plan("port-taken"), settings)


class Stranger(BaseHTTPRequestHandler):
    """Answers 200 to everything, with the asked model and a token: as friendly as can be."""

    alias = ""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Pretend."""
        data = b'{"status":"ok","data":[{"id":"%s"}],"choices":[{"text":"a"}]}' % self.alias.encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET


@pytest.mark.parametrize("key", [True, False])
def test_p7_a_stranger_that_took_the_port_after_our_look_is_never_our_model(
    plan: MakePlan, settings: Settings, port: int, alias: str, *, key: bool
) -> None:
    """P7: our server lives but never binds; the stranger answers everything rightly, and needs no key."""
    handler = type("Named", (Stranger,), {"alias": alias})
    server: list[ThreadingHTTPServer] = []

    def thief() -> None:
        while not processes("never-binds"):
            time.sleep(0.01)
        server.append(ThreadingHTTPServer(("127.0.0.1", port), handler))
        server[0].serve_forever(poll_interval=0.05)

    thread = threading.Thread(target=thief)
    thread.start()
    try:
        with pytest.raises(PortTaken, match="not by the server we started"):
            start(plan("never-binds", key=key), settings)
    finally:
        thread.join(0.1)
        if server:
            server[0].shutdown()
            server[0].server_close()
        thread.join()


@pytest.mark.parametrize(
    ("mode", "why"), [("wrong-identity", "offers"), ("no-auth", "without the key"), ("hang", "no token within")]
)
def test_p7_p4_a_server_that_is_healthy_but_wrong_is_not_ready(
    plan: MakePlan, settings: Settings, mode: str, why: str
) -> None:
    """P7, and P4 before it is ready."""
    with pytest.raises(ServerFailed, match=why):
        start(plan(mode, "--count", "0"), settings, replace(QUICK, first_token_s=0.5))


def test_p8_a_server_that_ignores_sigterm_is_killed_after_its_grace(
    plan: MakePlan, settings: Settings, alias: str
) -> None:
    """P8."""
    with serve.running(plan("ignore-term"), settings, limits=replace(QUICK, grace_s=0.5)):
        begin = time.monotonic()
    assert 0.4 < time.monotonic() - begin < 3
    assert not processes(alias)


def test_p9_a_grandchild_in_its_own_session_that_holds_our_pipes_dies_too(
    plan: MakePlan, settings: Settings, alias: str
) -> None:
    """P9."""
    with serve.running(plan("grandchild"), settings, limits=replace(QUICK, grace_s=0.5)):
        assert len(processes(alias)) == 3  # shim, server, grandchild
        begin = time.monotonic()
    assert time.monotonic() - begin < 3
    assert not processes(alias)


def test_p15_a_flood_of_binary_without_newline_is_bounded_and_blocks_nothing(
    plan: MakePlan, settings: Settings, alias: str
) -> None:
    """P15: 100 MB."""
    limits = replace(QUICK, log_bytes=1 << 20)
    with serve.running(plan("flood", "--count", "100"), settings, limits=limits):
        (info,) = serve.ps(settings)
        on_disk = sum(p.stat().st_size for p in settings.run.glob(f"{info.name}.log*"))
        assert (1 << 20) <= on_disk <= 2 << 20


def test_p19_a_missing_or_foreign_program_is_explained(plan: MakePlan, settings: Settings, tmp_path: Path) -> None:
    """P19."""
    missing = replace(plan(), argv=("/nowhere/llama-server",))
    with pytest.raises(BackendMissing, match="missing") as e:
        start(missing, settings)
    assert "backend install" in (e.value.hint or "")
    foreign = tmp_path / "llama-server"
    foreign.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(100))
    foreign.chmod(0o755)
    with pytest.raises(BackendMissing, match="not a program of this machine"):
        start(replace(plan(), argv=(str(foreign),)), settings)
    foreign.chmod(0o644)
    with pytest.raises(BackendMissing, match="not executable"):
        start(replace(plan(), argv=(str(foreign),)), settings)


def test_the_key_is_in_no_command_line_no_state_file_and_no_log(plan: MakePlan, settings: Settings, alias: str) -> None:
    made = plan()
    assert made.endpoint.key is not None
    key = made.endpoint.key.reveal()
    with serve.running(made, settings, limits=QUICK):
        assert not processes(key)
        for path in settings.run.iterdir():
            assert key not in path.read_text()
            assert path.stat().st_mode & 0o077 == 0


def test_the_child_sees_only_the_allowed_environment(plan: MakePlan, settings: Settings) -> None:
    with serve.running(plan(), settings, limits=QUICK):
        (info,) = serve.ps(settings)
        env = dict(e.partition("=")[::2] for e in Path(f"/proc/{info.pid}/environ").read_text().split("\0") if e)
    # LC_CTYPE is Python's own doing where no locale is set
    assert set(env) - {"LC_CTYPE"} == {"PATH", "HOME", "LLAMA_API_KEY", "GOMP_SPINCOUNT", "MIYABI_LAUNCH"}


def test_the_real_server(real_plan: LaunchPlan, settings: Settings, alias: str) -> None:
    with serve.running(real_plan, settings), Probe(real_plan) as probe:
        assert probe.identity() == ("ours", "")
        assert probe.slots(2.0)[0] == "idle"
        (info,) = serve.ps(settings)
        assert info.memory > 100 << 20
    assert not processes(alias)


def test_the_real_server_with_an_option_it_does_not_know(real_plan: LaunchPlan, settings: Settings) -> None:
    assert real_plan.argv is not None
    with pytest.raises(ServerFailed, match="does not know the option --frobnicate"):
        start(replace(real_plan, argv=(*real_plan.argv, "--frobnicate")), settings)


def test_the_real_server_with_a_file_that_is_no_model(
    real_plan: LaunchPlan, real_model: Path, settings: Settings, tmp_path: Path
) -> None:
    assert real_plan.argv is not None
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(real_model.read_bytes()[: 100 << 20])
    argv = tuple(str(torn) if a == str(real_model) else a for a in real_plan.argv)
    with pytest.raises(ServerFailed, match="damaged"):
        start(replace(real_plan, argv=argv), settings)


def test_p18_a_server_without_free_descriptors_recovers(real_plan: LaunchPlan, settings: Settings) -> None:
    """P18: more connections than it may have open; when they are gone it answers as before, restarted or not."""
    if (prlimit := shutil.which("prlimit")) is None:
        pytest.skip("no prlimit on PATH to limit the server's descriptors")
    assert real_plan.argv is not None
    tight = replace(real_plan, argv=(prlimit, "--nofile=64", *real_plan.argv))
    limits = replace(QUICK, silent_s=60, load_s=60, first_token_s=60)
    with serve.running(tight, settings, limits=limits) as endpoint, Probe(tight) as probe:
        address = ("127.0.0.1", int(endpoint.base_url.rpartition(":")[2]))
        held = [socket.create_connection(address, timeout=5) for _ in range(100)]
        time.sleep(0.5)
        for one in held:
            one.close()
        deadline = time.monotonic() + 30
        while (answer := probe.token(5.0)) != ("ok", ""):
            assert time.monotonic() < deadline, answer
            time.sleep(0.2)
