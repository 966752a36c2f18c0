"""The limit `export.max_kld` arrives: files of a tune measured against the one in 16 bits, on its held-out rows."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from miyabi_llm import config, engines, hardware
from miyabi_llm.errors import BackendMissing, GateFailed
from miyabi_llm.finetune import divergence, export
from miyabi_llm.finetune.context import RunContext, Verbs
from miyabi_llm.finetune.load import load
from miyabi_llm.finetune.record import Record
from miyabi_llm.finetune.rundir import RunDir
from miyabi_llm.quantize import Source, open_source
from miyabi_llm.refs import ModelRef
from miyabi_llm.store import Store
from miyabi_llm.tools import llama_cpp, quantizing
from miyabi_llm.types import Event

from ..conftest import CI, USER
from ..quantize.test_outputs import CHATML
from ..quantize.tinylm import write

RECIPE = """
base: {model: "qwen2.5-coder:1.5b"}
data: {train: rows.jsonl}
export: {types: [Q8_0, Q2_K], max_kld: %s}
"""


def unused(*_: object) -> None:
    raise AssertionError("no other verb is asked here")


def context(tmp_path: Path, limit: str, rows: int, events: list[Event]) -> RunContext:
    """A run whose held-out rows are there, and nothing else."""
    settings = config.load(
        {"HOME": str(tmp_path), "MIYABI_HOME": str(tmp_path / "home"), "MIYABI_CACHE": str(tmp_path / "cache")}
    )
    (tmp_path / "cache").mkdir(exist_ok=True)
    if not (tmp_path / "cache/llama-cpp").exists():
        (tmp_path / "cache/llama-cpp").symlink_to(USER.cache / "llama-cpp")
    (tmp_path / "recipe.yaml").write_text(RECIPE % limit)
    run = RunDir(tmp_path / "run")
    run.data.mkdir(parents=True, exist_ok=True)
    said = [
        {
            "prompt": [{"role": "user", "content": f"How much is {i} and {i}?"}],
            "completion": [{"role": "assistant", "content": f"{i + i}, which is even."}],
        }
        for i in range(rows)
    ]
    run.eval_rows.write_text("".join(json.dumps(row) + "\n" for row in said))
    return RunContext(
        load(tmp_path / "recipe.yaml"), run, Record(run), settings, Store(settings.store),
        hardware.look(settings.env), engines.get("trl"), Verbs(unused, unused), events.append,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> tuple[Source, dict[str, Path]]:
    """A random model that has a template, and two files of it."""
    try:
        tool = llama_cpp.find(quantizing.QUANTIZE, USER).argv
    except BackendMissing as e:
        if CI:
            raise
        pytest.skip(f"{e.message}. `miyabi-llm backend install llama-cpp --tools` brings it")
    full = write(tmp_path / "full.gguf", template=CHATML)
    files = {kind: tmp_path / f"{kind}.gguf" for kind in ("Q8_0", "Q2_K")}
    for kind, path in files.items():
        subprocess.run([*tool, str(full), str(path), kind, "1"], check=True, capture_output=True)
    return open_source(ModelRef.parse(str(full)), Store(tmp_path / "store"), tmp_path), files


def test_a_file_beyond_the_limit_is_refused(tmp_path: Path, made: tuple[Source, dict[str, Path]]) -> None:
    source, files = made
    events: list[Event] = []
    near = divergence.measured(context(tmp_path, "5.0", 40, events), source, files)
    assert not [e for e in events if (e.kind, e.name) == ("warning", "quantize")]
    assert 0 < near["Q8_0"]["kld"] < near["Q2_K"]["kld"]
    assert near["Q8_0"]["against"] == "the source at full precision"
    with pytest.raises(GateFailed, match="max_kld: Q2_K: mean KL divergence") as e:
        divergence.measured(context(tmp_path, "0.05", 40, events), source, files)
    assert e.value.details["losses"]["Q8_0"] == near["Q8_0"]


def test_few_rows_are_told(tmp_path: Path, made: tuple[Source, dict[str, Path]]) -> None:
    source, files = made
    events: list[Event] = []
    found = divergence.measured(context(tmp_path, "5.0", 1, events), source, files)
    assert found["Q8_0"]["tokens"] > 500
    assert any("not on the held-out rows" in e.message for e in events if e.kind == "warning")


def test_the_limit_is_an_input_of_the_stage(tmp_path: Path) -> None:
    one, other = (export.quantize_inputs(context(tmp_path, limit, 1, [])) for limit in ("5.0", "0.05"))
    assert one != other
