"""Ollama as a person uses it: `serve --backend ollama`, `ps`, `stop`; with the stand-in, not the real program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import ggufs
from tests.ollamad import Ollamad, program
from tests.serve.conftest import all_gone, free_port


class Cli:
    """The command with a home, a PATH and a model of its own, and nobody on Ollama's usual port."""

    def __init__(self, home: Path) -> None:
        self.home, self.model = home, home / "models/tiny.gguf"
        self.program = program(home / "bin")
        self.model.parent.mkdir()
        self.model.write_bytes(ggufs.tiny())
        path = os.pathsep.join([str(self.program.parent), os.environ["PATH"]])
        self.env = os.environ | {"MIYABI_HOME": str(home / "data"), "HOME": str(home), "PATH": path}
        self.env |= {"MIYABI_CACHE": str(home / "cache"), "OLLAMA_HOST": f"127.0.0.1:{free_port()}"}
        self("pull", str(self.model))
        self.ref = f"file:{self.model}"

    def __call__(self, *argv: str, code: int = 0) -> tuple[str, str]:
        command = [sys.executable, "-m", "miyabi_llm", *argv]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    def json(self, *argv: str) -> Any:
        return json.loads(self(*argv, "--json")[0])


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    made = Cli(tmp_path)
    yield made
    made("stop", "--all")
    assert all_gone(str(made.program), 5.0)


def ask(base_url: str, model: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    said = httpx.post(f"{base_url}/v1/chat/completions", json=body, trust_env=False, timeout=10)
    said.raise_for_status()
    text: str = said.json()["choices"][0]["message"]["content"]
    return text


def test_a_server_of_our_own_from_start_to_stop(cli: Cli) -> None:
    port = free_port()
    plan = cli.json("serve", cli.ref, "--backend", "ollama", "--port", str(port), "--ctx", "512", "--dry-run")
    assert plan["env"]["OLLAMA_HOST"] == f"127.0.0.1:{port}"
    out, err = cli("serve", cli.ref, "--backend", "ollama", "-d", "--port", str(port), "--ctx", "512", "--json")
    assert "demands no key" in err
    assert "22,496 bytes shared, 0 sent, 0 written again" in err
    url = json.loads(out)["endpoint"]["base_url"]
    assert ask(url, "tiny:latest") == "a"
    (listed,) = cli.json("ps")
    assert (listed["backend"], listed["state"], listed["ctx"]) == ("ollama", "ready", 512)
    (loaded,) = httpx.get(f"{url}/api/ps", trust_env=False).json()["models"]
    assert loaded["context_length"] == 512
    blobs = cli.home / "data/store/blobs"
    (blob,) = [p for p in blobs.iterdir() if p.stat().st_size == cli.model.stat().st_size]
    (lent,) = (cli.home / "data/run/work").glob(f"*/ollama/blobs/sha256-{blob.name}")
    assert lent.samefile(blob) or not lent.is_symlink()

    os.kill(listed["pid"], signal.SIGKILL)  # it comes again, with the model
    deadline = time.monotonic() + 20
    while (now := cli.json("ps")[0])["restarts"] != 1 or now["state"] != "ready":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert ask(url, "tiny:latest") == "a"

    assert "stopped tiny" in cli("stop", "tiny")[0]
    assert cli.json("ps") == []
    assert blob.exists()
    assert not lent.exists()  # the folder stays; the bytes of a model that is removed must not
    cli("serve", cli.ref, "--backend", "ollama", "-d", "--port", str(port), "--ctx", "512")
    assert ask(url, "tiny:latest") == "a"


def test_one_that_runs_fetches_for_itself(cli: Cli) -> None:
    assert "no Ollama runs here" in cli("pull", "ollama:small:1b", "--through", "ollama", code=3)[1]
    with Ollamad(cli.home / "theirs") as fake:
        fake.pulls["small:1b"] = fake.pulls["hf.co/acme/tiny:Q8_0"] = ggufs.tiny()
        cli.env["OLLAMA_HOST"] = fake.url.removeprefix("http://")
        brought = cli.json("pull", "ollama:small:1b", "--through", "ollama")
        assert (brought["model"], brought["at"]) == ("small:1b", fake.url)
        assert brought["size"] >= len(ggufs.tiny())
        out, _ = cli("pull", "hf:acme/tiny:Q8_0", "--through", "ollama")
        assert out.splitlines()[0].startswith("hf.co/acme/tiny:Q8_0")
        assert "not in our store" in out
        assert "file does not exist" in cli("pull", "ollama:none:1b", "--through", "ollama", code=1)[1]
    for words in (("gemma3:270m", "--through", "ollama"), ("ollama:a", "--through", "vllm")):
        cli("pull", *words, code=2)
    assert "--refresh and --through" in cli("pull", "ollama:a", "--through", "ollama", "--refresh", code=2)[1]
    assert [row["ref"] for row in cli.json("list")] == [cli.ref]


def test_one_that_runs_is_attached_to_and_left_running(cli: Cli, tmp_path: Path) -> None:
    env = cli.env | {"OLLAMA_MODELS": str(tmp_path / "theirs")}
    cli.env["OLLAMA_MODELS"] = env["OLLAMA_MODELS"]
    with subprocess.Popen([cli.program, "serve"], env=env, stderr=subprocess.PIPE) as child:
        try:
            assert child.stderr is not None
            child.stderr.readline()
            (row,) = [b for b in cli.json("backend", "list") if b["name"] == "ollama"]
            assert row["ok"]
            assert "not started by us" in row["reason"]
            endpoint = cli.json("serve", cli.ref, "--backend", "ollama")
            assert endpoint["base_url"] == f"http://{cli.env['OLLAMA_HOST']}"
            assert endpoint["model"] == "miyabi/tiny:latest"
            assert ask(endpoint["base_url"], endpoint["model"]) == "a"
            assert cli.json("ps") == []
            cli("stop", "--all")
            assert ask(endpoint["base_url"], endpoint["model"]) == "a"
        finally:
            child.terminate()
            child.stderr.close()
    out, err = cli("serve", cli.ref, "--backend", "ollama", "--host", "0.0.0.0", "--key", code=2)
    assert "demands no key" in err
    assert not out


def test_words_of_a_failure_reach_the_person(cli: Cli) -> None:
    models = cli.home / "data/run/work/tiny/ollama"
    models.mkdir(parents=True)
    (models / "faults").write_text("late-error")
    _, err = cli("serve", cli.ref, "--backend", "ollama", "-d", "--port", str(free_port()), code=1)
    assert "tensor out of bounds" in err
    assert cli.json("ps") == []
