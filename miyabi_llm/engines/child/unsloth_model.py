"""Unsloth's two calls: load a base, put an adapter on it. Not run where this was built; held against its source.

The rest (trainer, arguments, rows, checkpoints) is that of `train`, so that both engines keep one contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What `targets: all-linear` means there: unsloth's kernels know these layers by name.
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def load(order: Mapping[str, Any]) -> Any:
    """The model of an order with its adapter, by unsloth."""
    import unsloth

    model, _ = unsloth.FastLanguageModel.from_pretrained(**base_words(order))
    if order["lora"]["method"] == "full":
        return model
    return unsloth.FastLanguageModel.get_peft_model(model, **adapter_words(order))


def base_words(order: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `from_pretrained`. Pure but for torch's types."""
    from miyabi_llm.engines.child import common

    return {
        "model_name": order["base"],
        "max_seq_length": order["max_length"],
        "dtype": common.dtype(order["precision"]),
        "load_in_4bit": order["lora"]["method"] == "qlora",
        "full_finetuning": order["lora"]["method"] == "full",
        "trust_remote_code": False,
        "random_state": order["train"]["seed"],
    }


def adapter_words(order: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `get_peft_model`. Pure."""
    lora, train = order["lora"], order["train"]
    targets = LINEAR if lora["targets"] == "all-linear" else tuple(lora["targets"])
    return {
        "r": lora["rank"],
        "lora_alpha": lora["alpha"],
        "lora_dropout": lora["dropout"],
        "target_modules": list(targets),
        "bias": "none",
        "use_gradient_checkpointing": "unsloth" if train["gradient_checkpointing"] else False,
        "random_state": train["seed"],
        "use_rslora": lora["method"] == "rslora",
        "use_dora": lora["method"] == "dora",
    }
