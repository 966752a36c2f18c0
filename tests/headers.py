"""Headers of real models, tensor by tensor, without their bytes."""

from __future__ import annotations

from typing import Any

from miyabi_llm import gguf
from miyabi_llm.ggml import TYPES


def layout(keys: dict[str, Any], tensors: list[tuple[str, tuple[int, ...], str]]) -> gguf.Header:
    """A header as the reader would give it, without a file behind it; arrays are given as tuples."""
    sizes = {name: (block, size) for name, block, size in TYPES.values()}
    infos, offset = [], 0
    for name, shape, kind in tensors:
        n = 1
        for dim in shape:
            n *= dim
        block, size = sizes[kind]
        infos.append(gguf.TensorInfo(name, shape, kind, offset, n // block * size))
        offset += infos[-1].nbytes
    kv: dict[str, gguf.Value] = {
        k: gguf.Array("u32", len(v), v) if isinstance(v, tuple) else v for k, v in keys.items()
    }
    return gguf.Header(3, kv, tuple(infos), 0, 32, offset)


def qwen() -> gguf.Header:
    """Qwen2.5-Coder-1.5B-Instruct Q4_K_M, tensor by tensor: types as `llama-quantize` chose them."""
    keys = {
        "general.architecture": "qwen2",
        "qwen2.block_count": 28,
        "qwen2.context_length": 32768,
        "qwen2.embedding_length": 1536,
        "qwen2.feed_forward_length": 8960,
        "qwen2.attention.head_count": 12,
        "qwen2.attention.head_count_kv": 2,
        "qwen2.vocab_size": 151936,
    }
    better = {0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27}  # layers whose v and down are Q6_K in Q4_K_M
    tensors: list[tuple[str, tuple[int, ...], str]] = [
        ("token_embd.weight", (1536, 151936), "Q4_K"),
        ("output.weight", (1536, 151936), "Q6_K"),
        ("output_norm.weight", (1536,), "F32"),
    ]
    for i in range(28):
        special = "Q6_K" if i in better else "Q4_K"
        for name, shape, kind in (
            ("attn_q.weight", (1536, 1536), "Q4_K"),
            ("attn_q.bias", (1536,), "F32"),
            ("attn_k.weight", (1536, 256), "Q4_K"),
            ("attn_k.bias", (256,), "F32"),
            ("attn_v.weight", (1536, 256), special),
            ("attn_v.bias", (256,), "F32"),
            ("attn_output.weight", (1536, 1536), "Q4_K"),
            ("ffn_gate.weight", (1536, 8960), "Q4_K"),
            ("ffn_up.weight", (1536, 8960), "Q4_K"),
            ("ffn_down.weight", (8960, 1536), special),
            ("attn_norm.weight", (1536,), "F32"),
            ("ffn_norm.weight", (1536,), "F32"),
        ):
            tensors.append((f"blk.{i}.{name}", shape, kind))
    return layout(keys, tensors)


def gemma() -> gguf.Header:
    """Gemma 3 270M Q4_K_M: rows of 640 are no multiple of 256, so most tensors fell back to Q5_0 and Q8_0."""
    keys = {
        "general.architecture": "gemma3",
        "gemma3.block_count": 18,
        "gemma3.context_length": 32768,
        "gemma3.embedding_length": 640,
        "gemma3.feed_forward_length": 2048,
        "gemma3.attention.head_count": 4,
        "gemma3.attention.head_count_kv": 1,
        "gemma3.attention.key_length": 256,
        "gemma3.attention.value_length": 256,
        "gemma3.attention.sliding_window": 512,
        "gemma3.vocab_size": 262144,
    }
    better = {0, 1, 4, 7, 10, 13, 15, 16, 17}
    tensors: list[tuple[str, tuple[int, ...], str]] = [
        ("token_embd.weight", (640, 262144), "Q8_0"),
        ("output_norm.weight", (640,), "F32"),
    ]
    for i in range(18):
        good = i in better
        for name, shape, kind in (
            ("attn_q.weight", (640, 1024), "Q5_0"),
            ("attn_k.weight", (640, 256), "Q5_0"),
            ("attn_v.weight", (640, 256), "Q8_0" if good else "Q5_0"),
            ("attn_output.weight", (1024, 640), "Q4_K"),
            ("ffn_gate.weight", (640, 2048), "Q5_0"),
            ("ffn_up.weight", (640, 2048), "Q5_0"),
            ("ffn_down.weight", (2048, 640), "Q6_K" if good else "Q4_K"),
            ("attn_q_norm.weight", (256,), "F32"),
            ("attn_k_norm.weight", (256,), "F32"),
            ("attn_norm.weight", (640,), "F32"),
            ("ffn_norm.weight", (640,), "F32"),
            ("post_attention_norm.weight", (640,), "F32"),
            ("post_ffw_norm.weight", (640,), "F32"),
        ):
            tensors.append((f"blk.{i}.{name}", shape, kind))
    return layout(keys, tensors)
