"""The command connect, as a person types it, against records of running servers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from miyabi_llm import config
from miyabi_llm.cli import execute
from miyabi_llm.proc.identity import identify
from miyabi_llm.serve.state import Record, RunDir
from tests import clauded
from tests.gateway.house import policy, running
from tests.openaid import serving

Serve = Callable[..., Path]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "you"))
    for name in ("CLAUDE_CONFIG_DIR", "CODEX_HOME", "XDG_CONFIG_HOME", "CONTINUE_GLOBAL_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "you"


@pytest.fixture
def serve(home: Path) -> Serve:
    """A detached server, as its state file tells it: guarded by this very process."""
    folder = RunDir(config.load().run)
    folder.ensure()

    def start(name: str, dialects: tuple[str, ...] = ("openai", "anthropic"), backend: str = "llama-cpp") -> Path:
        me = identify(os.getpid())
        assert me is not None
        started = "2026-01-01T00:00:00+00:00"
        folder.key(name).write_text("s3cret-of-" + name)
        record = Record(
            name, f"file:{name}.gguf", (), backend, "detached", "ready", "http://127.0.0.1:9", name, dialects, 9,
            started, me, keyed=True, ctx=40000,
        )  # fmt: skip
        folder.write(record)
        return folder.key(name)

    return start


def test_nothing_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["connect", "claude-code"]) == 3
    assert "miyabi-llm serve MODEL --detach" in capsys.readouterr().err


def test_write_twice_and_print(home: Path, serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    key = serve("one")
    assert execute(["connect", "claude-code"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["apiKeyHelper"] == f"cat {key}"
    assert str(home / ".claude/settings.json") in shown.err
    assert not home.exists()
    assert execute(["connect", "claude-code", "--write"]) == 0
    assert "written" in capsys.readouterr().out
    assert execute(["connect", "claude-code", "--write", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"path": str(home / ".claude/settings.json"), "changed": False, "backup": None, "removed": []}
    ]


def test_several_want_a_name(home: Path, serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve("one")
    serve("two", ("openai",))
    assert execute(["connect", "openai"]) == 2
    assert "--endpoint: one, two" in capsys.readouterr().err
    assert execute(["connect", "openai", "--endpoint", "two"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("export OPENAI_BASE_URL=http://127.0.0.1:9/v1\n")
    assert "s3cret" not in out
    assert execute(["connect", "claude-code", "--endpoint", "two"]) == 2
    assert execute(["connect", "openai", "--endpoint", "three"]) == 3
    assert execute(["connect", "openai", "--endpoint", "two", "--write"]) == 2
    assert 'eval "$(miyabi-llm connect openai)"' in capsys.readouterr().err


def test_a_server_elsewhere_is_asked_what_it_serves(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THEIR_KEY", "s3cret")
    with serving() as server:
        assert execute(["connect", "opencode", "--endpoint", server.url, "--key-env", "THEIR_KEY"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["provider"]["miyabi-llm"]["options"]["apiKey"] == "{env:THEIR_KEY}"
        assert execute(["connect", "claude-code", "--endpoint", server.url]) == 2
        assert "speaks the anthropic dialect" in capsys.readouterr().err


def test_a_gateway_stands_before_the_servers(home: Path, serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """Claude Code goes on asking by its own names: what an earlier connect wrote of models goes."""
    serve("one")
    assert execute(["connect", "claude-code", "--write"]) == 0
    settings = home / ".claude" / "settings.json"
    assert json.loads(settings.read_text())["env"]["ANTHROPIC_MODEL"] == "one"
    key = serve("gateway", backend="gateway")
    assert execute(["connect", "claude-code", "--write"]) == 0
    value = json.loads(settings.read_text())
    assert value["apiKeyHelper"] == f"cat {key}"
    assert not [name for name in value["env"] if name.endswith("_MODEL")]
    capsys.readouterr()
    assert execute(["connect", "openai"]) == 0
    assert "policy says who answers" in capsys.readouterr().err
    assert execute(["connect", "opencode"]) == 2
    assert "--model" in capsys.readouterr().err
    assert execute(["connect", "opencode", "--model", "private"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "miyabi-llm/private"
    assert execute(["connect", "claude-code", "--endpoint", "one"]) == 0
    assert json.loads(capsys.readouterr().out)["env"]["ANTHROPIC_MODEL"] == "one"


def test_a_gateway_elsewhere_is_known_by_its_list(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with clauded.serving() as server, running(policy(f"here local {server.url}", mode="local")) as house:
        assert execute(["connect", "claude-code", "--endpoint", house.url]) == 0
        env = json.loads(capsys.readouterr().out)["env"]
        assert env["ANTHROPIC_BASE_URL"] == house.url
        assert "ANTHROPIC_MODEL" not in env
        assert "CLAUDE_CODE_ATTRIBUTION_HEADER" not in env
