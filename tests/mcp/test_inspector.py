"""The MCP Inspector's command line over stdio, as a person would check the product's server by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from miyabi_llm.store import Store
from miyabi_llm.types import Artifact
from tests import npm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PACKAGE = "@modelcontextprotocol/inspector@2.12.0"
IS_ERROR = 5  # what it ends with when the tool says so


def ask(folder: Path, env: dict[str, str], *options: str) -> tuple[int, Any]:
    """Its exit code and the JSON it prints."""
    server = [sys.executable, "-m", "miyabi_llm", "mcp"]
    done = subprocess.run(
        [str(folder / "node_modules/.bin/mcp-inspector"), "--cli", *server, *options],
        env={**os.environ, **env, "PATH": os.pathsep.join([env["PATH"], npm.path(folder)])},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout.strip() or done.returncode, done.stderr
    return done.returncode, json.loads(done.stdout or done.stderr[done.stderr.index("{") :])


def test_the_product_over_stdio(
    test_cache: Path, real_server: Path, real_store: Store, real_artifact: Artifact, tmp_path: Path
) -> None:
    folder = npm.installed(test_cache, "inspector", npm.NODE, PACKAGE)
    (tmp_path / "store").symlink_to(real_store.root)
    path = os.pathsep.join([str(folder / "node_modules/.bin"), str(real_server.parent), os.environ["PATH"]])
    env = {"MIYABI_HOME": str(tmp_path), "PATH": path}
    code, said = ask(folder, env, "--method", "tools/list")
    assert code == 0
    assert len(said["tools"]) >= 8
    call = ["--method", "tools/call", "--tool-name", "llama_cpp_generate"]
    words = ["--tool-arg", "prompt=The capital of Japan is", f"model={real_artifact.ref}", "max_tokens=8", "raw=true"]
    code, said = ask(folder, env, *call, *words, "temperature=0")
    assert (code, said["structuredContent"]["output_tokens"]) == (0, 8)
    assert "Tokyo" in said["structuredContent"]["text"]
    assert json.loads(said["content"][0]["text"]) == said["structuredContent"]
    code, said = ask(folder, env, *call, "--tool-arg", "prompt=Hello", "model=nobody")
    assert code == IS_ERROR
    assert "list_models" in json.dumps(said) or "miyabi-llm" in json.dumps(said)
