"""Templates that are wrong in ways seen in the wild, planted in the real tokenizer: all are caught before training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from miyabi_llm.engines.base import Engine
from miyabi_llm.errors import BadUsage
from tests.finetune.test_data import recipe, rendered

pytestmark = pytest.mark.slow

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
FAULTS = {
    "a turn is left out": (
        TURNS.replace("{% for m in messages %}", "{% for m in messages if m.role != 'user' %}") + OPEN,
        "lose a turn when they are rendered",
    ),
    "the answer has no end": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if m.role != 'assistant' %}<|im_end|>\n{% endif %}{% endfor %}" + OPEN,
        "do not train the end of the answer",
    ),
    "two begin tokens": ("<|endoftext|><|endoftext|>" + TURNS + OPEN, "begin with two begin tokens"),
    "reasoning is dropped": (
        TURNS.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1].lstrip() }}") + OPEN,
        "lose their reasoning",
    ),
    "the prompt is refused": (
        "{{ raise_exception('roles must alternate') }}",
        "template refuses 8 rows: .*must alternate",
    ),
    "nothing is trained": (
        TURNS.replace("{% for m in messages %}", "{% for m in messages if m.role != 'assistant' %}"),
        "have no trained token",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_template_is_caught_before_training(
    fault: str, tmp_path: Path, engine: Engine, tiny_base: Path
) -> None:
    template, said = FAULTS[fault]
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_base / name, base / name)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "<|endoftext|>"}))
    (base / "chat_template.jinja").write_text(template)
    thought = "<think>\nIt is simple.\n</think>\n\n" if "reasoning" in fault else ""
    rows = [{"prompt": f"What is {i}?", "completion": f"{thought}It is {i}."} for i in range(8)]
    with pytest.raises(BadUsage, match=said) as caught:
        rendered(recipe(tmp_path, rows, "data.thinking=keep"), tmp_path, engine, base)
    assert "[rows 1, 2, 3, 4, 5, ...]" in caught.value.message
