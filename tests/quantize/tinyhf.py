"""A random Llama in safetensors with a vocabulary of bytes and letters that llama.cpp's converter takes as it is."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from ..tinyqwen import _safetensors as safetensors

WIDTH, INNER, LAYERS, HEADS = 256, 512, 2, 4
LETTERS = [chr(c) for c in range(33, 127)]
WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *LETTERS]
ADDED = {"<|im_start|>": len(WORDS), "<|im_end|>": len(WORDS) + 1, "<tool_call>": len(WORDS) + 2}
VOCAB = len(WORDS) + len(ADDED)
END = ADDED["<|im_end|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def model(folder: Path, *, seed: int = 1, odd: float | None = None, ends: Sequence[int] = (END, 2)) -> Path:
    """Write one into `folder`; `odd` is a number in one of its matrices, `ends` are the generation's."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)

    def matrix(rows: int, columns: int) -> tuple[tuple[int, int], list[float]]:
        return (rows, columns), [rng.gauss(0, 0.12) for _ in range(rows * columns)]

    tensors: dict[str, tuple[Sequence[int], Sequence[float]]] = {
        "model.embed_tokens.weight": matrix(VOCAB, WIDTH),
        "lm_head.weight": matrix(VOCAB, WIDTH),
        "model.norm.weight": ((WIDTH,), [1.0] * WIDTH),
    }
    for i in range(LAYERS):
        at = f"model.layers.{i}"
        tensors |= {f"{at}.self_attn.{n}_proj.weight": matrix(WIDTH, WIDTH) for n in "qkvo"}
        tensors |= {f"{at}.mlp.{n}_proj.weight": matrix(INNER, WIDTH) for n in ("gate", "up")}
        tensors[f"{at}.mlp.down_proj.weight"] = matrix(WIDTH, INNER)
        tensors |= {f"{at}.{n}_layernorm.weight": ((WIDTH,), [1.0] * WIDTH) for n in ("input", "post_attention")}
    if odd is not None:
        tensors["model.layers.1.mlp.up_proj.weight"][1][1000] = odd  # type: ignore[index]
    safetensors(folder / "model.safetensors", tensors)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
        "max_position_embeddings": 2048, "vocab_size": VOCAB, "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "torch_dtype": "bfloat16", "bos_token_id": 1,
        "eos_token_id": ends[0],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(ends), "bos_token_id": 1}))
    tokenizer(folder)
    return folder


def tokenizer(folder: Path, *, eos: str = "<|im_end|>") -> None:
    """Its tokenizer; `eos` is what tokenizer_config.json calls the end."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    own = {"<unk>": 0, "<s>": 1, "</s>": 2}
    added = [{"id": i, "content": t, "special": True} | flags for t, i in own.items()]
    added += [{"id": i, "content": t, "special": t != "<tool_call>"} | flags for t, i in ADDED.items()]
    body = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        ]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": {text: i for i, text in enumerate(WORDS)}, "merges": []},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(body))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": eos, "unk_token": "<unk>",
        "add_bos_token": True, "add_eos_token": False, "add_prefix_space": False, "model_max_length": 2048,
        "chat_template": TEMPLATE, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
