"""A batch with the real llama-server and a small real model, started and ended by the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from miyabi_llm.store import Store
from miyabi_llm.types import Artifact
from tests.batch.batches import read, text

PROMPTS = [f"{n} plus one is" for n in ("one", "two", "three", "four", "five", "six", "seven", "eight")]


def test_eight_completions(real_server: Path, real_store: Store, real_artifact: Artifact, tmp_path: Path) -> None:
    home, source, target = tmp_path / "home", tmp_path / "in.txt", tmp_path / "out.jsonl"
    home.mkdir()
    (home / "store").symlink_to(real_store.root)
    source.write_text("\n".join(PROMPTS))
    path = os.pathsep.join([str(real_server.parent), os.environ["PATH"]])
    argv = ["batch", str(source), str(real_artifact.ref), "-o", str(target), "--ctx", "512", "--json"]
    options = ["--to", "completions", "--max-tokens", "4", "--temp", "0", "--ordered", "--backend", "llama-cpp"]
    done = subprocess.run(
        [sys.executable, "-m", "miyabi_llm", *argv, *options],
        env=os.environ | {"MIYABI_HOME": str(home), "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["done"], summary["failed"], summary["left"]) == (8, 0, 0)
    assert summary["prompt_tokens"] >= 8 * 3
    assert 8 <= summary["completion_tokens"] <= 8 * 4
    rows = read(target)
    assert list(rows) == [f"row-{n}" for n in range(1, 9)]
    assert all(text(r) for r in rows.values())
    assert all(r["response"]["body"]["usage"]["completion_tokens"] <= 4 for r in rows.values())
