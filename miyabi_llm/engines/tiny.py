"""A tiny base model, made once: random weights from a seed with the tokenizer of a stored GGUF model."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from miyabi_llm import gguf
from miyabi_llm.engines.base import Engine, Job
from miyabi_llm.tools import hf_copy
from miyabi_llm.tools.alone import alone
from miyabi_llm.types import Event, OnEvent, silent

if TYPE_CHECKING:
    from miyabi_llm.config import Settings

VERSION = 3  # changes when the same numbers would give another model


@dataclass(frozen=True, slots=True)
class Tiny:
    """Its size: width, layers; and the seed of its weights."""

    hidden: int = 128
    layers: int = 2
    seed: int = 1


def make(source: Path, sha256: str, tiny: Tiny, engine: Engine, settings: Settings, on_event: OnEvent = silent) -> Path:
    """The folder of the tiny model with the tokenizer of the GGUF file `source` (whose hash is `sha256`).

    It is kept in the cache and appears whole or not at all. Raises BadUsage, Corrupt and what the child raises.
    """
    folder = place(sha256, tiny, engine, settings)
    root = folder.parent
    if folder.is_dir():
        return folder
    with alone(root, ".lock", on_event):
        if folder.is_dir():
            return folder
        on_event(Event("phase", "base", f"a tiny model: {tiny.layers} layers of {tiny.hidden}, seed {tiny.seed}"))
        work = root / f".{folder.name}.part"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        with source.open("rb") as f:
            header = gguf.read(f, source.stat().st_size, whole_arrays=True)
        vocabulary = work / "vocabulary.json"
        vocabulary.write_text(json.dumps(hf_copy.vocabulary(header)), encoding="utf-8")
        # transformers looks for `NAME.gguf`: a blob of the store has a name without an end
        named = work / "source.gguf"
        named.symlink_to(source.absolute())
        order = {"source": str(named), "vocabulary": str(vocabulary), "target": str(work / "model"), **asdict(tiny)}
        engine.run(Job("tiny", order), work, settings, on_event)
        (work / "model").rename(folder)
        shutil.rmtree(work, ignore_errors=True)
    return folder


def place(sha256: str, tiny: Tiny, engine: Engine, settings: Settings) -> Path:
    """Where that model lies, or will lie. Pure."""
    plan = {"version": VERSION, "sha256": sha256, **asdict(tiny), "packages": _packages(engine)}
    key = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:12]
    return settings.cache / "tiny" / f"tiny-qwen-{key}"


def _packages(engine: Engine) -> Mapping[str, str]:
    """The pins that decide how random weights come out and are written."""
    from miyabi_llm.engines import trl, unsloth

    pins = {"trl": trl.PINS, "unsloth": unsloth.PINS}[engine.name].versions
    return {name: pins[name] for name in ("torch", "transformers") if name in pins}
