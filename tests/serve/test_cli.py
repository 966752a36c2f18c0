"""The commands serve, ps, logs and stop, as a person types them, with the real server and a small real model."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from miyabi_llm.store import Store

from .conftest import all_gone, free_port, processes

REF = "gemma3:270m"


class Cli:
    """The installed command with a home of its own."""

    def __init__(self, home: Path, server: Path, store: Path) -> None:
        path = os.pathsep.join([str(server.parent), os.environ["PATH"]])
        self.env = os.environ | {"MIYABI_HOME": str(home), "PATH": path}
        self.started: list[subprocess.Popen[str]] = []
        home.mkdir()
        (home / "store").symlink_to(store)

    def start(self, *argv: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "miyabi_llm", *argv]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.started.append(subprocess.Popen(command, env=self.env, **options))  # type: ignore[call-overload]
        return self.started[-1]

    def close(self) -> None:
        """End what a failed test left."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.communicate(timeout=20)

    def __call__(self, *argv: str, code: int = 0) -> tuple[str, str]:
        process = self.start(*argv)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, err
        return out, err


@pytest.fixture
def cli(
    tmp_path: Path, real_server: Path, real_model: Path, real_store: object, real_artifact: object
) -> Iterator[Cli]:

    assert isinstance(real_store, Store)
    made = Cli(tmp_path / "home", real_server, real_store.root)
    yield made
    made.close()
    made("stop", "--all")
    assert all_gone(str(tmp_path), 2.0)


def test_a_detached_server_from_start_to_stop(cli: Cli) -> None:
    port = str(free_port())
    out, err = cli("serve", REF, "--detach", "--port", port, "--ctx", "512", "--json")
    info = json.loads(out)
    assert (info["state"], info["kind"], info["ref"], info["ctx"]) == ("ready", "detached", REF, 512)
    assert info["endpoint"]["key"] == "***"
    assert "***" not in err

    (listed,) = json.loads(cli("ps", "--json")[0])
    assert (listed["pid"], listed["state"]) == (info["pid"], "ready")
    assert "gemma3-270m" in cli("ps")[0]

    again, said = cli("serve", REF, "--detach", "--port", port)
    assert "runs already" in said
    curl = next(line for line in again.splitlines() if line.startswith("curl"))
    curl = curl.replace("/v1/chat/completions", "/v1/models").partition(" -d ")[0]
    answer = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, timeout=10, check=True)
    assert json.loads(answer.stdout)["data"][0]["id"] == REF
    bare = curl.partition('-H "Authorization')[0]
    refused = subprocess.run(["sh", "-c", bare], capture_output=True, text=True, timeout=10, check=True)
    assert "Invalid API Key" in refused.stdout

    assert "n_ctx" in cli("logs", REF, "-n", "200")[0] or "slot" in cli("logs", REF, "-n", "200")[0]
    assert cli("stop", REF)[0] == "stopped gemma3-270m\n"
    assert not processes(port)
    assert json.loads(cli("ps", "--json")[0]) == []
    assert cli("logs", "gemma3-270m", "-n", "1")[0]


