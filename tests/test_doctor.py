"""The doctor before machines in every state: its judgement, its fixes, and that nothing makes it wait."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from miyabi_llm import config, doctor
from miyabi_llm.config import Settings
from miyabi_llm.doctor import judge
from miyabi_llm.errors import BadUsage
from miyabi_llm.hardware import Gpu
from miyabi_llm.tools.llama_cpp import FLOOR, REQUIRED
from miyabi_llm.tools.program import Program, Ran, Unusable
from miyabi_llm.types import Finding
from tests.headers import gemma, qwen
from tests.test_fit import machine

GIB = 1 << 30
GOOD_HELP = "\n".join(f"{flag} N   does something" for flag in sorted(REQUIRED))
SERVER = f"""case "$1" in
--version) echo "version: 0.5.0 (build {FLOOR + 10}, commit abc1234)" ;;
--help) cat <<'END'
{GOOD_HELP}
END
;; esac"""
BASICS = ("sh", "cat", "sleep", "yes", "head")


@dataclass
class Room:
    """A home and a PATH of a test's own, on which programs can be put."""

    settings: Settings
    bin: Path

    def program(self, name: str, script: str, *, folder: str = "bin") -> Path:
        path = self.bin.parent / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def examine(self, **more: object) -> dict[str, list[Finding]]:
        found: dict[str, list[Finding]] = {}
        for f in doctor.examine(self.settings, **more):  # type: ignore[arg-type]
            found.setdefault(f.name, []).append(f)
        return found


@pytest.fixture
def room(tmp_path: Path) -> Room:
    folders = [tmp_path / "bin", tmp_path / "late"]
    for folder in folders:
        folder.mkdir()
    basics = tmp_path / "basics"
    basics.mkdir()
    for name in BASICS:
        for place in ("/usr/bin", "/bin"):
            if os.path.exists(f"{place}/{name}") and not (basics / name).exists():
                (basics / name).symlink_to(f"{place}/{name}")
    env = {
        "PATH": os.pathsep.join(map(str, (*folders, basics))),
        "HOME": str(tmp_path),
        "MIYABI_HOME": str(tmp_path / "data"),
    }
    env |= {"MIYABI_CACHE": str(tmp_path / "cache"), "MIYABI_CONFIG": str(tmp_path / "config")}
    return Room(config.load(env), folders[0])


def levels(found: Mapping[str, list[Finding]], name: str) -> list[str]:
    return [f.level for f in found[name]]


def test_a_bare_machine(room: Room) -> None:
    found = room.examine()
    assert levels(found, "llama-cpp") == ["fail"]
    assert found["llama-cpp"][0].fix == "miyabi-llm backend install llama-cpp"
    assert found["build tools"][0].level == "warn"
    assert "c++" in found["build tools"][0].message
    assert found["default model"][0].fix == "miyabi-llm pull qwen2.5-coder:1.5b"
    assert [levels(found, name) for name in ("ollama", "vllm", "local-ai", "lm-studio")] == [["ok"]] * 4
    assert levels(found, "python") == levels(found, "config") == levels(found, "store") == ["ok"]
    assert doctor.worst(f for group in found.values() for f in group) == "fail"


def test_a_good_server(room: Room) -> None:
    path = room.program("llama-server", SERVER)
    found = room.examine()
    assert levels(found, "llama-cpp") == ["ok"]
    assert str(path) in found["llama-cpp"][0].message
    assert f"b{FLOOR + 10}" in found["llama-cpp"][0].message
    assert levels(found, "build tools") == ["ok"]


def wrong_machine(path: Path) -> None:
    """An ELF file for a machine nobody has."""
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xfa\xca" + bytes(44))


