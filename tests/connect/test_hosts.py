"""`mcp install`: the server in each host's own file, once, beside what stands there."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from miyabi_llm import config
from miyabi_llm.cli import execute
from miyabi_llm.cli.mcp import _HOSTS
from miyabi_llm.connect import HOSTS

NAME = "miyabi-local-llm"


@pytest.fixture
def you(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "you"))
    for name in ("CLAUDE_CONFIG_DIR", "CODEX_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "you"


def entry(host: str, path: Path) -> dict[str, object]:
    text = path.read_text()
    value = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    for key in (*HOSTS[host].keys, NAME):
        value = value[key]
    return dict(value)


def test_the_command_names_them_all() -> None:
    assert tuple(HOSTS) == _HOSTS


@pytest.mark.parametrize("host", HOSTS)
def test_installed_once(host: str, you: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["mcp", "install", host]) == 0
    path = HOSTS[host].user(config.load())
    assert path.is_relative_to(you)
    found = entry(host, path)
    assert Path(str(found["command"])).is_absolute()
    assert list(found["args"])[-1] == "mcp"  # type: ignore[call-overload]
    assert found["env"]["MIYABI_HOME"] == str(config.load().home)  # type: ignore[index]
    before = path.read_bytes()
    assert execute(["mcp", "install", host]) == 0
    assert "nothing to change" in capsys.readouterr().out
    assert path.read_bytes() == before
    assert len(list(path.parent.glob(f"{path.name}*"))) == 1


def test_what_stands_there_stays(you: Path) -> None:
    path = you / ".claude.json"
    path.parent.mkdir()
    path.write_text('{"numStartups": 7, "mcpServers": {"other": {"command": "x"}, "miyabi-local-llm": {"old": 1}}}')
    assert execute(["mcp", "install", "claude-code"]) == 0
    value = json.loads(path.read_text())
    assert (value["numStartups"], value["mcpServers"]["other"]) == (7, {"command": "x"})
    assert "old" not in value["mcpServers"][NAME]
    assert value["mcpServers"][NAME]["type"] == "stdio"
    assert json.loads((you / ".claude.json.before-miyabi-llm").read_text())["mcpServers"][NAME] == {"old": 1}


def test_for_one_project(you: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["mcp", "install", "vscode", "--project"]) == 0
    assert NAME in json.loads(Path(".vscode/mcp.json").read_text())["servers"]
    assert execute(["mcp", "install", "claude-desktop", "--project"]) == 2
    assert "Leave out --project" in capsys.readouterr().err
    assert execute(["mcp", "install", "nobody"]) == 2
    assert "claude-code" in capsys.readouterr().err


def test_nothing_is_written_on_a_dry_run_or_over_what_is_no_json(you: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["mcp", "install", "cursor", "--dry-run"]) == 0
    assert NAME in json.loads(capsys.readouterr().out)["mcpServers"]
    path = you / ".cursor" / "mcp.json"
    assert not path.exists()
    path.parent.mkdir(parents=True)
    path.write_text("not json")
    assert execute(["mcp", "install", "cursor"]) == 2
    assert path.read_text() == "not json"
