"""How much memory vLLM will take for a model, from its config.json and the headers of its safetensors files.

Formulas follow vLLM 0.32: keys and values in whole blocks, per layer; layers with a sliding window keep the window and
one batch; latent attention (MLA) one compressed row. Working memory is an estimate that no measurement here backs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from miyabi_llm.types import MemoryEstimate

MIB: Final = 1 << 20
BLOCK: Final = 128  # tokens of a block on the CPU; 16 on cards
BATCH: Final = 2048  # tokens of one step (`--max-num-batched-tokens` of a small server)
MAX_LAYERS: Final = 4096
# cache type -> bytes per number; q8_0 is what llama.cpp calls it, vLLM has fp8
CACHE_BYTES: Final[dict[str, int]] = {"f16": 2, "bf16": 2, "fp8": 1}


@dataclass(frozen=True, slots=True)
class Weights:
    """A model in the hub's layout: its config, the bytes of its tensors, how many numbers, and of which types."""

    config: Mapping[str, Any]
    nbytes: int
    parameters: int
    types: Mapping[str, int] = field(default_factory=dict)
    template: bool = False

    def number(self, key: str) -> int:
        """A count out of the text model's config; 0 where it does not say."""
        text = self.config.get("text_config")
        config = text if isinstance(text, dict) and key in text else self.config
        value = config.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40 else 0

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of words out of the text model's config."""
        text = self.config.get("text_config")
        config = text if isinstance(text, dict) and key in text else self.config
        value = config.get(key)
        return tuple(v for v in value if isinstance(v, str)) if isinstance(value, list) else ()

    @property
    def context_length(self) -> int | None:
        """Tokens the model was trained for."""
        return self.number("max_position_embeddings") or None

    @property
    def architecture(self) -> str:
        """What the config calls the model."""
        return next(iter(self.texts("architectures")), "") or str(self.config.get("model_type") or "")


def estimate(weights: Weights, ctx: int, kv_type: str, parallel: int, runtime: int) -> MemoryEstimate:
    """Bytes vLLM needs for `parallel` requests of `ctx` tokens each; what it takes may be more (see `fit`)."""
    width, inner = weights.number("hidden_size"), weights.number("intermediate_size")
    working = min(BATCH, ctx) * 2 * (4 * width + 2 * inner) + 4 * parallel * weights.number("vocab_size")
    return MemoryEstimate(weights.nbytes, 0, cache_bytes(weights, ctx, kv_type, parallel), working, runtime)


def cache_bytes(weights: Weights, ctx: int, kv_type: str, parallel: int) -> int:
    """Bytes of keys and values of so many requests, in whole blocks and one block more, the engine's own."""
    row = _row(weights) * CACHE_BYTES[kv_type]
    window = weights.number("sliding_window")
    kinds = weights.texts("layer_types")
    layers = min(weights.number("num_hidden_layers"), MAX_LAYERS)
    sliding = sum("sliding" in kind for kind in kinds[:layers]) if window else 0
    linear = sum("linear" in kind or "conv" in kind or "mamba" in kind for kind in kinds[:layers])
    full = max(0, layers - sliding - linear)
    tokens = (_blocks(ctx) * parallel + 1) * BLOCK
    short = (_blocks(min(ctx, window + BATCH)) * parallel + 1) * BLOCK
    return row * (full * tokens + sliding * short)


def largest_ctx(weights: Weights, budget: int, kv_type: str, parallel: int, runtime: int) -> int | None:
    """The most tokens of context, up to what the model was trained for, that fit `budget` bytes; None if none do."""
    least, most = 1, max(1, (weights.context_length or 4096) // BLOCK)

    def fits(steps: int) -> bool:
        return estimate(weights, steps * BLOCK, kv_type, parallel, runtime).total <= budget

    if not fits(least):
        return None
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least * BLOCK


def _row(weights: Weights) -> int:
    """Numbers that one layer keeps of one token."""
    if latent := weights.number("kv_lora_rank"):
        return latent + weights.number("qk_rope_head_dim")
    heads = weights.number("num_attention_heads")
    head = weights.number("head_dim") or weights.number("hidden_size") // max(1, heads)
    return 2 * (weights.number("num_key_value_heads") or heads) * head


def _blocks(ctx: int) -> int:
    return -(-ctx // BLOCK)
