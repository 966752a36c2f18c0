"""What vLLM needs, from config.json and safetensors headers, and what `fit` says of it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from miyabi_llm import config, fit, paged
from miyabi_llm.errors import BadUsage, Corrupt
from miyabi_llm.fit.paged import PROGRAM, judge_paged
from miyabi_llm.hardware import Gpu
from miyabi_llm.refs import ModelRef
from miyabi_llm.store import Store
from tests.test_fit import MIB, machine

GIB = 1 << 30
QWEN: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "use_sliding_window": False,
}


def weights(nbytes: int = 3 * GIB, **more: Any) -> paged.Weights:
    return paged.Weights(QWEN | more, nbytes, nbytes // 2, {"BF16": nbytes})


def test_the_cache_is_counted_in_whole_blocks() -> None:
    token = 28 * 2 * 2 * 128 * 2  # layers, K and V, two heads of 128, two bytes
    assert paged.cache_bytes(weights(), 1024, "f16", 1) == (1024 + 128) * token
    assert paged.cache_bytes(weights(), 1025, "f16", 1) == (1152 + 128) * token
    assert paged.cache_bytes(weights(), 1024, "f16", 4) == (4096 + 128) * token
    assert paged.cache_bytes(weights(), 1024, "fp8", 1) == (1024 + 128) * token // 2


def test_layers_that_slide_and_layers_without_a_cache() -> None:
    kinds = ["sliding_attention", "full_attention", "linear_attention", "sliding_attention"]
    small = weights(num_hidden_layers=4, layer_types=kinds, sliding_window=512)
    row = 2 * 2 * 128 * 2
    assert paged.cache_bytes(small, 8192, "f16", 1) == row * ((8192 + 128) + 2 * (512 + 2048 + 128))


def test_latent_attention_and_a_text_model_inside_another() -> None:
    latent = weights(num_hidden_layers=2, kv_lora_rank=512, qk_rope_head_dim=64)
    assert paged.cache_bytes(latent, 128, "f16", 1) == 2 * 576 * 2 * 256
    inside = paged.Weights({"text_config": QWEN, "architectures": ["X"]}, 1, 1)
    assert (inside.context_length, inside.architecture) == (32768, "Qwen2ForCausalLM")


@pytest.mark.parametrize("value", [-1, 0, "12", 1.5, True, None, [], 1 << 50])
def test_hostile_numbers_count_as_nothing(value: Any) -> None:
    for key in QWEN:
        verdict = judge_paged(weights(**{key: value}), machine(8 * GIB), None, fit.How("vllm"))
        assert verdict.needed.total > 0


def test_the_processor_has_room_for_several_requests() -> None:
    verdict = judge_paged(weights(), machine(16 * GIB), None, fit.How("vllm"))
    assert (verdict.fits, verdict.device, verdict.backend, verdict.ctx) == (True, "cpu", "vllm", 8192)
    assert verdict.needed.runtime == PROGRAM
    assert verdict.needed.kv == paged.cache_bytes(weights(), 8192, "f16", 4)
    assert "4 requests of 8192 tokens" in verdict.notes[0]


def test_a_card_is_taken_whatever_is_needed() -> None:
    card = Gpu("cuda", "Card", 24 * GIB, 23 * GIB)
    verdict = judge_paged(weights(), machine(1 * GIB, gpus=(card,)), 8192, fit.How("vllm"))
    assert (verdict.fits, verdict.device) == (True, "gpu")
    assert verdict.available == int(0.92 * 24 * GIB)
    assert "vLLM takes 92% of Card" in verdict.notes[0]


def test_what_does_not_fit_and_what_to_do() -> None:
    verdict = judge_paged(weights(), machine(6 * GIB), 32768, fit.How("vllm"))
    assert verdict.fits is False
    assert verdict.largest_ctx is not None
    assert f"--ctx {verdict.largest_ctx}" in verdict.advice[0]
    assert "llama-cpp" in verdict.advice[-1]
    with pytest.raises(BadUsage, match="no cache type of vLLM"):
        judge_paged(weights(), machine(GIB), None, fit.How("vllm", kv_type="q4_0"))


def folder(path: Path, config_json: bytes) -> Path:
    """A model in the hub's layout: one tensor of 1 MiB in BF16."""
    path.mkdir()
    (path / "config.json").write_bytes(config_json)
    (path / "chat_template.jinja").write_text("x")
    head = json.dumps({"w": {"dtype": "BF16", "shape": [512, 1024], "data_offsets": [0, MIB]}}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(MIB))
    return path


def test_a_model_on_disk(tmp_path: Path) -> None:
    settings = config.load({"HOME": str(tmp_path), "MIYABI_HOME": str(tmp_path / "data"), "MIYABI_OFFLINE": "1"})
    place = folder(tmp_path / "m", json.dumps(QWEN).encode())
    found = fit.find(ModelRef.parse(str(place)), Store(settings.store), settings)
    assert found.header is None
    assert found.weights is not None
    assert (found.weights.nbytes, found.weights.parameters, found.weights.template) == (MIB, MIB // 2, True)
    assert fit.backend_for(found, None) == "vllm"
    assert fit.report(found, machine(16 * GIB), None, fit.How("vllm")).facts.architecture == "Qwen2ForCausalLM"
    with pytest.raises(BadUsage, match="llama-cpp serves GGUF files"):
        fit.report(found, machine(16 * GIB), None, fit.How())
    with pytest.raises(BadUsage, match="no GGUF file"):
        fit.find_header(ModelRef.parse(str(place)), Store(settings.store), settings)
    broken = folder(tmp_path / "n", b"{")
    with pytest.raises(Corrupt, match=r"config\.json is not JSON"):
        fit.find(ModelRef.parse(str(broken)), Store(settings.store), settings)
