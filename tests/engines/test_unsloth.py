"""Unsloth cannot run without a card: its calls are held against the signatures in its published wheel."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from miyabi_llm.engines.child import unsloth_model
from miyabi_llm.engines.unsloth import PINS
from miyabi_llm.finetune.recipe import Recipe

KNOWN: dict[str, Any] = json.loads((Path(__file__).parent / "unsloth_2026_10_9.json").read_text())
# Where the wheel defines what we call. `FastLanguageModel.get_peft_model` hands all it is given to the second.
PLACES = {
    "FastLanguageModel.from_pretrained": "unsloth/models/loader.py",
    "FastLlamaModel.get_peft_model": "unsloth/models/llama.py",
}


def order(**more: Any) -> dict[str, Any]:
    recipe = Recipe.model_validate({"base": {"model": "x"}, "data": {"train": "x"}, **more}).model_dump(mode="json")
    return {"base": "/m", "precision": "bf16", "max_length": 512, "lora": recipe["lora"], "train": recipe["train"]}


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch is in another environment; all that is asked of it here are the names of its types."""
    torch = types.SimpleNamespace(float32="float32", bfloat16="bfloat16")
    monkeypatch.setitem(sys.modules, "torch", torch)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["lora", "qlora", "rslora", "dora", "full"])
def test_every_word_of_a_call_is_one_the_wheel_takes(no_torch: None, method: str) -> None:
    told = order(lora={"method": method})
    calls = {
        "FastLanguageModel.from_pretrained": unsloth_model.base_words(told),
        "FastLlamaModel.get_peft_model": unsloth_model.adapter_words(told),
    }
    for name, words in calls.items():
        signature = KNOWN["signatures"][name]
        loose = set(words) - set(signature["named"])
        # use_dora is no named word: the wheel reads it out of its further words, and hands it to peft
        assert loose <= ({"use_dora"} if signature["more"] else set()), name


def test_the_pins_are_what_the_wheel_asks_for() -> None:
    pinned = PINS.versions
    assert pinned["unsloth"] == KNOWN["version"]
    for line in KNOWN["requires"]:
        wanted = Requirement(line)
        if wanted.name in pinned:
            assert wanted.specifier.contains(pinned[wanted.name]), line


@pytest.mark.slow
def test_the_signatures_are_those_of_the_published_wheel(tmp_path: Path) -> None:
    argv = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        f"unsloth=={KNOWN['version']}",
        "-d",
        str(tmp_path),
    ]
    subprocess.run(argv, check=True, capture_output=True, timeout=240)
    wheel = next(tmp_path.glob("*.whl"))
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == KNOWN["wheel_sha256"]
    with zipfile.ZipFile(wheel) as z:
        for name, path in PLACES.items():
            assert signature(z.read(path), *name.split(".")) == KNOWN["signatures"][name]
        assert b'kwargs.get("use_dora"' in z.read(PLACES["FastLlamaModel.get_peft_model"])


def signature(source: bytes, of: str, function: str) -> dict[str, Any]:
    """The words a method takes, by its source: nothing of it is run."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == of:
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and item.name == function:
                    named = [a.arg for a in (*item.args.args, *item.args.kwonlyargs)]
                    return {"named": named, "more": item.args.kwarg is not None}
    raise AssertionError(f"{of}.{function} is not there")