def test_the_foreground_says_where_and_ends_at_ctrl_c(cli: Cli) -> None:
    process = cli.start("serve", REF, "--port", str(free_port()), "--ctx", "512")
    assert process.stdout is not None
    assert REF in process.stdout.readline()
    assert process.stdout.readline().startswith("curl http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in err
    assert "Authorization" not in out, "no key was asked for"


def test_a_dry_run_starts_nothing(cli: Cli, tmp_path: Path) -> None:
    out, _ = cli("serve", REF, "--key", "--dry-run", "--", "--temp", "0.5")
    words = shlex.split(out)
    assert words[0] == "LLAMA_API_KEY=***"
    assert words[1].endswith("llama-server")
    assert words[-2:] == ["--temp", "0.5"]
    assert json.loads(cli("serve", REF, "--dry-run", "--json")[0])["endpoint"]["model"] == REF
    assert not (tmp_path / "home" / "run").exists()


def test_an_open_host_without_a_key_is_refused_before_anything_starts(cli: Cli, tmp_path: Path) -> None:
    """H3."""
    _, err = cli("serve", REF, "--host", "0.0.0.0", code=2)
    assert "--api-key-file" in err
    assert not (tmp_path / "home" / "run").exists()


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["serve", "qwen2.5-coder:1.5"], 3, "Did you mean qwen2.5-coder:1.5b"),
        (["run", "nosuch", "hi"], 3, "Known short names: gemma3:270m"),
        (["run", "nosuch", "hi", "--pull"], 3, "Known short names: gemma3:270m"),
        (["rm", "gemma"], 3, "Did you mean gemma3:270m?"),
        (["stop"], 2, "--all"),
        (["stop", "nobody"], 3, "miyabi-llm ps"),
        (["logs", "nobody"], 3, "miyabi-llm ps"),
        (["logs", "nobody", "--follow", "--json"], 2, "--follow"),
        (["serve", REF, "--backend", "nonesuch"], 2, "llama-cpp"),
        (["serve", REF, "--api-key-file", "/nowhere/key"], 2, "/nowhere/key"),
        (["serve", REF, "--name", "../up", "--detach"], 2, "no name"),
    ],
)
def test_mistakes(cli: Cli, argv: list[str], code: int, words: str) -> None:
    _, err = cli(*argv, code=code)
    assert words in err
    assert "Traceback" not in err
    assert "miyabi-llm pull" not in err, "a pull of such a name cannot work"


def test_a_fresh_key_is_named_and_works(cli: Cli) -> None:
    process = cli.start("serve", REF, "--key", "--port", str(free_port()), "--", "--ctx-size", "512")
    assert process.stdout is not None
    assert REF in process.stdout.readline()
    curl = process.stdout.readline()
    short = curl.rstrip().replace('"messages"', '"max_tokens": 2, "messages"')
    answer = subprocess.run(["sh", "-c", f"{short} -s"], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(answer.stdout)["choices"], answer.stdout
    key = Path(cli.env["MIYABI_HOME"]) / "run" / "gemma3-270m.key"
    assert str(key) in curl
    assert key.read_text().strip() not in curl
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert not key.exists()
    assert "8192" not in err, "the context is the one given after --"


def test_a_context_given_to_the_program_is_judged_as_if_it_were_ours(cli: Cli) -> None:
    plan = json.loads(cli("serve", REF, "--dry-run", "--json", "--", "-c", "512")[0])
    chosen = "backend llama-cpp: it serves gguf and is installed"
    assert (plan["ctx"], plan["notes"]) == (512, [chosen])
    plan = json.loads(cli("serve", REF, "--dry-run", "--json", "--", "--ctx-size", "99999")[0])
    assert "trained for 32768" in plan["notes"][1]
    first, note = json.loads(cli("serve", REF, "--dry-run", "--json")[0])["notes"]
    assert first == chosen
    assert note.startswith("context 8192 tokens")


def test_a_context_beyond_all_memory_is_refused_before_anything_starts(cli: Cli, tmp_path: Path) -> None:
    _, err = cli("serve", REF, "--ctx", "900000000", code=4)
    assert "needs more memory than this machine has" in err
    assert "--ctx" in err
    assert not (tmp_path / "home" / "run").exists()


def test_a_base_model_is_said_to_be_one(cli: Cli) -> None:
    out, err = cli("run", REF, "Once upon", "--max-tokens", "2", "--ctx", "512")
    assert [line for line in err.splitlines() if "base model" in line] == [
        f"warning: {REF}: is a base model without a chat template: it continues text, it was not taught to answer"
    ]
    assert "base model" not in out


def test_without_a_backend_the_hint_says_how_to_get_one(cli: Cli, tmp_path: Path) -> None:
    cli.env |= {"PATH": "/usr/bin:/bin", "MIYABI_CACHE": str(tmp_path / "cache")}
    _, err = cli("serve", REF, code=3)
    assert "miyabi-llm backend install llama-cpp" in err


def test_a_port_of_another_is_named(cli: Cli) -> None:
    import socket

    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        out, err = cli("serve", REF, "--port", str(port), "--json", code=1)
    assert json.loads(out)["error"]["code"] == "port-taken"
    assert f"pid {os.getpid()}" in err
