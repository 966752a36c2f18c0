"""LocalAI: its plan, its configuration, its control, and a server from start to end.

Not run against the real program here: a stand-in written from its sources plays it, `tests/localaid.py`. Where
`local-ai` is on PATH, `pytest -m localai` runs the same tests of the server against it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from miyabi_llm import serve
from miyabi_llm.backends.base import Detected, InstallOptions, Unsupported
from miyabi_llm.backends.localai import ENGINE, ENGINES, LocalAI
from miyabi_llm.backends.localai_api import LocalAIControl
from miyabi_llm.errors import BackendMissing, BadUsage, ModelMissing, ServerFailed
from miyabi_llm.serve import Limits
from miyabi_llm.serve.ready import Stopped
from miyabi_llm.serve.supervisor import Supervisor
from miyabi_llm.tools.program import Program
from miyabi_llm.types import Adapter, Event, LaunchPlan, Secret, silent
from tests.serve.conftest import all_gone, free_port, processes
from tests.tools.stubs import script

from .programs import Room, real, stand_in
from .test_llama_cpp import spec as gguf

FOUND = Detected("localai", True, program=Program("local-ai", Path("/b/local-ai"), ("/b/local-ai",), "4.9.0", "path"))
LIMITS = Limits(silent_s=20, load_s=120, first_token_s=60, grace_s=2.0, backoff_s=0.05)


def planned(**fields: Any) -> LaunchPlan:
    return LocalAI().plan(replace(gguf(), work=Path("/w"), **fields), FOUND)


def config_of(plan: LaunchPlan) -> Any:
    (text,) = plan.files.values()
    return json.loads(text)


# --- what would be run


def test_a_whole_plan() -> None:
    plan = planned(threads=3, ctx=4096, key=Secret("k"), keep_s=90.0, kv_type="q8_0", port=18200)
    assert plan.argv is not None
    assert plan.argv[:4] == ("/b/local-ai", "run", "--address", "127.0.0.1:18200")
    assert plan.argv[4:6] == ("--models-path", "/w/18200/models")
    assert plan.health_path == "/readyz"
    assert plan.links == {Path("/w/18200/models/m.gguf"): Path("/m/m.gguf")}
    assert config_of(plan) == {
        **{"name": "alias", "backend": "llama-cpp", "parameters": {"model": "m.gguf"}, "context_size": 4096},
        **{"mmap": True, "threads": 3, "cache_type_k": "q8_0", "cache_type_v": "q8_0"},
    }
    assert {k: str(v) for k, v in plan.env.items()} == {
        **{"LOCALAI_DISABLE_WEBUI": "true", "LOCALAI_DISABLE_RUNTIME_SETTINGS": "true", "LOCALAI_API_KEY": "***"},
        **{"LOCALAI_AUTOLOAD_GALLERIES": "false", "LOCALAI_AUTOLOAD_BACKEND_GALLERIES": "false"},
        **{"LOCALAI_WATCHDOG_IDLE": "true", "LOCALAI_WATCHDOG_IDLE_TIMEOUT": "90s"},
    }
    assert plan.handover is not None


def test_every_file_is_linked_flat_under_a_name_localai_accepts() -> None:
    """It refuses names that start at the root or hold two dots; parts of a model keep their numbers."""
    files = {
        n: Path("/m", n) for n in ("q/a-00001-of-00002.gguf", "q/a-00002-of-00002.gguf", "mmproj..f16.gguf", "LICENSE")
    }
    plan = LocalAI().plan(replace(gguf(), files=files, work=Path("/w")), FOUND)
    assert sorted(p.name for p in plan.links) == ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "mmproj.f16.gguf"]
    assert config_of(plan)["parameters"]["model"] == "a-00001-of-00002.gguf"
    assert config_of(plan)["mmproj"] == "mmproj.f16.gguf"


def test_an_adapter_lies_beside_the_model_with_a_base_named() -> None:
    plan = planned(adapters=(Adapter("x", Path("/a/x.gguf")),))
    assert plan.links[Path("/w/8080/models/adapter-x.gguf")] == Path("/a/x.gguf")
    assert config_of(plan)["lora_adapter"] == "adapter-x.gguf"
    assert config_of(plan)["lora_base"] == "m.gguf"


def test_what_it_cannot_do_is_said() -> None:
    two = (Adapter("x", Path("/a/x.gguf")), Adapter("y", Path("/a/y.gguf")))
    for fields in ({"nodes": 2}, {"adapters": two}, {"adapters": (Adapter("x", Path("/a/peft")),)}):
        with pytest.raises(Unsupported):
            planned(**fields)
    with pytest.raises(BackendMissing, match="not installed"):
        LocalAI().plan(gguf(), Detected("localai", False))
    for word in ("--address", "--models-path=/x", "--api-keys"):
        with pytest.raises(BadUsage, match="cannot be given after --"):
            planned(extra=(word, "x"))
    with pytest.raises(BadUsage, match="folder"):
        LocalAI().plan(gguf(), FOUND)


def test_the_ways_to_get_it_run_nothing_from_the_network() -> None:
    for system in ("Linux", "Darwin", "Windows"):
        ways = LocalAI().ways(system)
        assert {w.kind for w in ways} >= {"container", "by hand"}
        assert not any("|" in word for w in ways for word in w.command)


# --- what is found


def test_detection(tmp_path: Path) -> None:
    room = stand_in(tmp_path, "local-ai", "localaid.py")
    found = LocalAI().detect(room.settings)
    assert (found.ok, found.version) == (True, "4.9.0")
    assert found.tools == {ENGINES: tmp_path / "cache" / "localai-engines"}
    assert "backends install" in LocalAI().plan(room.spec(1), found).notes[0]
    (tmp_path / "cache/localai-engines/cpu-llama-cpp").mkdir(parents=True)
    found = LocalAI().detect(room.settings)
    assert found.tools[ENGINE].name == "cpu-llama-cpp"
    assert LocalAI().plan(room.spec(1), found).notes == ()


def test_a_package_manager_installs_it_where_there_is_one(tmp_path: Path) -> None:
    room = stand_in(tmp_path, "kept", "localaid.py")
    script(tmp_path / "bin/brew", f'echo "==> Pouring $2"; mv "{tmp_path}/bin/kept" "{tmp_path}/bin/local-ai"')
    events: list[Event] = []
    program = LocalAI().install(room.settings, events.append, InstallOptions())
    assert (program.name, program.version) == ("local-ai", "4.9.0")
    assert "==> Pouring localai" in [e.message for e in events]
    assert LocalAI().install(room.settings, events.append, InstallOptions()) == program


def test_a_package_manager_that_fails_leaves_the_steps(tmp_path: Path) -> None:
    room = stand_in(tmp_path, "other", "localaid.py")
    script(tmp_path / "bin/brew", "echo 'Error: no bottle'; exit 1")
    with pytest.raises(BackendMissing, match="ended with 1: Error: no bottle") as e:
        LocalAI().install(room.settings, silent, InstallOptions())
    assert "chmod +x" in (e.value.hint or "")


def test_a_broken_program_is_passed_over(tmp_path: Path) -> None:
    script(tmp_path / "bin/local-ai", "exit 3")
    room = stand_in(tmp_path, "other", "localaid.py")
    found = LocalAI().detect(room.settings)
    assert not found.ok
    assert "ended with 3" in found.reason
    assert [r.path for r in found.rejected] == [tmp_path / "bin/local-ai"]


# --- a server, the stand-in's or the real one's


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.localai)])
def room(request: pytest.FixtureRequest, tmp_path: Path) -> Room:
    if request.param == "real":
        engines = os.environ.get("LOCALAI_BACKENDS_PATH", str(tmp_path / "engines"))
        model = request.getfixturevalue("real_model")
        return real(tmp_path, "local-ai", model, {"LOCALAI_BACKENDS_PATH": engines})
    (tmp_path / "cache/localai-engines/llama-cpp").mkdir(parents=True)
    return stand_in(tmp_path, "local-ai", "localaid.py")


def plan_for(room: Room, **fields: Any) -> LaunchPlan:
    backend = LocalAI()
    return backend.plan(room.spec(free_port(), **fields), backend.detect(room.settings))


def test_it_serves_loads_unloads_and_leaves_nothing(room: Room) -> None:
    plan = plan_for(room, key=Secret("sk-test"))
    with serve.running(plan, room.settings, limits=LIMITS) as endpoint, LocalAI().control(endpoint) as control:
        assert endpoint.key is not None
        (state,) = control.models()
        assert (state.name, state.state) == ("tiny:1", "loaded")
        assert (state.memory or 0) > 0
        control.unload("tiny:1")
        assert [m.state for m in control.models()] == ["unloaded"]
        control.unload("tiny:1")  # again: nothing to do
        assert control.load("tiny:1").state == "loaded"
        assert control.version().startswith("v")
        with pytest.raises(ModelMissing, match="does not know 'other'"):
            control.load("other")
        with pytest.raises(Unsupported):
            control.load("tiny:1", ctx=1024)
        with pytest.raises(Unsupported, match="another model"):
            control.add(replace(room.spec(1), alias="other"), lambda event: None)
        ((link, there),) = plan.links.items()
        ((config, _),) = plan.files.items()
        assert there == room.model
        assert link.samefile(there)
        assert config.stat().st_mode & 0o077 == 0
    assert not processes(str(room.home / "work"))
    assert not link.parent.exists()  # no link is left that would hold the bytes of a removed model
    assert room.model.exists()


def test_a_key_is_demanded(room: Room) -> None:
    with serve.running(plan_for(room, key=Secret("sk-test")), room.settings, limits=LIMITS) as endpoint:
        with (
            LocalAIControl("localai", replace(endpoint, key=None)) as control,
            pytest.raises(ServerFailed, match="401"),
        ):
            control.models()
        with LocalAIControl("localai", replace(endpoint, key=Secret("no"))) as control, pytest.raises(ServerFailed):
            control.models()


def test_an_idle_model_goes(room: Room) -> None:
    """The supervisor looks often, and does not keep it awake."""
    often = replace(LIMITS, probe_every_s=0.2)
    with (
        serve.running(plan_for(room, keep_s=1.0), room.settings, limits=often) as endpoint,
        LocalAI().control(endpoint) as control,
    ):
        deadline = time.monotonic() + 20
        while control.models()[0].state != "unloaded" and time.monotonic() < deadline:
            time.sleep(0.1)
        assert control.models()[0].state == "unloaded"


def test_without_its_engine_it_says_which_command_brings_it(tmp_path: Path) -> None:
    room = stand_in(tmp_path, "local-ai", "localaid.py")
    with (
        pytest.raises(ServerFailed, match="backend not found: llama-cpp") as e,
        serve.running(plan_for(room), room.settings, limits=LIMITS),
    ):
        pass
    assert "backends install llama-cpp" in (e.value.hint or "")
    assert not processes(str(room.home / "work"))


def test_a_file_it_cannot_load_is_said_in_its_words(tmp_path: Path) -> None:
    (tmp_path / "cache/localai-engines/llama-cpp").mkdir(parents=True)
    room = stand_in(tmp_path, "local-ai", "localaid.py")
    room.model.write_bytes(b"<html>")
    with (
        pytest.raises(ServerFailed, match=r"failed to load model: could not load model.*tiny\.gguf"),
        serve.running(plan_for(room), room.settings, limits=LIMITS),
    ):
        pass


def test_a_server_that_dies_while_it_loads_has_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "cache/localai-engines/llama-cpp").mkdir(parents=True)
    room = stand_in(tmp_path, "local-ai", "localaid.py")
    room.model.write_bytes(b"CRASH")
    with (
        pytest.raises(ServerFailed, match="SIGILL: illegal instruction"),
        serve.running(plan_for(room), room.settings, limits=LIMITS),
    ):
        pass


def test_a_stop_while_it_loads_is_a_stop(tmp_path: Path) -> None:
    """Not an error about a connection that broke."""
    (tmp_path / "cache/localai-engines/llama-cpp").mkdir(parents=True)
    room = stand_in(tmp_path, "local-ai", "localaid.py")
    room.model.write_bytes(b"SLEEP")
    supervisor = Supervisor(
        plan_for(room), room.settings.env, tmp_path / "log", LIMITS, lambda event: loading.set(), lambda status: None
    )
    loading = threading.Event()
    threading.Thread(target=lambda: (loading.wait(20), time.sleep(0.5), supervisor.stop(0.0)), daemon=True).start()
    with pytest.raises(Stopped):
        supervisor.start()
    supervisor.stop(0.0)
    assert not processes(str(room.home / "work"))


def test_links_of_an_earlier_start_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "cache/localai-engines/llama-cpp").mkdir(parents=True)
    room = stand_in(tmp_path, "local-ai", "localaid.py")
    plan = plan_for(room)
    (old,) = plan.links
    old.parent.mkdir(parents=True)
    old.symlink_to("/nowhere")
    with serve.running(plan, room.settings, limits=LIMITS):
        assert old.samefile(room.model)


# --- the command line


class Cli:
    """The installed command in a room."""

    def __init__(self, room: Room) -> None:
        self.env = {**room.settings.env, "PYTHONPATH": ""}

    def __call__(self, *argv: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "miyabi_llm", *argv], env=self.env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def cli(room: Room) -> Iterator[Cli]:
    made = Cli(room)
    yield made
    made("stop", "--all")


def test_the_command_serves_lists_and_stops_without_orphans(room: Room, cli: Cli) -> None:
    ref = f"file:{room.model}"
    cli("pull", ref)
    shown = cli("serve", ref, "--backend", "localai", "--dry-run")
    assert "local-ai run --address 127.0.0.1:" in shown
    info = json.loads(cli("serve", ref, "--backend", "localai", "--ctx", "512", "--detach", "--json"))
    (row,) = json.loads(cli("ps", "--json"))
    assert (row["backend"], row["state"]) == ("localai", "ready")
    name, base = info["name"], info["endpoint"]["base_url"]
    key = Path(info["endpoint"]["key_file"]).read_text().strip()
    said = subprocess.run(
        [sys.executable, "-m", "miyabi_llm", "run", "--url", base, "--key-env", "KEY", row["endpoint"]["model"], "hi"],
        env={**cli.env, "KEY": key}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip()
    work = str(room.settings.run / "work")
    assert processes(work)
    cli("stop", name)
    assert all_gone(work, 5.0)
    assert json.loads(cli("ps", "--json")) == []


def test_killed_supervisor_leaves_no_server(room: Room, cli: Cli) -> None:
    ref = f"file:{room.model}"
    cli("pull", ref)
    info = json.loads(cli("serve", ref, "--backend", "localai", "--ctx", "512", "--detach", "--json"))
    work = str(room.settings.run / "work")
    assert processes(work)
    os.kill(info["supervisor"], signal.SIGKILL)
    assert all_gone(work, 10.0)
    assert room.model.read_bytes()[:4] == b"GGUF"
