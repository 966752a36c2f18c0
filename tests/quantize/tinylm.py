"""A language model of random numbers, small enough to quantize in a moment, with a real vocabulary of bytes."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from ..ggufs import F32, I32, header, kv, tensor

WIDTH, INNER, LAYERS = 256, 512, 2
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]


CHAT = ["<|im_start|>", "<|im_end|>"]  # control tokens of a model that has a template


def write(path: Path, *, seed: int = 1, poison: bool = False, template: str | None = None) -> Path:
    """Write one to `path`, its matrices in F16; `poison` puts a NaN into one of them."""
    rng = random.Random(seed)
    vocab = len(TOKENS) + (len(CHAT) if template else 0)
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (WIDTH, vocab)),
        ("output_norm.weight", (WIDTH,)),
        ("output.weight", (WIDTH, vocab)),
    ]
    for i in range(LAYERS):
        shapes += [(f"blk.{i}.{n}.weight", (WIDTH,)) for n in ("attn_norm", "ffn_norm")]
        shapes += [(f"blk.{i}.attn_{n}.weight", (WIDTH, WIDTH)) for n in ("q", "k", "v", "output")]
        shapes += [(f"blk.{i}.ffn_{n}.weight", (WIDTH, INNER)) for n in ("gate", "up")]
        shapes += [(f"blk.{i}.ffn_down.weight", (INNER, WIDTH))]
    infos, data = [], b""
    for name, shape in shapes:
        infos.append(tensor(name, shape, 0 if len(shape) == 1 else 1, len(data)))
        if len(shape) == 1:
            data += struct.pack(f"<{shape[0]}f", *([1.0] * shape[0]))
        else:
            numbers = [rng.gauss(0, 0.12) for _ in range(shape[0] * shape[1])]
            if poison and name == "blk.1.ffn_up.weight":
                numbers[1000] = float("nan")
            data += struct.pack(f"<{len(numbers)}e", *numbers)
        data += bytes(-len(data) % 32)
    head = header([*_keys(template)], infos)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def _keys(template: str | None) -> list[bytes]:
    more = CHAT if template else []
    n = len(TOKENS) + len(more)
    return [
        *([kv("tokenizer.chat_template", template)] if template else []),
        kv("general.architecture", "llama"),
        kv("general.name", "tiny"),
        kv("general.license", "cc0-1.0"),
        kv("llama.context_length", 2048),
        kv("llama.embedding_length", WIDTH),
        kv("llama.block_count", LAYERS),
        kv("llama.feed_forward_length", INNER),
        kv("llama.attention.head_count", 4),
        kv("llama.attention.head_count_kv", 4),
        kv("llama.attention.layer_norm_rms_epsilon", 1e-5),
        kv("llama.rope.dimension_count", WIDTH // 4),
        kv("tokenizer.ggml.model", "llama"),
        kv("tokenizer.ggml.tokens", [*TOKENS, *more]),
        kv("tokenizer.ggml.scores", [0.0] * n, F32),
        kv("tokenizer.ggml.token_type", [2, 3, 3] + [6] * 256 + [3] * len(more), I32),
        kv("tokenizer.ggml.bos_token_id", 1),
        kv("tokenizer.ggml.eos_token_id", 2),
        kv("tokenizer.ggml.unknown_token_id", 0),
    ]
