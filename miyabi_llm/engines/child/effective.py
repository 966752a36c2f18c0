"""What a training really runs with, read back from the objects of trl and peft: for the card, and to prove that
every key of a recipe arrived."""

from __future__ import annotations

from typing import Any


def read(trainer: Any) -> dict[str, Any]:
    """Plain values by the name of the recipe's key, from where the trainer will read them."""
    args, model = trainer.args, trainer.model
    found = {
        "train.method": type(trainer).__name__,
        "train.epochs": args.num_train_epochs,
        "train.max_steps": args.max_steps,
        "train.batch_size": args.per_device_train_batch_size,
        "train.grad_accum": args.gradient_accumulation_steps,
        "train.learning_rate": args.learning_rate,
        "train.schedule": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "train.warmup": args.warmup_steps,
        "train.weight_decay": args.weight_decay,
        "train.max_grad_norm": args.max_grad_norm,
        "train.optimizer": str(getattr(args.optim, "value", args.optim)),
        "train.precision": "bf16" if args.bf16 else "fp32",
        "train.seed": [args.seed, args.data_seed],
        "train.gradient_checkpointing": args.gradient_checkpointing,
        "train.packing": getattr(args, "packing", False),
        "train.beta": getattr(args, "beta", None),
        "train.save_steps": args.save_steps,
        "train.eval_steps": args.eval_steps if str(getattr(args.eval_strategy, "value", "")) == "steps" else None,
        "train.tracker": list(args.report_to),
        "data.max_length": args.max_length,
        "processes": args.world_size,
        "distributed": str(getattr(args.distributed_state.distributed_type, "value", "")),
    }
    return found | _adapter(model)


def _adapter(model: Any) -> dict[str, Any]:
    """The adapter, and how the base is held."""
    four = bool(getattr(model, "is_loaded_in_4bit", False))
    config = getattr(model, "peft_config", {}).get("default")
    if config is None:
        return {"lora.method": "full", "lora.nf4": four}
    method = "qlora" if four else "rslora" if config.use_rslora else "dora" if config.use_dora else "lora"
    return {
        "lora.method": method,
        "lora.nf4": four,
        "lora.rank": config.r,
        "lora.alpha": config.lora_alpha,
        "lora.dropout": config.lora_dropout,
        "lora.targets": sorted(config.target_modules),
    }
