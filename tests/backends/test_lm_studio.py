"""LM Studio: its plan, its commands, its REST interface, and the daemon that is not ours.

Not run against the real program here: a stand-in written from its sources plays `lms` and the daemon,
`tests/lmstudiod.py`. Where `lms` is on PATH, `pytest -m lm_studio` runs the tests of the server against it; it uses
the daemon and the models folder of whoever runs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm import serve
from miyabi_llm.backends.base import Detected, Unsupported
from miyabi_llm.backends.lm_studio import LmStudio
from miyabi_llm.backends.lm_studio_api import LmStudioControl, read_loaded, read_models, read_old_models, repository
from miyabi_llm.backends.lm_studio_place import read_port, read_version
from miyabi_llm.errors import BackendMissing, MiyabiError, ModelMissing, ServerFailed, Unsafe
from miyabi_llm.tools.program import Program
from miyabi_llm.types import Adapter, Endpoint, LaunchPlan, Secret, silent
from tests.serve.conftest import free_port
from tests.tools.stubs import script

from .programs import JSON, Room, real, stand_in
from .test_llama_cpp import spec as gguf

LMS = Program("lms", Path("/b/lms"), ("/b/lms",), "07b7252", "path")
ASLEEP = Detected("lm-studio", True, program=LMS)
AWAKE = replace(ASLEEP, running=Endpoint("http://127.0.0.1:1234", "", ("openai", "anthropic"), backend="lm-studio"))
FIELDS = (
    "models",
    "data",
    "key",
    "id",
    "loaded_instances",
    "config",
    "context_length",
    "status",
    "load_config",
    "port",
)
SHAPED = st.recursive(
    JSON, lambda i: st.dictionaries(st.sampled_from(FIELDS), i) | st.lists(i, max_size=3), max_leaves=9
)

# --- what would be run


def test_a_sleeping_daemon_is_woken_and_then_handed_the_model() -> None:
    plan = LmStudio().plan(gguf(), ASLEEP)
    assert plan.argv is None
    assert plan.wake == (("/b/lms", "server", "start", "--port", "1234", "--bind", "127.0.0.1"),)
    assert plan.endpoint == Endpoint("http://127.0.0.1:1234", "alias", ("openai", "anthropic"), backend="lm-studio")
    assert plan.health_path == "/lmstudio-greeting"
    assert plan.handover is not None
    assert plan.handover.ctx == plan.ctx == 8192
    chosen = LmStudio().plan(replace(gguf(), port=18300, attach=False), ASLEEP)
    assert chosen.endpoint.base_url == "http://127.0.0.1:18300"


def test_a_running_one_is_attached_to() -> None:
    plan = LmStudio().plan(replace(gguf(), port=18300), AWAKE)
    assert (plan.argv, plan.wake) == (None, ())
    assert plan.endpoint.base_url == "http://127.0.0.1:1234"
    token = replace(AWAKE, running=Endpoint("http://127.0.0.1:1234", "", key=Secret("t")))
    assert LmStudio().plan(gguf(), token).endpoint.key is not None


def test_what_it_cannot_do_is_said() -> None:
    bad: tuple[dict[str, Any], ...] = (
        *({"host": "192.168.1.2", "key": Secret("k")}, {"kv_type": "q8_0"}, {"nodes": 2}),
        {"adapters": (Adapter("x", Path("/a/x.gguf")),)},
    )
    for fields in bad:
        with pytest.raises(Unsupported):
            LmStudio().plan(replace(gguf(), **fields), ASLEEP)
    with pytest.raises(Unsupported, match="one server") as e:
        LmStudio().plan(replace(gguf(), attach=False), AWAKE)
    assert "lms server stop" in (e.value.hint or "")
    with pytest.raises(BackendMissing, match="`lms`"):
        LmStudio().plan(gguf(), Detected("lm-studio", False))


def test_one_name_means_one_set_of_bytes() -> None:
    spec = replace(gguf(), alias="hf:Qwen/Qwen2.5:Q4_K_M")
    assert repository(spec) == "miyabi-llm/hf-Qwen-Qwen2-5-Q4_K_M-000000000000"
    assert repository(replace(gguf(), alias="世界")) == "miyabi-llm/model-000000000000"


def test_the_ways_to_get_it_run_nothing_from_the_network() -> None:
    for system in ("Linux", "Darwin", "Windows"):
        ways = LmStudio().ways(system)
        assert any(w.kind == "by hand" and not w.command for w in ways)
        assert not any("|" in word or "curl" in word for w in ways for word in w.command)


def test_install_names_every_step_where_no_package_manager_is(tmp_path: Path) -> None:
    room = stand_in(tmp_path, "other", "lmstudiod.py")
    from miyabi_llm.backends.base import InstallOptions

    with pytest.raises(BackendMissing, match="cannot be installed for you") as e:
        LmStudio().install(room.settings, silent, InstallOptions())
    assert "lmstudio.ai/download" in (e.value.hint or "")


# --- a room with `lms`; its daemon ends with the test


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    room = stand_in(tmp_path, "lms", "lmstudiod.py")
    yield from _entered(room, monkeypatch)


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.lm_studio)])
def room(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    if request.param == "real":
        yield real(tmp_path, "lms", request.getfixturevalue("real_model"), {"HOME": os.environ["HOME"]})
        return
    yield from _entered(stand_in(tmp_path, "lms", "lmstudiod.py"), monkeypatch)


def _entered(room: Room, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    """Its control looks for `lms` as a shell of this process would."""
    monkeypatch.setenv("PATH", room.settings.env["PATH"])
    monkeypatch.setenv("HOME", str(room.home))
    (room.home / ".lmstudio").mkdir()
    yield room
    subprocess.run(["lms", "server", "stop"], capture_output=True, timeout=20)


def switch(room: Room, **values: Any) -> None:
    (room.home / ".lmstudio/fake.json").write_text(json.dumps(values))


def planned(room: Room, **fields: Any) -> LaunchPlan:
    """For the stand-in on a port of its own: 1234 may be somebody's."""
    found = LmStudio().detect(room.settings)
    mine = {} if room.real or found.running else {"attach": False}
    return LmStudio().plan(room.spec(free_port(), **(mine | fields)), found)


