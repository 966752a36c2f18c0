"""A LoRA adapter as peft writes it: its files, what llama.cpp would get wrong of it, and what it cannot hold.

llama.cpp's converter writes one alpha for the whole adapter and forgets `use_rslora` and `alpha_pattern` without a
word; `scaling` says what has to be put right in a copy before it reads it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miyabi_llm import safetensors
from miyabi_llm.errors import BadUsage, Corrupt, Missing

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGE_FIRST = "Merge it into the model first (peft: merge_and_unload), then quantize the result."
SAME = 1e-5  # share of probability that moved, below which nothing did
NEAR = 0.01  # and what rounding the merged weights to 16 bits may move
PROMPTS = (
    *("The capital of Japan is", "def add(a, b):\n    return", "Q: What is 2 + 2?\nA:", "日本の首都は"),
    *("Once upon a time", '{"name": "', "SELECT * FROM"),
)
_PARTS = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+?)\.(?P<part>lora_(?:A|B)\.weight|lora_embedding_(?:A|B))$")


@dataclass(frozen=True, slots=True)
class Scaling:
    """How an adapter has to be written for llama.cpp: its `alpha`, and by what tensors are multiplied besides."""

    alpha: float
    factors: Mapping[str, float]
    note: str = ""


def scaling(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> Scaling:
    """The correction for an adapter with this configuration and these tensors (name -> shape). Pure.

    peft scales a module by alpha / r, with rsLoRA by alpha / sqrt(r), each alpha by `alpha_pattern`; llama.cpp scales
    by one alpha / r. Only for adapters that `refuse` and `merge_first` have nothing against.
    """
    alpha = float(config["lora_alpha"])
    patterns = config.get("alpha_pattern") or {}
    factors: dict[str, float] = {}
    for name, shape in tensors.items():
        m = _PARTS.match(name)
        assert m is not None  # refuse() has seen to it
        if "_B" not in m["part"]:
            continue
        # embedding_B is (out, r), like B
        own = next((float(v) for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", m["module"])), alpha)
        factors[name] = own / alpha * (math.sqrt(shape[-1]) if config.get("use_rslora") else 1.0)
    kinds = set(factors.values())
    why = [word for word, there in (("rsLoRA", config.get("use_rslora")), ("alpha_pattern", patterns)) if there]
    if kinds <= {1.0}:
        return Scaling(alpha, {})
    note = f"{' and '.join(why)}: the scale that llama.cpp's converter leaves out was put in"
    if len(kinds) == 1:
        return Scaling(alpha * kinds.pop(), {}, note)
    return Scaling(alpha, {k: v for k, v in factors.items() if v != 1.0}, note)


def merge_first(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> str | None:
    """What the adapter has that no LoRA file of llama.cpp can hold, and peft can merge; None when nothing. Pure."""
    if config.get("use_dora") or any("lora_magnitude_vector" in name for name in tensors):
        return "is DoRA"
    if whole := config.get("modules_to_save"):
        return f"holds whole modules ({', '.join(map(str, whole))})"
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        return "trains biases"
    return None


def refuse(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> None:
    """Raise BadUsage for an adapter that is not LoRA, or changes tokens or layers, saying why."""
    if config.get("peft_type") != "LORA":
        raise BadUsage(f"the adapter is {config.get('peft_type')}, not LoRA", hint=MERGE_FIRST)
    if config.get("trainable_token_indices") or config.get("layer_replication"):
        raise BadUsage("the adapter changes tokens or layers", hint=MERGE_FIRST)
    odd = [name for name in tensors if not _PARTS.match(name)]
    if odd and merge_first(config, tensors) is None:
        raise BadUsage(f"{odd[0]} of the adapter is no part of a LoRA", hint=MERGE_FIRST)
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not alpha or not math.isfinite(alpha):
        raise BadUsage(f"the adapter's lora_alpha is {alpha!r}", hint="It has to be a number other than 0.")


def check(lora: Path) -> None:
    """Raise what `merged` would raise for the adapter itself, before a base is converted for it."""
    files(lora)
    if lora.is_dir():
        refuse(*read(lora))


def files(lora: Path) -> list[Path]:
    """The files of an adapter: a GGUF, or the two of peft's folder. Raises Missing."""
    if lora.is_file() and lora.suffix == ".gguf":
        return [lora]
    files = [lora / CONFIG, lora / WEIGHTS]
    for path in files:
        if not path.is_file():
            raise Missing(f"{path} is not there", hint="--lora takes peft's folder in safetensors, or a GGUF adapter.")
    return files


def read(lora: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Configuration and tensors (name -> shape) of an adapter in peft's layout. Raises Corrupt."""
    try:
        config = json.loads((lora / CONFIG).read_bytes())
    except ValueError as e:
        raise Corrupt(f"{lora / CONFIG} is no JSON: {str(e)[:120]}") from None
    with (lora / WEIGHTS).open("rb") as f:
        header = safetensors.read(f, (lora / WEIGHTS).stat().st_size)
    return (config if isinstance(config, dict) else {}), {t.name: t.shape for t in header.tensors}


def moved(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """How much probability lies elsewhere, 0 to 1, of two sets of log-probabilities by token. Pure."""
    return 0.5 * sum(abs(math.exp(a.get(k, -math.inf)) - math.exp(b.get(k, -math.inf))) for k in {*a, *b})
