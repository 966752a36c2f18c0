"""Detached servers: started once, listed, found, shown, stopped, and never confused with a stranger."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from miyabi_llm import serve
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, MachineLimit, Missing, MiyabiError, ServerFailed, Unsafe
from miyabi_llm.proc import identify
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.serve.probe import Probe
from miyabi_llm.serve.state import Record, RunDir, name_for
from miyabi_llm.types import Artifact, Event, StoredFile, plain

from .conftest import QUICK, MakePlan, processes
from .test_supervision import wait_for

SHA = Digest("ab" * 32)


@pytest.fixture(autouse=True)
def _stop(settings: Settings, alias: str) -> object:
    yield
    serve.stop(settings)
    return None


def model(sha256: Digest = SHA) -> Artifact:
    """An artifact of which only the hash matters here."""
    file = StoredFile("model.gguf", sha256, 1)
    return Artifact(ModelRef.parse("qwen:tiny"), "gguf", (file,), "verified", "here", "2026-01-01")


def test_the_whole_life(plan: MakePlan, settings: Settings, alias: str) -> None:
    made, events = plan(), list[Event]()
    info = serve.detach(made, settings, events.append, limits=QUICK)
    assert (info.name, info.state, info.kind, info.detached) == (alias, "ready", "detached", True)
    assert made.endpoint.key is not None
    assert info.endpoint.key is not None
    assert info.endpoint.key.reveal() == made.endpoint.key.reveal()
    assert info.endpoint.key_file is not None
    assert info.endpoint.key_file.stat().st_mode & 0o777 == 0o600
    assert settings.run.stat().st_mode & 0o777 == 0o700
    assert made.endpoint.key.reveal() not in json.dumps(plain(info))
    assert [e.kind for e in events] == ["phase"]
    assert [s.name for s in serve.ps(settings)] == [alias]
    assert any("loading" in line for line in serve.last_lines(settings, alias, 5))
    (stopped,) = serve.stop(settings, alias)
    assert stopped.pid == info.pid
    assert not processes(alias)
    assert serve.ps(settings) == []
    assert identify(info.supervisor) is None
    assert any("loading" in line for line in serve.last_lines(settings, alias, 5)), "the log outlives the server"


def test_it_needs_a_key(plan: MakePlan, settings: Settings) -> None:
    with pytest.raises(BadUsage, match="key"):
        serve.detach(plan(key=False), settings)


def test_what_stops_it_from_starting_is_told_and_leaves_nothing(plan: MakePlan, settings: Settings, alias: str) -> None:
    with pytest.raises(ServerFailed, match="--nonsense"):
        serve.detach(plan("crash-load"), settings, limits=QUICK)
    wait_for(lambda: not processes(alias))
    assert serve.ps(settings) == []


def test_p16_a_second_start_gives_the_running_one(plan: MakePlan, settings: Settings, alias: str) -> None:
    """P16."""
    first = serve.detach(plan(), settings, limits=QUICK)
    events: list[Event] = []
    second = serve.detach(plan(), settings, events.append, limits=QUICK)
    assert (second.pid, second.endpoint.base_url) == (first.pid, first.endpoint.base_url)
    assert any("runs already" in e.message for e in events)
    again = serve.running_as(alias, settings)
    assert again is not None
    assert again.pid == first.pid


def test_p16_two_at_the_same_moment_become_one(plan: MakePlan, settings: Settings, alias: str) -> None:
    """P16."""
    made = plan("ok", "--load", "1")
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(serve.detach(made, settings, limits=QUICK).pid)) for _ in range(3)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert len(processes(alias)) == 2  # one shim, one server


def test_p11_a_supervisor_killed_with_its_shim_is_cleaned_up_by_the_next_start(
    plan: MakePlan, settings: Settings, alias: str
) -> None:
    """P11: the grandchild survives both kills; its mark gives it away."""
    info = serve.detach(plan("grandchild"), settings, limits=QUICK)
    shim = next(p for p in processes(alias) if p != info.pid and "shim.py" in Path(f"/proc/{p}/cmdline").read_text())
    os.kill(info.supervisor, signal.SIGSTOP)  # so that it cannot sweep
    os.kill(shim, signal.SIGKILL)
    os.kill(info.supervisor, signal.SIGKILL)
    wait_for(lambda: identify(info.supervisor) is None)
    assert processes(alias), "the grandchild lives"
    (dead,) = serve.ps(settings)
    assert (dead.state, dead.pid) == ("dead", 0)
    again = serve.detach(plan(), settings, limits=QUICK)
    assert again.state == "ready"
    assert len(processes(alias)) == 2


def test_a_stop_while_it_loads_is_told_to_whoever_waits(plan: MakePlan, settings: Settings, alias: str) -> None:
    made, heard = plan("ok", "--load", "20"), list[str]()

    def start() -> None:
        with pytest.raises(ServerFailed) as e:
            serve.detach(made, settings, limits=QUICK)
        heard.append(e.value.message)

    waiter = threading.Thread(target=start)
    waiter.start()
    wait_for(lambda: processes(alias) and serve.ps(settings))  # the process is there before its record
    serve.stop(settings, alias)
    waiter.join()
    assert heard == [f"{alias} was stopped before it was ready"]
    assert serve.ps(settings) == []


def test_a_server_that_is_given_up_stays_listed_as_dead_until_stopped(
    plan: MakePlan, settings: Settings, alias: str
) -> None:
    limits = replace(QUICK, probe_every_s=0.05, backoff_s=0.01)
    serve.detach(plan("crash-token"), settings, limits=limits)
    wait_for(lambda: serve.ps(settings)[0].state == "dead")
    (dead,) = serve.ps(settings)
    assert "given up after 5 deaths" in (dead.error or "")
    log = "\n".join(serve.last_lines(settings, alias, 100))
    assert "[miyabi-llm] restart" in log
    serve.stop(settings, alias)
    assert serve.ps(settings) == []


def forge(settings: Settings, name: str, claimed: int, **changes: object) -> None:
    """A state file that claims that process as its supervisor."""
    who = identify(claimed)
    assert who is not None
    record = Record(
        name, "qwen:tiny", (SHA,), "fake", "detached", "ready", "http://127.0.0.1:9", "x", ("openai",), 9, "2026", who
    )
    RunDir(settings.run).write(replace(record, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["nothing", "start", "boot"])
def test_p12_a_forged_or_stale_state_file_never_gets_a_stranger_killed(settings: Settings, wrong: str) -> None:
    """P12: the pid is alive; start time, boot or the lock tell that it is not ours."""
    stranger = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
    try:
        who = identify(stranger.pid)
        assert who is not None
        if wrong == "start":
            who = replace(who, start=who.start + 1)
        elif wrong == "boot":
            who = replace(who, boot="another")
        forge(settings, "forged", stranger.pid, supervisor=who, nonce="0123", pid=stranger.pid)
        RunDir(settings.run).sweep()
        assert stranger.poll() is None
        serve.stop(settings, "forged")
        time.sleep(0.2)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"schema": 99}', b'{"schema": 1}', b"\xff", b"[" * 100000])
def test_a_damaged_state_file_is_no_server_and_no_traceback(settings: Settings, body: bytes) -> None:
    folder = RunDir(settings.run)
    folder.ensure()
    (settings.run / "odd.json").write_bytes(body)
    assert serve.ps(settings) == []
    assert folder.sweep() == []
    with pytest.raises(Missing):
        serve.stop(settings, "odd")


def test_a_planted_link_is_not_followed(settings: Settings, tmp_path: Path) -> None:
    forge(settings, "real", os.getpid())
    (settings.run / "link.json").symlink_to(settings.run / "real.json")
    assert [s.name for s in serve.ps(settings)] == ["real"]
    (settings.run / "real.json").unlink()


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a/b", "a\nb", "x" * 65])
def test_a_name_cannot_leave_the_folder(settings: Settings, name: str) -> None:
    with pytest.raises(BadUsage):
        RunDir(settings.run).log(name)


@pytest.mark.parametrize(
    ("text", "name"),
    [("qwen2.5-coder:1.5b", "qwen2.5-coder-1.5b"), ("hf:A/B:Q4", "hf-A-B-Q4"), ("::", "model"), ("模型", "model")],
)
def test_a_model_gives_a_name(text: str, name: str) -> None:
    assert name_for(text) == name


def test_a_running_server_is_found_by_the_bytes_it_serves(plan: MakePlan, settings: Settings) -> None:
    made = plan()
    assert serve.find_running(model(), settings) is None
    serve.detach(made, settings, artifact=replace(model(), files=()), limits=QUICK)
    record = RunDir(settings.run).all()[0]
    RunDir(settings.run).write(replace(record, sha256=(SHA,)))
    found = serve.find_running(model(), settings)
    assert found is not None
    with Probe(replace(made, endpoint=found)) as probe:
        assert probe.token(2.0) == ("ok", "")
    assert serve.find_running(model(Digest("cd" * 32)), settings) is None
    os.kill(serve.ps(settings)[0].supervisor, signal.SIGKILL)
    wait_for(lambda: serve.find_running(model(), settings) is None)


def test_an_unknown_name_says_what_to_do(settings: Settings) -> None:
    with pytest.raises(Missing) as e:
        serve.stop(settings, "nobody")
    assert "miyabi-llm ps" in (e.value.hint or "")


def test_the_log_is_followed_across_its_turn_over_until_the_server_ends(
    plan: MakePlan, settings: Settings, alias: str
) -> None:
    serve.detach(plan("ok", "--load", "0.3"), settings, limits=QUICK)
    text: list[str] = []
    reader = threading.Thread(target=lambda: text.extend(serve.follow(settings, alias)))
    reader.start()
    time.sleep(0.3)
    log = RunDir(settings.run).log(alias)
    with log.open("a") as f:
        f.write("before\n")
    time.sleep(0.4)
    log.replace(log.with_name(log.name + ".1"))
    log.write_text("after\n")
    time.sleep(0.4)
    serve.stop(settings, alias)
    reader.join(5)
    assert not reader.is_alive()
    assert "".join(text).startswith("before\nafter\n")


def test_keys_from_files(tmp_path: Path) -> None:
    """H5."""
    path = tmp_path / "key"
    path.write_text("  secret-word \n")
    path.chmod(0o600)
    assert serve.read_key(path).reveal() == "secret-word"
    path.chmod(0o644)
    with pytest.raises(Unsafe, match="read by others") as e:
        serve.read_key(path)
    assert "chmod 600" in (e.value.hint or "")
    path.chmod(0o600)
    for text in ("", "\n", "two words", "a\nb", "schlüssel", "a,b", "x" * 5000):
        path.write_text(text)
        with pytest.raises(BadUsage):
            serve.read_key(path)
    with pytest.raises(BadUsage):
        serve.read_key(tmp_path / "none")
    with pytest.raises(BadUsage):
        serve.read_key(tmp_path)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.1", "example.org", "localhost.evil.org", "127.1"])
def test_an_open_host_needs_a_key(host: str) -> None:
    """H3."""
    with pytest.raises(BadUsage, match="needs a key"):
        serve.check_exposure(host, None)
    serve.check_exposure(host, serve.new_key())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.2"])
def test_loopback_needs_none(host: str) -> None:
    serve.check_exposure(host, None)


def test_a_folder_that_is_no_folder(plan: MakePlan, settings: Settings) -> None:
    settings.run.parent.mkdir(parents=True, exist_ok=True)
    settings.run.write_text("")
    try:
        with pytest.raises(MachineLimit, match=str(settings.run)) as e:
            serve.detach(plan(), settings, limits=QUICK)
    finally:
        settings.run.unlink()
    assert "MIYABI_HOME" in (e.value.hint or "")


def test_a_key_that_cannot_be_written_is_told_by_the_supervisor(plan: MakePlan, settings: Settings, alias: str) -> None:
    """As on a full disk: the one who waits hears the cause, not that somebody ended without a word."""
    (settings.run / f"{alias}.key").mkdir(parents=True)
    with pytest.raises(MachineLimit, match="key") as e:
        serve.detach(plan(), settings, limits=QUICK)
    assert e.value.exit_code == 4


def test_errors_survive_the_pipe_of_the_supervisor() -> None:
    import pickle

    error = ServerFailed("what", hint="do", log="text")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, MiyabiError)
    assert (again.message, again.hint, again.details) == ("what", "do", {"log": "text"})
    assert asdict(Event("log", "x"))