def test_detection(fake: Room) -> None:
    found = LmStudio().detect(fake.settings)
    assert (found.ok, found.version, found.running) == (True, "07b7252", None)
    serve.attach(planned(fake))
    found = LmStudio().detect(fake.settings)
    assert found.running is not None
    switch(fake, token="sk-lm-x")
    found = LmStudio().detect(fake.settings)
    assert not found.ok
    assert "LM_API_TOKEN" in found.reason
    env = {**fake.settings.env, "LM_API_TOKEN": "sk-lm-x"}
    found = LmStudio().detect(replace(fake.settings, env=env))
    assert found.ok
    assert found.running is not None
    assert found.running.key is not None
    with LmStudio().control(found.running) as control:
        assert control.models()
    found = LmStudio().detect(replace(fake.settings, env={**env, "LM_API_TOKEN": "wrong"}))
    assert "refuses the token" in found.reason


def test_another_program_of_that_name_is_passed_over(tmp_path: Path) -> None:
    script(tmp_path / "bin/lms", "echo 'Logitech Media Server 8.5'")
    found = LmStudio().detect(stand_in(tmp_path, "other", "lmstudiod.py").settings)
    assert not found.ok
    assert "is not LM Studio's" in found.reason


def test_lms_is_found_in_its_own_folder(tmp_path: Path) -> None:
    room = stand_in(tmp_path, "other", "lmstudiod.py")
    (tmp_path / ".lmstudio/bin").mkdir(parents=True)
    (tmp_path / "bin/other").rename(tmp_path / ".lmstudio/bin/lms")
    found = LmStudio().detect(room.settings)
    assert found.program is not None
    assert found.program.path == tmp_path / ".lmstudio/bin/lms"


