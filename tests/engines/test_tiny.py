"""The tiny base model: the same bytes from the same seed, with the real tokenizer."""

from __future__ import annotations

import json
from pathlib import Path


def test_the_tiny_model_is_whole(tiny_base: Path) -> None:
    config = json.loads((tiny_base / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (128, 2, 151936)
    assert (tiny_base / "model.safetensors").stat().st_size < 45 << 20
    assert "<|im_start|>" in (tiny_base / "chat_template.jinja").read_text()
    assert json.loads((tiny_base / "generation_config.json").read_text())["eos_token_id"]
