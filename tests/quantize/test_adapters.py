"""The corrections that llama.cpp's converter of adapters needs, and what no file of it can hold."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.errors import BadUsage
from miyabi_llm.quantize.adapters import merge_first, moved, refuse, scaling

CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 16, "lora_alpha": 16, "bias": "none"}
AT = "base_model.model.model.layers.{}.self_attn.{}_proj"


def tensors(*modules: tuple[int, str, int]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for layer, name, rank in modules:
        at = AT.format(layer, name)
        found |= {f"{at}.lora_A.weight": (rank, 64), f"{at}.lora_B.weight": (64, rank)}
    return found


TWO = tensors((0, "q", 16), (1, "v", 16))


def test_a_plain_adapter_is_left_as_it_is() -> None:
    how = scaling(CONFIG, TWO)
    assert (how.alpha, how.factors, how.note) == (16.0, {}, "")


def test_rslora_gets_the_root_of_its_rank() -> None:
    """peft scales by alpha / sqrt(r) = 4, llama.cpp by alpha / r: it must read an alpha of 64."""
    how = scaling(CONFIG | {"use_rslora": True}, TWO)
    assert (how.alpha, how.factors) == (64.0, {})
    assert "rsLoRA" in how.note


def test_rslora_of_several_ranks_is_put_into_the_tensors() -> None:
    how = scaling(CONFIG | {"use_rslora": True, "rank_pattern": {"v_proj": 4}}, tensors((0, "q", 16), (1, "v", 4)))
    assert how.alpha == 16.0
    assert how.factors == {f"{AT.format(0, 'q')}.lora_B.weight": 4.0, f"{AT.format(1, 'v')}.lora_B.weight": 2.0}


def test_an_alpha_for_one_module() -> None:
    how = scaling(CONFIG | {"alpha_pattern": {"layers.1.self_attn.v_proj": 8, "o_proj": 99}}, TWO)
    assert how.factors == {f"{AT.format(1, 'v')}.lora_B.weight": 0.5}
    assert "alpha_pattern" in how.note
    assert scaling(CONFIG | {"alpha_pattern": {r".*\.[qv]_proj": 32}}, TWO).alpha == 32.0


@given(st.integers(1, 128), st.floats(0.01, 1000), st.booleans())
def test_the_server_s_scale_is_the_trainer_s(rank: int, alpha: float, rslora: bool) -> None:
    how = scaling(CONFIG | {"lora_alpha": alpha, "use_rslora": rslora}, tensors((0, "q", rank)))
    factor = next(iter(how.factors.values()), 1.0)
    assert how.alpha / rank * factor == pytest.approx(alpha / (math.sqrt(rank) if rslora else rank))


@pytest.mark.parametrize(
    ("more", "name", "said"),
    [
        ({"use_dora": True}, None, "is DoRA"),
        ({}, "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "is DoRA"),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, None, "holds whole modules (embed_tokens, lm_head)"),
        ({"modules_to_save": ["lm_head"]}, "base_model.model.lm_head.weight", "holds whole modules (lm_head)"),
        ({"bias": "all"}, None, "trains biases"),
        ({"lora_bias": True}, None, "trains biases"),
    ],
)
def test_what_peft_must_merge(more: dict[str, Any], name: str | None, said: str) -> None:
    config, found = CONFIG | more, TWO | ({name: (64,)} if name else {})
    refuse(config, found)
    assert merge_first(config, found) == said
    assert merge_first(CONFIG, TWO) is None


@pytest.mark.parametrize(
    ("more", "name", "said"),
    [
        ({}, "base_model.model.lm_head.weight", "no part of a LoRA"),
        ({"peft_type": "IA3"}, None, "IA3"),
        ({"trainable_token_indices": [1]}, None, "tokens"),
    ],
)
def test_what_is_refused(more: dict[str, Any], name: str | None, said: str) -> None:
    with pytest.raises(BadUsage, match=said) as e:
        refuse(CONFIG | more, TWO | ({name: (64,)} if name else {}))
    assert e.value.hint is not None
    assert "Merge it into the model first" in e.value.hint


@pytest.mark.parametrize("alpha", [0, None, "16", True, math.inf, math.nan])
def test_an_alpha_that_is_no_number(alpha: object) -> None:
    with pytest.raises(BadUsage, match="lora_alpha"):
        refuse(CONFIG | {"lora_alpha": alpha}, TWO)


def test_moved_probability() -> None:
    half = math.log(0.5)
    assert moved({1: half, 2: half}, {1: half, 2: half}) == 0
    assert moved({1: half, 2: half}, {1: half, 3: half}) == pytest.approx(0.5)