def test_it_is_woken_given_the_model_as_a_link_and_goes_on(room: Room) -> None:
    plan = planned(room, keep_s=600.0)
    with serve.running(plan, room.settings) as endpoint, LmStudio().control(endpoint) as control:
        (mine,) = (m for m in control.models() if m.name == "tiny:1")
        assert (mine.state, mine.ctx) == ("loaded", 512)
        if not room.real:
            (link,) = (room.home / ".lmstudio/models/miyabi-llm").rglob("*.gguf")
            assert link.samefile(room.model)
        control.unload("tiny:1")
        assert not any(m.state == "loaded" and m.name == "tiny:1" for m in control.models())
        again = control.load("tiny:1", ctx=1024)
        assert (again.name, again.state, again.ctx) == ("tiny:1", "loaded", 1024)
        assert control.version()
        with pytest.raises(ModelMissing, match="does not know"):
            control.load("no-such-model")
        with pytest.raises(ServerFailed):
            control.unload("no-such-model")
    with LmStudio().control(endpoint) as control:  # it goes on
        assert any(m.name == "tiny:1" for m in control.models())
        control.unload("tiny:1")


def test_a_second_start_finds_what_is_there(fake: Room) -> None:
    serve.attach(planned(fake))
    plan = planned(fake)
    assert plan.wake == ()
    serve.attach(plan)
    with LmStudio().control(plan.endpoint) as control:
        assert [m.name for m in control.models() if m.state == "loaded"] == ["tiny:1"]
    wider = planned(fake, ctx=2048)
    serve.attach(wider)
    with LmStudio().control(wider.endpoint) as control:
        assert [m.ctx for m in control.models() if m.state == "loaded"] == [2048]


def test_the_same_name_with_other_bytes_is_another_model(fake: Room) -> None:
    serve.attach(planned(fake))
    fake.model.unlink()  # the link in its folder keeps the old bytes
    fake.model.write_bytes(b"GGUF" + bytes(100))
    plan = planned(fake)
    serve.attach(plan)
    assert plan.handover is not None
    rows = json.loads(subprocess.run(["lms", "ps", "--json"], capture_output=True, check=True).stdout)
    assert [r["path"].rpartition("/")[0] for r in rows] == [repository(plan.handover)]


def test_a_file_it_has_not_seen_yet_is_waited_for(fake: Room) -> None:
    switch(fake, slow_index=0.6)
    serve.attach(planned(fake))


def test_across_file_systems_it_is_a_symbolic_link(fake: Room) -> None:
    switch(fake, no_hard_links=True)
    serve.attach(planned(fake))
    (link,) = (fake.home / ".lmstudio/models/miyabi-llm").rglob("*.gguf")
    assert link.is_symlink()
    assert link.samefile(fake.model)


def test_a_model_it_cannot_load_is_said_in_its_words(fake: Room) -> None:
    fake.model.write_bytes(b"<html>")
    with pytest.raises(ServerFailed, match="unknown model architecture"):
        serve.attach(planned(fake))


def test_a_command_that_fails_is_said(fake: Room) -> None:
    plan = replace(planned(fake), wake=(("lms", "server", "begin"),))
    with pytest.raises(ServerFailed, match=r"`lms server begin` ended with 2"):
        serve.attach(plan)


