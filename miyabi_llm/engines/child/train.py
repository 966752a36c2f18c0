"""The job `train`: from normalized rows to an adapter, with checkpoints that survive anything."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any


def run(order: dict[str, Any], say: Any) -> dict[str, Any]:
    """Train as `order` says and publish the adapter (or, trained in full, the model) at `order["adapter"]`.

    The order: base (HF folder), rows and eval_rows (files of the data stage), max_length, precision (fp32, bf16),
    lora and train (those sections of the recipe), checkpoints and adapter (folders), resume (a checkpoint), identity
    (what a checkpoint must have been made of), name, extra (a folder of more packages). Raises common.Failed.
    """
    if order.get("extra"):
        sys.path.append(order["extra"])
    if order.get("engine") == "unsloth":
        importlib.import_module("unsloth")  # before transformers and trl: it changes them
    import transformers

    from miyabi_llm.engines.child import common, compact, effective, proof, watch

    root = Path(order["checkpoints"])
    staging = root / ".staging"
    if common.main_process():
        root.mkdir(parents=True, exist_ok=True)
        _alone(root / ".lock")
        shutil.rmtree(staging, ignore_errors=True)
    say("phase", "load", order["name"])
    train = order["train"]
    transformers.set_seed(train["seed"])
    patience = train["early_stopping"]
    seen = watch.Watch(
        say,
        root,
        train["keep_checkpoints"],
        order["identity"],
        (patience["patience"], patience["min_delta"]) if patience else None,
    )
    only_trained = not order.get("plain") and compact.install()
    trainer = build(order, str(staging), [seen])
    used = effective.read(trainer) | {"train.keep_checkpoints": train["keep_checkpoints"]}
    used["scores_trained_only"] = only_trained
    facts = proof.examine(trainer, order["max_length"]) if train["method"] == "sft" else {}
    if order.get("processes", 1) == 1:
        signal.signal(signal.SIGTERM, lambda *_: seen.stop())
    result = trainer.train(resume_from_checkpoint=order.get("resume"))
    if seen.stopped:
        raise common.Failed("failed", f"stopped at step {trainer.state.global_step}, which is kept", common.GO_ON)
    figures = seen.figures
    say("phase", "save", "adapter")
    files = save(trainer, order, staging)
    return {
        "steps": int(trainer.state.global_step),
        "first_step": seen.began,
        "loss": float(result.training_loss),
        "curve": seen.curve,
        "evals": [row for row in trainer.state.log_history if "eval_loss" in row],
        "files": files,
        "kind": "model" if order["lora"]["method"] == "full" else "adapter",
        "trained": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "memory": max(seen.peak, watch.memory()),
        "rows": facts,
        "effective": used,
        **figures,
    }


def build(order: dict[str, Any], output: str, callbacks: list[Any]) -> Any:
    """The trainer of the order's method, ready to train."""
    from miyabi_llm.engines.child import common, settings

    method = order["train"]["method"]
    _, trainer = settings.classes(method)
    args = settings.arguments(order, output)
    tokenizer = common.tokenizer(order["base"])
    held_out = settings.rows(order["eval_rows"], method) if args.eval_strategy != "no" else None
    if order.get("engine") == "unsloth":
        from miyabi_llm.engines.child import unsloth_model

        model, config = unsloth_model.load(order), None
    else:
        model, config = settings.base(order), settings.adapter(order)
    return trainer(
        model=model,
        args=args,
        train_dataset=settings.rows(order["rows"], method),
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=config,
        callbacks=callbacks,
    )


def save(trainer: Any, order: dict[str, Any], staging: Path) -> dict[str, str]:
    """Publish what was trained; the hash of each file. All processes must come here: the weights may be shared out."""
    from miyabi_llm.engines import checkpoints
    from miyabi_llm.engines.child import common, watch

    made = staging / "made"
    trainer.save_model(str(made))
    trainer.accelerator.wait_for_everyone()
    if not common.main_process():
        return {}
    watch.clean(made)
    _nameless(made / "adapter_config.json", order["name"])
    target = Path(order["adapter"])
    files = checkpoints.publish(made, target, identity=order["identity"], steps=trainer.state.global_step)
    shutil.rmtree(staging, ignore_errors=True)
    return files


def _alone(path: Path) -> None:
    """Wait for a trainer whose parent was killed: it dies within seconds. The lock ends with this process."""
    import fcntl

    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)


def _nameless(path: Path, name: str) -> None:
    """Write the base's name, not its path on this machine, so that the same training gives the same bytes."""
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = name
    for key in ("target_modules", "exclude_modules"):  # sets in peft: their order is another in every process
        if isinstance(config.get(key), list):
            config[key].sort()
    with path.open("w", encoding="utf-8") as f:
        json.dump(config, f, indent=2, sort_keys=True)
        f.flush()
        os.fsync(f.fileno())
