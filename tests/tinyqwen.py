"""A random Qwen2 in safetensors with a vocabulary of bytes, and a LoRA adapter for it, written byte by byte.

Small enough that a server loads it in the time of its own start; its words are nonsense, but always the same.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

WIDTH, INNER, LAYERS, HEADS, KV_HEADS = 128, 256, 2, 2, 1
END, START, STOP = 256, 257, 258
VOCAB = 259
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _bytes_to_text() -> dict[int, str]:
    """The letters by which byte-level BPE writes bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


def _safetensors(path: Path, tensors: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> None:
    """Write numbers as bfloat16: the upper half of a float32."""
    head, data = {}, bytearray()
    for name, (shape, numbers) in tensors.items():
        begin = len(data)
        raw = struct.pack(f"<{len(numbers)}f", *numbers)
        data += b"".join(raw[i + 2 : i + 4] for i in range(0, len(raw), 4))
        head[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def model(folder: Path, *, seed: int = 1) -> Path:
    """Write a model into `folder`."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)

    def matrix(rows: int, columns: int) -> tuple[tuple[int, int], list[float]]:
        return (rows, columns), [rng.gauss(0, 0.08) for _ in range(rows * columns)]

    def ones(n: int) -> tuple[tuple[int], list[float]]:
        return (n,), [1.0] * n

    kv = WIDTH * KV_HEADS // HEADS
    tensors: dict[str, tuple[Sequence[int], Sequence[float]]] = {
        "model.embed_tokens.weight": matrix(VOCAB, WIDTH),
        "lm_head.weight": matrix(VOCAB, WIDTH),
        "model.norm.weight": ones(WIDTH),
    }
    for i in range(LAYERS):
        at = f"model.layers.{i}"
        for name, size in (("q", WIDTH), ("k", kv), ("v", kv)):
            tensors[f"{at}.self_attn.{name}_proj.weight"] = matrix(size, WIDTH)
            tensors[f"{at}.self_attn.{name}_proj.bias"] = ((size,), [0.0] * size)
        tensors[f"{at}.self_attn.o_proj.weight"] = matrix(WIDTH, WIDTH)
        tensors |= {f"{at}.mlp.{n}_proj.weight": matrix(INNER, WIDTH) for n in ("gate", "up")}
        tensors[f"{at}.mlp.down_proj.weight"] = matrix(WIDTH, INNER)
        tensors |= {f"{at}.{n}_layernorm.weight": ones(WIDTH) for n in ("input", "post_attention")}
    _safetensors(folder / "model.safetensors", tensors)
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": WIDTH, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 2048, "vocab_size": VOCAB, "tie_word_embeddings": False, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "hidden_act": "silu", "torch_dtype": "bfloat16", "bos_token_id": None,
        "eos_token_id": STOP, "pad_token_id": END, "use_sliding_window": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [STOP, END], "pad_token_id": END}))
    _tokenizer(folder)
    return folder


def _tokenizer(folder: Path) -> None:
    letters = _bytes_to_text()
    special = {"<|endoftext|>": END, "<|im_start|>": START, "<|im_end|>": STOP}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    body = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": text} | flags for text, i in special.items()],
        "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {letters[b]: b for b in range(256)} | special, "merges": []},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(body))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
        "model_max_length": 2048, "chat_template": TEMPLATE, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def adapter(folder: Path, *, seed: int = 2, rank: int = 4) -> Path:
    """Write a LoRA adapter in peft's layout into `folder`, strong enough to change the model's words."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    tensors: dict[str, tuple[Sequence[int], Sequence[float]]] = {}
    for i in range(LAYERS):
        for name, rows, columns in (("q_proj", WIDTH, WIDTH), ("o_proj", WIDTH, WIDTH)):
            at = f"base_model.model.model.layers.{i}.self_attn.{name}"
            tensors[f"{at}.lora_A.weight"] = ((rank, columns), [rng.gauss(0, 0.5) for _ in range(rank * columns)])
            tensors[f"{at}.lora_B.weight"] = ((rows, rank), [rng.gauss(0, 0.5) for _ in range(rows * rank)])
    _safetensors(folder / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0,
        "target_modules": ["q_proj", "o_proj"], "bias": "none", "base_model_name_or_path": "tiny",
        "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
