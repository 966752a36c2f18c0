"""`finetune check`: what would spoil a run is said before it, in seconds and without torch; and the estimates."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm import config, hardware
from miyabi_llm.errors import BadUsage
from miyabi_llm.finetune import check as verb
from miyabi_llm.finetune import estimate, load, speed
from miyabi_llm.finetune.recipe import Recipe
from miyabi_llm.hardware import Gpu
from miyabi_llm.store import Store
from tests.conftest import USER

QWEN = {
    "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip


def looked(recipe: Path, tmp_path: Path, *overrides: str) -> verb.Report:
    settings = config.load()
    place = verb.Place(settings, Store(settings.store), hardware.look(settings.env), tmp_path / "work")
    return verb.check(load.load(recipe, overrides), place)


def level(report: verb.Report, name: str) -> str:
    return next(f.level for f in report.findings if f.name == name)


def test_a_good_recipe_is_checked_in_seconds(recipe: Path, real_server: Path, tmp_path: Path) -> None:
    started = time.process_time()
    report = looked(recipe, tmp_path)
    assert time.process_time() - started < 2  # of this process; wall time depends on who else is here
    assert report.level != "fail", report.findings
    for name in ("recipe", "engine", "base", "data.train", "template", "tokenizer", "llama-server"):
        assert level(report, name) == "ok", name
    assert report.estimate is not None
    assert report.estimate.steps == 8


def edited(base: Path, target: Path, name: str, change: Callable[[Any], Any]) -> None:
    """A copy of the base with another tokenizer or template; its weights are the same file."""
    shutil.copytree(base, target, ignore=shutil.ignore_patterns("*.safetensors"))
    (target / "model.safetensors").symlink_to(base / "model.safetensors")
    path = target / name
    text = path.read_text(encoding="utf-8")
    made = change(text if name.endswith(".jinja") else json.loads(text))
    path.write_text(made if isinstance(made, str) else json.dumps(made), encoding="utf-8")


def other_words(body: Any) -> Any:
    """A tokenizer that makes other tokens of the same text than any llama.cpp knows."""
    body["model"]["merges"] = body["model"]["merges"][:2000]
    return body


@pytest.mark.parametrize(
    ("file", "change", "finding", "word"),
    [
        ("tokenizer.json", other_words, "tokenizer", "does not know"),
        ("chat_template.jinja", lambda t: t.replace("<|im_end|>", ""), "template", "no token ends the answer"),
        (
            "chat_template.jinja",
            lambda t: "{% for m in messages %}{{ m.role }}{% endfor %}",
            "template",
            "is not in the",
        ),
        ("chat_template.jinja", lambda t: "{{ nothing.at.all }}", "template", "fails on a question"),
    ],
)
def test_what_spoils_the_export_fails_before_training(
    recipe: Path, tiny_base: Path, tmp_path: Path, file: str, change: Callable[[Any], Any], finding: str, word: str
) -> None:
    folder = tmp_path / "odd"
    edited(tiny_base, folder, file, change)
    report = looked(recipe, tmp_path, f"base.model={folder}")
    bad = [f.message for f in report.findings if f.level == "fail" and f.name == finding]
    assert any(word in m for m in bad), report.findings


def test_what_is_missing_is_said(recipe: Path, tmp_path: Path) -> None:
    assert level(looked(recipe, tmp_path, "data.train=gone.jsonl"), "data.train") == "fail"
    (tmp_path / "empty").mkdir()
    assert level(looked(recipe, tmp_path, f"base.model={tmp_path / 'empty'}"), "base") == "fail"
    assert level(looked(recipe, tmp_path, "base.model=qwen2.5-coder:1.5b"), "base") == "warn"
    huge = looked(recipe, tmp_path, "train.batch_size=4096", "data.max_length=8192")
    assert level(huge, "memory") in ("ok", "warn", "fail")


def qwen(**more: Any) -> Recipe:
    return Recipe.model_validate({"base": {"model": "x"}, "data": {"train": "x"}, **more})


def test_the_shape_counts_the_weights_of_the_real_model() -> None:
    form = estimate.shape(QWEN)
    assert abs(form.parameters / 1_543_714_304 - 1) < 0.001  # what its GGUF header says
    # peft says 18,464,768 for rank 16 on all linear layers of this model
    assert estimate.trained(form, qwen(lora={"rank": 16})) == 18_464_768


def test_memory_falls_where_it_should() -> None:
    form = estimate.shape(QWEN)

    def need(precision: str = "fp32", **more: Any) -> int:
        return estimate.memory(form, qwen(**more), precision, cuda=True, longest=512).total

    lora = need()
    assert need(lora={"method": "qlora"}) < need("bf16") < lora < need(lora={"method": "full"})
    assert need(train={"gradient_checkpointing": True}) < lora
    assert need(train={"batch_size": 4}) > lora
    assert need(train={"method": "dpo"}) > lora
    assert need(lora={"method": "full"}, train={"optimizer": "adamw-8bit"}) < need(lora={"method": "full"})


@given(st.dictionaries(st.sampled_from(list(QWEN)), st.none() | st.integers(-5, 9) | st.text(max_size=3)))
def test_odd_configurations_are_refused_or_counted(body: dict[str, Any]) -> None:
    try:
        form = estimate.shape(body)
    except BadUsage:
        return
    assert isinstance(form.parameters, int)


def test_a_card_has_no_speed_until_it_was_measured(tmp_path: Path) -> None:
    settings = replace(USER, cache=tmp_path)
    machine = replace(hardware.look(USER.env), gpus=(Gpu("cuda", "NVIDIA L4", 1 << 34, 1 << 34, "550", "8.9"),))
    way = speed.way("lora", "bf16", 1_543_714_304)
    assert speed.known(machine, way, settings) is None
    speed.learn(machine, way, 4e12, settings)
    speed.learn(machine, way, 2e12, settings)
    assert speed.known(machine, way, settings) == speed.Speed(3e12, True)
    (tmp_path / "finetune-speed.json").write_text("[]")
    assert speed.known(machine, way, settings) is None
    assert speed.multiply() > 1e8