BROKEN: dict[str, tuple[str | Callable[[Path], None], str, str]] = {
    "hanging": ("sleep 60", "unknown", "did not end within"),
    "flooding": ("yes flood", "warn", "flood|signal"),
    "garbage": ("head -c 300 /dev/zero; echo; echo '\\377\\376 nonsense'", "warn", "is no llama.cpp program"),
    "silent": ("exit 0", "warn", "is no llama.cpp program"),
    "crashing": ("kill -9 $$", "warn", "died of signal 9"),
    "old": (
        SERVER.replace(f"0.5.0 (build {FLOOR + 10}, commit abc1234)", "4000 (abc1234)"),
        "warn",
        f"before b{FLOOR}",
    ),
    "other": (SERVER.replace("--load-mode", "--other"), "warn", "does not know --load-mode"),
    "wrong machine": (wrong_machine, "warn", "is not a program of this machine"),
    "no interpreter": (lambda p: p.write_text("#!/nowhere/sh\n") and None, "warn", "interpreter or loader"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_server_is_named_with_its_fix(room: Room, kind: str) -> None:
    script, level, says = BROKEN[kind]
    path = room.program("llama-server", script if isinstance(script, str) else "")
    if not isinstance(script, str):
        script(path)
    start = time.monotonic()
    found = room.examine()["llama-cpp"]
    assert time.monotonic() - start < 3
    assert [f.level for f in found] == ["unknown" if level == "unknown" else "fail", level]
    assert str(path) in found[1].message
    assert re.search(says, found[1].message)
    assert all(f.fix for f in found)


def test_a_good_server_behind_a_broken_one(room: Room) -> None:
    room.program("llama-server", "sleep 60")
    good = room.program("llama-server", SERVER, folder="late")
    found = room.examine()["llama-cpp"]
    assert [f.level for f in found] == ["ok", "unknown"]
    assert str(good) in found[0].message


def test_everything_hangs_at_once(room: Room) -> None:
    """llama-server, llama, ollama, local-ai, lms and nvidia-smi: the doctor is back in two seconds all the same."""
    alive = room.bin.parent / "alive"
    alive.mkdir()
    for name in ("llama-server", "llama", "ollama", "local-ai", "lms", "nvidia-smi", "rocm-smi", "vllm"):
        room.program(name, f"echo $$ > {alive}/{name}; exec sleep 60")

    def servers() -> list[judge.Server]:
        time.sleep(30)
        return []

    start = time.monotonic()
    found = room.examine(servers=servers)
    assert time.monotonic() - start < 2.5
    for name in ("llama-cpp", "ollama", "local-ai", "lm-studio", "gpu", "servers"):
        assert set(levels(found, name)) <= {"unknown", "warn"}, name
        assert all(f.fix for f in found[name])
    assert levels(found, "vllm") == levels(found, "python") == ["ok"]
    asked = {p.name: int(p.read_text()) for p in alive.iterdir()}
    assert {"llama-server", "ollama", "nvidia-smi"} <= set(asked)
    time.sleep(0.2)
    assert [name for name, pid in asked.items() if os.path.exists(f"/proc/{pid}")] == []


def test_optional_backends(room: Room) -> None:
    room.program(
        "ollama", "echo 'Warning: could not connect to a running Ollama instance'; echo 'client version is 0.30.1'"
    )
    room.program("local-ai", "echo no; exit 1")
    room.program("lms", '[ "$1" = version ] && echo "lms - LM Studio CLI - v0.0.47" && echo "1.2.3"')
    room.program("vllm", "sleep 60")
    found = room.examine()
    assert found["ollama"][0].message.startswith("0.30.1 at ")
    assert levels(found, "local-ai") == ["warn"]
    assert levels(found, "lm-studio") == levels(found, "vllm") == ["ok"]


def test_environments_of_our_own() -> None:
    """What `backend install vllm` and `embedded` made is no less there for not being on PATH."""
    program = Program("embedded", Path("/e/bin/python"), ("/e/bin/python",), "0.3.36", "environment")
    found = judge.environment("embedded", program, ())
    assert (found.level, found.message) == ("ok", "0.3.36 at /e/bin/python (environment)")
    assert judge.environment("embedded", None, ()).message == "not installed (optional)"
    bad = judge.environment("embedded", None, (Unusable("embedded", Path("/x"), "is too old"),))
    assert (bad.level, bad.fix) == ("warn", "miyabi-llm backend install embedded")


def test_programs_in_the_current_directory_are_not_run(room: Room, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    room.program("ollama", f"echo 1.2.3 > {marker}", folder="here")
    settings = replace(room.settings, env={**room.settings.env, "PATH": f":here:{tmp_path / 'bin'}"})
    old = os.getcwd()
    os.chdir(tmp_path)
    try:
        doctor.examine(settings)
    finally:
        os.chdir(old)
    assert not marker.exists()


def test_the_store_and_the_disk(room: Room) -> None:
    from miyabi_llm.store import Store

    store = Store(room.settings.store)
    with store.part("a" * 64, 100) as part:
        part.reset('"x"', 100)
        part.write(0, b"y" * 50)
    (room.settings.store / "manifests").mkdir(exist_ok=True)
    found = room.examine()
    assert found["store"][0].fix == "miyabi-llm prune"
    room.settings.store.chmod(0o777)
    bad = room.examine()["store"][0]
    assert (bad.level, bad.fix) == ("fail", f"chmod 700 {room.settings.store}")
    room.settings.store.chmod(0o700)


def test_a_broken_configuration_is_a_finding(room: Room) -> None:
    error = BadUsage("config.toml: colour: unknown key", hint="Mend it.")
    found = room.examine(config_error=error)["config"][0]
    assert (found.level, found.fix) == ("fail", "Mend it.")


def test_a_look_that_fails_is_a_finding_of_its_own(room: Room) -> None:
    def servers() -> list[judge.Server]:
        raise OSError("state folder is gone")

    found = room.examine(servers=servers)
    assert (found["servers"][0].level, found["servers"][0].message) == ("fail", "state folder is gone")
    assert levels(found, "python") == ["ok"]


def test_the_hub_token_is_never_shown(room: Room) -> None:
    secret = "hf_canary0123456789"
    settings = replace(room.settings, env={**room.settings.env, "HF_TOKEN": secret})
    text = repr(doctor.examine(settings))
    assert secret not in text
    assert "found in HF_TOKEN" in text


def test_judgements_of_the_machine() -> None:
    assert judge.processor(machine(GIB)).level == "ok"
    assert judge.processor(machine(GIB, flags=frozenset({"sse4_2"}))).level == "warn"
    assert judge.processor(machine(GIB, flags=frozenset())).level == "ok"
    assert judge.memory(machine(16 * GIB)).level == "ok"
    assert judge.memory(machine(2 * GIB)).level == "warn"
    assert judge.memory(machine(0, total=0)).level == "unknown"
    assert "container" in judge.memory(replace(machine(8 * GIB), ram_limit=8 * GIB)).message
    assert judge.python((3, 10, 0), "/x").level == "fail"


def test_judgements_of_cards_and_disks() -> None:
    card = Gpu("cuda", "Card", 8 * GIB, 7 * GIB)
    assert [f.level for f in judge.gpus((card,), ())] == ["ok"]
    assert judge.gpus((), ())[0].message.startswith("none")
    bad = judge.gpus((), ("nvidia-smi: did not end within 2 s",))
    assert [(f.level, f.fix) for f in bad] == [("unknown", "timeout 10 nvidia-smi")]
    bad = judge.gpus((), ("nvidia-smi: has failed because it couldn't communicate with the driver",))
    assert [(f.level, f.fix) for f in bad] == [("warn", "nvidia-smi")]
    place = Path("/x")
    states = [
        (None, True, "unknown"),
        (GIB, True, "fail"),
        (5 * GIB, True, "warn"),
        (50 * GIB, True, "ok"),
        (50 * GIB, False, "fail"),
    ]
    for free, writable, level in states:
        found = judge.disk("store disk", place, free, writable=writable)
        assert found.level == level
        assert level == "ok" or found.fix


def test_judgements_of_the_default_model() -> None:
    assert judge.default_model("m", None, None).fix == "miyabi-llm pull m"
    assert judge.default_model("m", qwen(), machine(16 * GIB)).level == "ok"
    tight = judge.default_model("m", qwen(), machine(2 * GIB))
    assert (tight.level, tight.fix) == ("warn", "miyabi-llm fit m")
    assert judge.default_model("m", gemma(), machine(2 * GIB)).level == "ok"
    assert judge.default_model("m", qwen(), None).level == "ok"


@dataclass(frozen=True)
class Running:
    name: str = "coder"
    ref: str = "qwen2.5-coder:1.5b"
    state: str = "ready"
    port: int = 8080
    restarts: int = 0
    error: str | None = None


def test_judgements_of_servers() -> None:
    assert judge.servers(())[0].level == "ok"
    dead = Running(state="dead", error="it was killed")
    found = judge.servers([Running(), Running(restarts=2), dead])
    assert [f.level for f in found] == ["ok", "warn", "warn"]
    assert [f.fix for f in found] == [None, "miyabi-llm logs coder", "miyabi-llm logs coder"]
    assert "it was killed" in found[2].message


def test_every_finding_that_is_not_fine_has_its_fix(room: Room) -> None:
    for found in room.examine().values():
        assert all(f.level == "ok" or f.fix for f in found)
    program = Program("llama-server", Path("/b"), ("/b",), "b1", "path")
    hung = Unusable("llama-server", Path("/a"), "did not end within 0.9 s")
    assert [f.level for f in judge.llama_cpp(program, [hung])] == ["ok", "unknown"]
    crashed = Unusable("llama-server", Path("/a b"), "died of signal 11")
    found = judge.llama_cpp(program, [crashed])[1]
    assert found.message == "/a b died of signal 11; it is passed over"
    assert found.fix == "timeout 10 '/a b' --version", "a second installation would not mend it"
    assert [f.level for f in judge.llama_cpp(None, [hung])] == ["unknown", "unknown"]
    assert judge.optional("x", "/x", Ran(0, "no version")).level == "warn"
    assert doctor.worst([]) == "ok"


def run(room: Room, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "miyabi_llm", "doctor", *words]
    return subprocess.run(argv, env=dict(room.settings.env), capture_output=True, text=True, timeout=60, check=False)


def test_the_command(room: Room) -> None:
    bare = run(room)
    assert bare.returncode == 1
    assert "FAIL" in bare.stdout
    assert "miyabi-llm backend install llama-cpp" in bare.stdout
    room.program("llama-server", SERVER)
    good = run(room, "--json")
    body = json.loads(good.stdout)
    assert (good.returncode, body["level"]) == (0, "warn")
    assert {f["name"] for f in body["findings"]} >= {"python", "llama-cpp", "store", "default model"}


def test_the_command_with_a_broken_configuration_and_a_hanging_program(room: Room) -> None:
    folder = Path(room.settings.env["MIYABI_CONFIG"])
    folder.mkdir()
    (folder / "config.toml").write_text("colour = 1\n")
    room.program("llama-server", "sleep 60")
    start = time.monotonic()
    found = run(room, "--json")
    assert time.monotonic() - start < 8  # the interpreter's start on a busy machine included
    config_finding = next(f for f in json.loads(found.stdout)["findings"] if f["name"] == "config")
    assert config_finding["level"] == "fail"
    assert found.returncode == 1
