"""The job `tiny`: a small Qwen2 with random weights from a seed, and the real tokenizer of a GGUF file.

It trains in seconds and goes the whole road of a real model: llama.cpp's converter knows its tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# The output matrix (tied to the input) is frozen under a LoRA. At the usual 0.02 its largest logit is about 2.5: no
# training could make such a model sure of a word.
SHARP = 15.0
# Likewise the layers are frozen: at 0.02 they pass on nearly nothing of the tokens before, and nothing could be learned
# from it. At 0.1, about 1 / sqrt(128), the rows of the smoke recipe are learned in 56 steps.
LIVELY = 5.0


def run(order: dict[str, Any], say: Any) -> dict[str, Any]:
    """Write it to `order["target"]`; `source` is the GGUF file, `vocabulary` what `hf_copy` reads of its header.

    `hidden`, `layers` and `seed` are the recipe's.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from miyabi_llm.engines.child.common import Failed
    from miyabi_llm.tools import hf_copy_child as copying

    source, vocabulary = Path(order["source"]), json.loads(Path(order["vocabulary"]).read_text(encoding="utf-8"))
    say("phase", "tokenizer", source.name)
    tokenizer = copying.read_tokenizer(source, vocabulary)
    if trouble := copying.check_tokenizer(tokenizer, vocabulary):
        raise Failed("corrupt", f"the tokenizer of {source.name}: {trouble}")
    hidden, layers = int(order["hidden"]), int(order["layers"])
    heads = max(2, hidden // 64)
    torch.manual_seed(int(order["seed"]))
    config = Qwen2Config(
        vocab_size=len(vocabulary["tokens"]),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        use_sliding_window=False,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(SHARP)
        for name, weight in model.named_parameters():
            if name.endswith("_proj.weight"):
                weight.mul_(LIVELY)
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    tokenizer.model_max_length = 2048
    copying.write(model, tokenizer, vocabulary, Path(order["target"]))
    return {"parameters": sum(p.numel() for p in model.parameters())}
