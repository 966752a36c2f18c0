"""Claude Code itself, from its npm package, in print mode: through the gateway, and with our tools.

Behind the gateway is the stand-in for Claude: what Claude Code sends is real, what it is answered is not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from miyabi_llm.store import Store
from miyabi_llm.types import Artifact
from tests import clauded, npm
from tests.gateway.house import House, policy, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PACKAGE = "@anthropic-ai/claude-code@2.1.332"
TOOL = "mcp__miyabi-local-llm__llama_cpp_generate"
WORDS = "".join(clauded.WORDS)
MY_NUMBER = "山田太郎様のマイナンバーは123456789018です。お礼の手紙を書いてください。"


@dataclass(frozen=True, slots=True)
class Coder:
    """Claude Code with a home of its own."""

    folder: Path
    home: Path

    def environment(self, **more: str) -> dict[str, str]:
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("ANTHROPIC_", "CLAUDE"))}
        return keep | {
            "PATH": npm.path(self.folder),
            "HOME": str(self.home),
            "CLAUDE_CONFIG_DIR": str(self.home / ".claude"),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            **more,
        }

    def run(self, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        work = self.home / "work"
        work.mkdir(exist_ok=True)
        return subprocess.run(
            ["claude", *argv],
            env=self.environment(**env),
            cwd=work,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )

    def ask(self, gateway: House, prompt: str, *options: str, **env: str) -> dict[str, Any]:
        """One question in print mode; what it says of it as JSON."""
        variables = {"ANTHROPIC_BASE_URL": gateway.url, "ANTHROPIC_AUTH_TOKEN": "none", "ANTHROPIC_MODEL": MODEL}
        done = self.run("-p", prompt, "--output-format", "json", *options, **(variables | env))
        assert done.stdout, done.stderr
        return dict(json.loads(done.stdout))


MODEL = "claude-sonnet-5-5"


@pytest.fixture
def coder(test_cache: Path, tmp_path: Path) -> Coder:
    (tmp_path / "home").mkdir()
    return Coder(npm.installed(test_cache, "claude-code", npm.NODE, PACKAGE), tmp_path / "home")


@pytest.fixture
def claude() -> Iterator[clauded.Clauded]:
    with clauded.serving() as server:
        yield server


def messages(server: clauded.Clauded) -> list[dict[str, Any]]:
    return [json.loads(body) for path, _, body in server.asked if path.startswith("/v1/messages")]


def last(house: House) -> dict[str, Any]:
    return dict(house.http.get("/miyabi/status").json()["decisions"][-1])


def test_print_mode(coder: Coder, claude: clauded.Clauded) -> None:
    with running(policy(f"claude claude {claude.url}", mode="claude")) as house:
        said = coder.ask(house, "Say hello")
        assert (said["result"], said["is_error"], said["stop_reason"]) == (WORDS, False, "end_turn")
        row = last(house)
        assert (row["target"], row["verdict"], row["status"], row["stream"]) == ("claude", "public", 200, True)
        assert (row["input_tokens"], row["output_tokens"]) == (25, 15)
    path, headers, body = next(a for a in claude.asked if a[0].startswith("/v1/messages"))
    assert path == "/v1/messages?beta=true"
    assert headers["user-agent"].startswith("claude-cli/2.1.332")
    assert "claude-code-20250219" in headers["anthropic-beta"]
    assert json.loads(body)["stream"] is True
    assert len(body) > 20_000  # its own instructions and tools


def test_the_policy_that_is_written_first_lets_it_reach_claude(coder: Coder, claude: clauded.Clauded) -> None:
    """Its own instructions name a bare `.env`: that alone must not keep every request of it here."""
    written = coder.home / "policy.toml"
    init = [sys.executable, "-m", "miyabi_llm", "route", "init", "-o", str(written), "--cloud", claude.url]
    subprocess.run(init, env=coder.environment(), check=True, capture_output=True, timeout=60)
    text = written.read_text()
    public = text.replace('default_verdict = "internal"', 'default_verdict = "public"')
    with running(public) as house:
        assert coder.ask(house, "Say hello")["result"] == WORDS
        row = last(house)
        assert (row["target"], row["verdict"]) == ("claude", "public"), row["reason"]
        coder.ask(house, "Read /home/you/project/.env and tell me what it says")
        assert last(house)["verdict"] == "confidential"
    assert len(messages(claude)) == 1


def test_what_is_private_is_answered_here(coder: Coder, claude: clauded.Clauded) -> None:
    with clauded.serving() as here:
        text = policy(f"claude claude {claude.url}", f'here local {here.url} model = "small"', mode="claude")
        with running(text, keys={"here": "k"}) as house:
            said = coder.ask(house, MY_NUMBER)
            assert said["result"] == WORDS
            row = last(house)
            assert (row["target"], row["verdict"]) == ("here", "confidential")
            assert "my-number" in row["detected"]
        assert claude.asked == []
        assert claude.connections == 0
        sent = messages(here)
        assert all(m["model"] == "small" for m in sent)
        assert "123456789018" in json.dumps(sent)
        assert "x-anthropic-billing-header" not in json.dumps(sent) or "cch=" not in json.dumps(sent)


@pytest.mark.parametrize("trouble", ["529", "429", "spend", "drop"])
def test_claude_is_in_trouble_and_the_local_one_answers(coder: Coder, claude: clauded.Clauded, trouble: str) -> None:
    claude.script = [trouble]
    with clauded.serving() as here:
        text = policy(f"claude claude {claude.url}", f'here local {here.url} model = "small"', mode="claude")
        with running(text, keys={"here": "k"}) as house:
            said = coder.ask(house, "Say hello")
            assert (said["result"], said["is_error"]) == (WORDS, False)
            assert last(house)["target"] == "here"
        assert messages(here)


def test_claude_hands_work_to_the_local_model(
    coder: Coder,
    claude: clauded.Clauded,
    real_server: Path,
    real_store: Store,
    real_artifact: Artifact,
    tmp_path: Path,
) -> None:
    """Claude Code starts our MCP server, calls the tool that Claude asked for, and sends the local answer back."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "store").symlink_to(real_store.root)
    places = {"MIYABI_HOME": str(data), "MIYABI_CACHE": os.environ["MIYABI_CACHE"]}
    env = coder.environment(**places)
    env["PATH"] = os.pathsep.join([str(real_server.parent), env["PATH"]])
    install = [sys.executable, "-m", "miyabi_llm", "mcp", "install", "claude-code"]
    subprocess.run(install, env=env, check=True, capture_output=True, timeout=60)
    listed = coder.run("mcp", "list", **places, PATH=env["PATH"])
    assert "miyabi-local-llm" in listed.stdout
    assert "Connected" in listed.stdout, listed.stdout
    ask = {"prompt": "The capital of Japan is", "model": str(real_artifact.ref), "max_tokens": 8, "temperature": 0}
    claude.script = [f"call={json.dumps(ask | {'raw': True})}", "ok"]
    claude.tool = TOOL
    with running(policy(f"claude claude {claude.url}", mode="claude")) as house:
        said = coder.ask(house, "Ask the local model", "--allowedTools", TOOL, **places, PATH=env["PATH"])
        assert (said["result"], said["num_turns"], said["is_error"]) == (WORDS, 2, False), said
    first, second = messages(claude)
    assert TOOL in json.dumps(first["tools"]) or "mcp" in json.dumps(first)
    results = [
        b for m in second["messages"] for b in m["content"] if isinstance(b, dict) and b["type"] == "tool_result"
    ]
    assert "Tokyo" in json.dumps(results)
    assert not any(b.get("is_error") for b in results)


def test_settings_written_by_connect_are_enough(coder: Coder, claude: clauded.Clauded) -> None:
    """No variable but those in its own settings file."""
    with running(policy(f"claude claude {claude.url}", mode="claude")) as house:
        connect = [sys.executable, "-m", "miyabi_llm", "connect", "claude-code", "--endpoint", house.url, "--write"]
        subprocess.run(connect, env=coder.environment(), check=True, capture_output=True, timeout=60)
        done = coder.run("-p", "Say hello")
        assert done.stdout.strip() == WORDS, done
        assert last(house)["target"] == "claude"
    assert messages(claude)[-1]["model"].startswith("claude-")  # its own choice
