"""The job `describe`: the versions of this environment and what it can compute on."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

NAMES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers", "safetensors")


def run(order: dict[str, Any], say: Any) -> dict[str, Any]:
    """Versions by name; with `order["devices"]` torch is imported and asked for its devices."""
    found = {}
    for name in (*NAMES, "unsloth"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    told: dict[str, Any] = {"versions": found, "python": platform.python_version()}
    if order.get("devices"):
        import torch

        from miyabi_llm.engines.child import common

        told |= {"device": common.device(), "threads": torch.get_num_threads()}
        if torch.cuda.is_available():
            told["cards"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return told
