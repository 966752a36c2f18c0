"""From an order to the objects of trl and peft: every key of a recipe that concerns training arrives here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw-8bit": "adamw_bnb_8bit",
    "paged-adamw-8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
}
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
PAIRS = ("prompt", "chosen", "rejected")
ROWS = {"sft": ("prompt", "completion"), "dpo": PAIRS, "orpo": PAIRS, "kto": ("prompt", "completion", "label")}


def classes(method: str) -> tuple[Any, Any]:
    """The configuration and the trainer of a method. ORPO is among trl's experimental ones."""
    if method == "sft":
        from trl import SFTConfig, SFTTrainer

        return SFTConfig, SFTTrainer
    if method == "dpo":
        from trl import DPOConfig, DPOTrainer

        return DPOConfig, DPOTrainer
    if method == "kto":
        from trl import KTOConfig, KTOTrainer

        return KTOConfig, KTOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return ORPOConfig, ORPOTrainer


def arguments(order: Mapping[str, Any], output: str) -> Any:
    """The trainer's configuration. Raises TypeError when trl no longer knows a word we use."""
    import torch

    train = order["train"]
    config, _ = classes(train["method"])
    evaluates = bool(order.get("eval_rows")) and train["eval_steps"] is not None
    words: dict[str, Any] = {
        "output_dir": output,
        "num_train_epochs": float(train["epochs"]),
        "max_steps": train["max_steps"] or -1,
        "per_device_train_batch_size": train["batch_size"],
        "per_device_eval_batch_size": train["batch_size"],
        "gradient_accumulation_steps": train["grad_accum"],
        "learning_rate": train["learning_rate"],
        "lr_scheduler_type": SCHEDULES[train["schedule"]],
        "warmup_steps": train["warmup"],
        "weight_decay": train["weight_decay"],
        "max_grad_norm": train["max_grad_norm"],
        "optim": OPTIMIZERS[train["optimizer"]],
        "bf16": order["precision"] == "bf16",
        "fp16": False,
        "seed": train["seed"],
        "data_seed": train["seed"],
        "gradient_checkpointing": train["gradient_checkpointing"],
        "save_strategy": "steps",
        "save_steps": train["save_steps"],
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": train["eval_steps"] if evaluates else None,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a loss that is no number must be seen
        "report_to": "none" if train["tracker"] == "none" else train["tracker"],
        "run_name": order.get("name"),
        "disable_tqdm": True,
        "remove_unused_columns": True,
        "use_cpu": not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "push_to_hub": False,
        # Nothing is cut: rows were measured before, and packing is told how long a sequence may be.
        "max_length": order["max_length"] if train["packing"] else None,
        "packing": train["packing"],
        "beta": train["beta"],
    }
    if train["tracker"] == "trackio":
        words["project"] = order.get("name") or "miyabi-llm"
    known = {f.name for f in dataclasses.fields(config)}
    only = {"packing": "sft", "beta": "dpo kto orpo"}  # words that belong to some methods
    for word, methods in only.items():
        if train["method"] not in methods.split():
            words.pop(word)
    if unknown := set(words) - known:
        raise TypeError(f"{config.__name__} has no {', '.join(sorted(unknown))}")
    return config(**words)


def adapter(order: Mapping[str, Any]) -> Any:
    """The adapter's configuration, or None when every weight is trained."""
    lora = order["lora"]
    if lora["method"] == "full":
        return None
    from peft import LoraConfig

    targets = lora["targets"]
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=targets if isinstance(targets, str) else sorted(targets),
        use_rslora=lora["method"] == "rslora",
        use_dora=lora["method"] == "dora",
        bias="none",
    )


def base(order: Mapping[str, Any]) -> Any:
    """The model to train: 4 bits for qlora; all weights in float32 when all are trained (bf16 is then computed in)."""
    from miyabi_llm.engines.child import common

    full = order["lora"]["method"] == "full"
    model = common.model(
        order["base"],
        "fp32" if full else order["precision"],
        nf4=order["lora"]["method"] == "qlora",
        compute=order["precision"],
        spread=order.get("processes", 1) > 1,
        shared=order["train"]["launch"]["strategy"] in ("fsdp", "zero3"),
    )
    model.config.use_cache = False  # with a cache, rows that share a sequence would see each other
    return model


def rows(path: str, method: str) -> Any:
    """The rows as a dataset, with the columns the method reads and nothing else."""
    import json
    from pathlib import Path

    from datasets import Dataset

    wanted = ROWS[method]
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    return Dataset.from_list([{k: row[k] for k in wanted} for row in map(json.loads, filter(None, lines))])
