"""The real llama-server measured: our tokens per second beside its own timings and beside llama-bench."""

import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest

from miyabi_llm.cli import execute
from miyabi_llm.errors import BackendMissing, MiyabiError
from miyabi_llm.refs import ModelRef
from miyabi_llm.store import Store
from miyabi_llm.tools import llama_cpp
from miyabi_llm.tools.quantize_output import parse_bench

from ..conftest import USER

MODEL = "qwen2.5-coder:1.5b"
WITHIN = 0.05
THREADS = 1


@pytest.fixture
def model(real_store: Store) -> Path:
    """The real model's file; it is not pulled for this."""
    try:
        return next(iter(real_store.files(real_store.find(ModelRef.parse(MODEL))).values()))
    except MiyabiError as e:
        pytest.skip(f"{e.message}: pull it into the store of the tests")


def measured(capsys: pytest.CaptureFixture[str], store: Store, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The levels of `bench MODEL --concurrency 1,2`."""
    monkeypatch.setenv("MIYABI_HOME", str(store.root.parent))
    words = (
        "--concurrency",
        "1,2",
        "-n",
        "8",
        "--max-tokens",
        "64",
        "--threads",
        str(THREADS),
        "--ctx",
        "4096",
        "--json",
    )
    rc = execute(["bench", MODEL, *words])
    out, err = capsys.readouterr()
    assert rc == 0, err
    return list(json.loads(out)["levels"])


def figure(level: dict[str, Any], name: str) -> float:
    (target,) = level["report"]["measured"]
    metric = next(m for m in target["metrics"] if m["name"] == name)
    return float(metric["percentiles"]["p50"]["value"])


def llama_bench(model: Path) -> float | None:
    """Tokens per second of writing 64; None without the program."""
    try:
        program = llama_cpp.find("llama-bench", USER)
    except BackendMissing:
        return None
    command = [*program.argv, "-m", str(model), "-t", str(THREADS), "-p", "64", "-n", "64", "-r", "3", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    found = parse_bench(done.stdout)
    assert found is not None, done.stderr
    return found.speed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_tokens_per_second_are_those_of_the_server_and_of_llama_bench(
    capsys: pytest.CaptureFixture[str],
    real_server: Path,
    real_store: Store,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = llama_bench(model)
    levels = measured(capsys, real_store, monkeypatch)
    after = llama_bench(model)
    for level in levels:
        ours, theirs = figure(level, "decode_tps"), figure(level, "server_decode_tps")
        assert abs(ours / theirs - 1) < WITHIN, (level["label"], ours, theirs)
    if before is None or after is None:
        pytest.skip("no llama-bench: `miyabi-llm backend install llama-cpp --tools` brings it; the timings agree")
    # an answer begins behind its prompt, where each token is a little dearer than in an empty context
    assert abs(figure(levels[0], "decode_tps") / statistics.mean((before, after)) - 1) < WITHIN
