"""What vLLM has to be told about a model's folder, read from its small JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miyabi_llm.errors import BadUsage, Unsafe
from miyabi_llm.types import Adapter

LIMIT = 4 << 20  # bytes of a JSON file that are read
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes


@dataclass(frozen=True, slots=True)
class Facts:
    """`context` is what the model was trained for, in tokens; `kv` the bytes of one token in a 16 bit cache.

    None where the folder does not say.
    """

    context: int | None = None
    kv: int | None = None


def folder(files: Mapping[str, Path]) -> Path:
    """The folder in which the files have their names. Raises BadUsage when there are none."""
    for name, path in files.items():
        return path.parents[name.count("/")]
    raise BadUsage("this model has no files", hint="Pull it again.")


def facts(files: Mapping[str, Path]) -> Facts:
    """What config.json says. Raises Unsafe when the model brings code of its own, BadUsage when it is no JSON."""
    for name in ("config.json", "tokenizer_config.json"):
        if name in files and "auto_map" in _read(files[name]):
            raise Unsafe(
                f"{name} names Python code that the model wants to run (auto_map)",
                hint="miyabi-llm never runs code that comes with a model. Take one that vLLM knows by itself.",
            )
    if "config.json" not in files:
        return Facts()
    config = _read(files["config.json"])
    text = config.get("text_config")
    config = text if isinstance(text, dict) else config
    heads, layers = _number(config, "num_attention_heads"), _number(config, "num_hidden_layers")
    kv_heads, width = _number(config, "num_key_value_heads") or heads, _number(config, "hidden_size")
    size = _number(config, "head_dim") or (width // heads if width and heads else None)
    kv = 2 * 2 * layers * kv_heads * size if layers and kv_heads and size else None  # K and V, 2 bytes each
    return Facts(_number(config, "max_position_embeddings"), kv)


def rank(adapters: tuple[Adapter, ...]) -> int:
    """The least --max-lora-rank that holds all adapters. Raises BadUsage when one is no folder in peft's layout."""
    most = 1
    for adapter in adapters:
        config = adapter.path / "adapter_config.json"
        if not config.is_file():
            raise BadUsage(f"{adapter.path} has no adapter_config.json", hint="vLLM takes adapters as peft saves them.")
        most = max(most, _number(_read(config), "r") or 1)
    fitting = [r for r in RANKS if r >= most]
    if not fitting:
        raise BadUsage(f"a LoRA of rank {most}; vLLM takes {RANKS[-1]} at most", hint="Merge it into the model.")
    return fitting[0]


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is not there: vLLM itself says that it is missing."""
    try:
        with path.open("rb") as f:
            body = json.loads(f.read(LIMIT + 1))
    except OSError:
        return {}
    except (ValueError, RecursionError) as e:
        raise BadUsage(f"{path.name} is no JSON: {str(e)[:200]}", hint="Pull the model again.") from None
    return body if isinstance(body, dict) else {}


def _number(body: Mapping[str, Any], key: str) -> int | None:
    value = body.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