def test_models_of_its_own_by_their_keys(fake: Room) -> None:
    own = fake.home / ".lmstudio/models/maker/Repo-GGUF/own.gguf"
    own.parent.mkdir(parents=True)
    own.write_bytes(fake.model.read_bytes())
    plan = planned(fake)
    serve.attach(plan)
    with LmStudio().control(plan.endpoint) as control:
        assert control.load("repo-gguf", ctx=700).ctx == 700
        assert control.load("repo-gguf").ctx == 700  # it is there: no second instance
        assert control.load("repo-gguf", ctx=900).ctx == 900
        assert sorted(m.name for m in control.models() if m.state == "loaded") == ["repo-gguf", "tiny:1"]
        control.unload("repo-gguf")
        assert control.load("repo-gguf", keep_s=1).state == "loaded"
        deadline = time.monotonic() + 10
        while any(m.name == "repo-gguf" and m.state == "loaded" for m in control.models()):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_without_lms_its_own_models_still_load(fake: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(fake)
    serve.attach(plan)
    with LmStudio().control(plan.endpoint) as control, monkeypatch.context() as bare:
        control.unload("tiny:1")
        bare.setenv("PATH", "/nowhere")
        (key,) = (m.name for m in control.models())
        assert control.load(key, ctx=640).ctx == 640
        with pytest.raises(BackendMissing, match="`lms`"):
            control.add(fake.spec(1, "other"), silent)


def test_an_older_one_lists_and_says_200_to_what_it_does_not_know(fake: Room) -> None:
    plan = planned(fake)
    serve.attach(plan)
    switch(fake, old=True)
    with LmStudio().control(plan.endpoint) as control:
        assert [(m.name, m.state, m.ctx) for m in control.models()] == [("tiny:1", "loaded", 512)]
        with pytest.raises(ServerFailed, match="Unexpected endpoint"):
            control.unload("tiny:1")


def test_a_server_of_another_kind_is_handed_nothing(fake: Room) -> None:
    from tests.openaid import serving

    with serving() as other, LmStudio().control(Endpoint(other.url, "m")) as control, pytest.raises(MiyabiError):
        control.add(fake.spec(1), silent)
    assert not (fake.home / ".lmstudio/models").exists()


# --- what comes over the wire


@given(SHAPED)
def test_whatever_it_answers_is_read_or_refused(answer: Any) -> None:
    for state in (*read_models(answer), *read_old_models(answer)):
        assert isinstance(state.name, str)
        assert state.ctx is None or state.ctx > 0
    with contextlib.suppress(ServerFailed):
        read_loaded("m", answer)


@given(st.text(max_size=80) | SHAPED.map(json.dumps))
def test_whatever_its_files_and_commands_say(text: str) -> None:
    assert 0 < read_port(text) < 65536
    assert read_version(text) is None or isinstance(read_version(text), str)


def test_the_documented_list() -> None:
    """The shape of the documentation's own example."""
    loaded = {"id": "google/gemma", "config": {"context_length": 4096, "parallel": 4}}
    answer = {"models": [{"key": "google/gemma", "loaded_instances": [loaded]}, {"key": "r1", "loaded_instances": []}]}
    assert [(m.name, m.state, m.ctx) for m in read_models(answer)] == [
        ("google/gemma", "loaded", 4096),
        ("r1", "unloaded", None),
    ]


@pytest.mark.parametrize("url", ["http://8.8.8.8:1234", "file:///etc/passwd"])
def test_commands_go_to_near_servers_only(url: str) -> None:
    with pytest.raises(Unsafe):
        LmStudioControl("lm-studio", Endpoint(url, "m"))


# --- the command line


def test_the_command_hands_over_and_says_that_it_goes_on(fake: Room) -> None:
    def cli(*argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        env = {**fake.settings.env, "PYTHONPATH": ""}
        words = [sys.executable, "-m", "miyabi_llm", *argv]
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    ref, port = f"file:{fake.model}", str(free_port())
    cli("pull", ref)
    serving = ("serve", ref, "--backend", "lm-studio", "--ctx", "512")
    shown = cli(*serving, "--port", port, "--dry-run").stdout
    assert f"server start --port {port} --bind 127.0.0.1" in shown
    done = cli(*serving, "--port", port, "--json")
    assert "a daemon of its own: it goes on" in done.stderr
    endpoint = json.loads(done.stdout)
    assert endpoint["base_url"] == f"http://127.0.0.1:{port}"
    said = cli("run", "--url", endpoint["base_url"], endpoint["model"], "hi")
    assert said.stdout == "hello there\n"
    assert json.loads(cli("ps", "--json").stdout) == []  # not ours
    again = cli(*serving)
    assert "was running already and goes on\n" in again.stderr  # and there is no second one to start
    assert "demands no key" in cli(*serving, "--detach").stderr
