"""Two ways in which trl 1.16 trains on the wrong thing without a word, shown on its own, and that ours cannot."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from miyabi_llm import config
from miyabi_llm.engines.base import Engine
from miyabi_llm.errors import BadUsage
from tests.finetune.test_data import recipe, rendered

LONG = "This answer is long, and it goes on. " * 40
ROWS = [
    {"conversations": [{"from": "human", "value": f"What is alpha {i}?"}, {"from": "gpt", "value": f"It is beta {i}."}]}
    for i in range(8)
]
# What a person would write: the rows as they are, given to SFTTrainer; then what it would train on.
BARE = """
import json, sys
import datasets, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
base, rows, out = sys.argv[1:4]
told = {}
for name, file in (("sharegpt", rows), ("long", rows + ".long")):
    data = datasets.Dataset.from_list([json.loads(line) for line in open(file)])
    args = SFTConfig(output_dir=out, max_length=64, report_to="none", use_cpu=True, bf16=False)
    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer = SFTTrainer(model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), args=args,
                         train_dataset=data, processing_class=tokenizer)
    row = trainer.train_dataset[0]
    ids = row["input_ids"]
    told[name] = {"text": tokenizer.decode(ids), "last": ids[-1], "length": len(ids), "eos": tokenizer.eos_token_id}
json.dump(told, open(out + "/told.json", "w"))
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, engine: Engine, tiny_base: Path) -> dict[str, Any]:
    """What trl makes of the rows by itself."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "rows").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    long = [
        {"prompt": [{"role": "user", "content": "Go on"}], "completion": [{"role": "assistant", "content": LONG}]}
    ] * 8
    (folder / "rows.long").write_text("".join(json.dumps(r) + "\n" for r in long))
    (folder / "bare.py").write_text(BARE)
    env = engine.find(config.load())
    assert env is not None
    quiet = dict(config.load().env) | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    argv = [str(env.python), str(folder / "bare.py"), str(tiny_base), str(folder / "rows"), str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=280, env=quiet)
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads((folder / "told.json").read_text())
    return told


@pytest.mark.slow
def test_trl_by_itself_loses_both_turns_of_sharegpt_rows(bare: dict[str, Any]) -> None:
    assert "alpha" not in bare["sharegpt"]["text"]
    assert "beta" not in bare["sharegpt"]["text"]


@pytest.mark.slow
def test_trl_by_itself_cuts_the_end_of_an_answer(bare: dict[str, Any]) -> None:
    assert bare["long"]["length"] == 64
    assert bare["long"]["last"] != bare["long"]["eos"]


def test_ours_keeps_every_turn_of_sharegpt_rows(tmp_path: Path, engine: Engine, tiny_base: Path) -> None:
    found = rendered(recipe(tmp_path, ROWS), tmp_path, engine, tiny_base, keep=8)
    for row in found.kept:
        text, trained = "".join(row["pieces"]), "".join(row["pieces"][row["start"] :])
        assert "What is alpha" in text
        assert trained.startswith("It is beta")
        assert trained.rstrip().endswith("<|im_end|>")
    strange = [{"conversations": [{"from": "frage", "value": "a"}, {"from": "gpt", "value": "b"}]}] * 8
    with pytest.raises(BadUsage, match="an unknown role"):
        rendered(recipe(tmp_path, strange), tmp_path, engine, tiny_base)


def test_ours_leaves_a_long_row_out_and_never_cuts_it(tmp_path: Path, engine: Engine, tiny_base: Path) -> None:
    rows = [*ROWS, {"conversations": [{"from": "human", "value": "Go on"}, {"from": "gpt", "value": LONG}]}]
    loaded = recipe(tmp_path, rows, "data.max_length=64", "data.max_dropped=0.2")
    found = rendered(loaded, tmp_path, engine, tiny_base, keep=9)
    assert [r.number for r in found.long] == [9]
    assert {len(r.last) for r in (*found.learn, *found.held)} == {1}
    assert not [f for f in found.report.findings if f.check in ("no-end", "untrained", "lost-text")]
