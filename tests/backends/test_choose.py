"""The choice of a backend gives its reason, and its refusal the next command."""

from pathlib import Path

import pytest

from miyabi_llm import backends
from miyabi_llm.errors import BackendMissing, BadUsage
from miyabi_llm.refs import ModelRef
from miyabi_llm.tools.llama_cpp import SERVER
from miyabi_llm.types import Artifact, Format
from tests.tools.stubs import script, server, settings


def artifact(format_: Format = "gguf") -> Artifact:
    return Artifact(ModelRef.parse("hf:a/b/m.gguf"), format_, (), "verified", "test", "2026-01-01")


def test_the_installed_one_is_chosen(tmp_path: Path) -> None:
    place = server(tmp_path / "bin" / SERVER)
    choice = backends.choose(artifact(), None, settings(tmp_path, tmp_path / "bin"))
    assert choice.backend.name == "llama-cpp"
    assert choice.detected.program is not None
    assert choice.detected.program.path == place
    assert "gguf" in choice.reason
    assert backends.choose(artifact(), "llama-cpp", settings(tmp_path, tmp_path / "bin")).reason == "you asked for it"


def test_nothing_installed(tmp_path: Path) -> None:
    script(tmp_path / "bin" / SERVER, "exit 1")
    with pytest.raises(BackendMissing, match="no backend for gguf") as e:
        backends.choose(artifact(), None, settings(tmp_path, tmp_path / "bin"))
    assert "is no llama.cpp program" in e.value.message
    assert e.value.hint == "Run `miyabi-llm backend install llama-cpp`."


def test_a_format_nobody_serves(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="adapter model"):
        backends.choose(artifact("adapter"), "llama-cpp", settings(tmp_path))
    with pytest.raises(BadUsage, match="is no backend"):
        backends.choose(artifact(), "llama", settings(tmp_path))


def test_the_list_names_what_was_passed_over(tmp_path: Path) -> None:
    bad = script(tmp_path / "bad" / SERVER, "exit 1")
    server(tmp_path / "good" / SERVER)
    server(tmp_path / "good" / "llama-bench")
    (state,) = (
        s for s in backends.status(settings(tmp_path, tmp_path / "bad", tmp_path / "good")) if s.name == "llama-cpp"
    )
    assert state.ok
    assert [r.path for r in state.rejected] == [bad]
    assert state.tools == {"llama-bench": tmp_path / "good" / "llama-bench"}


def test_a_daemon_of_another_is_woken_only_by_name(tmp_path: Path) -> None:
    from tests.backends.programs import stand_in

    room = stand_in(tmp_path, "lms", "lmstudiod.py")
    with pytest.raises(BackendMissing, match="lm-studio: is not running, and is woken only when it is named"):
        backends.choose(artifact(), None, room.settings)
    assert backends.choose(artifact(), "lm-studio", room.settings).backend.name == "lm-studio"
