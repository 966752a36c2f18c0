"""The base of a recipe as far as it can be seen without bringing anything here: its shape, and its folder if made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miyabi_llm import catalog, gguf
from miyabi_llm.engines import tiny
from miyabi_llm.errors import MiyabiError, ModelMissing
from miyabi_llm.refs import ModelRef
from miyabi_llm.types import Artifact

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.engines.base import Engine
    from miyabi_llm.finetune.load import Loaded
    from miyabi_llm.store import Store


@dataclass(frozen=True, slots=True)
class Peek:
    """`folder` is its HF folder when it is here; `config` its configuration (of a GGUF file as config.json spells it),
    when anything of it is here; `missing` says what will be made or brought, `trouble` what stands in the way."""

    folder: Path | None = None
    config: Mapping[str, Any] | None = None
    missing: str = ""
    trouble: str = ""


def peek(loaded: Loaded, store: Store, settings: Settings, engine: Engine) -> Peek:
    """Look, and touch nothing."""
    base = loaded.recipe.base
    if base.tiny is not None:
        return _tiny(loaded, store, settings, engine)
    model = str(base.model)
    if model.startswith(("/", "~", "./", "../", "file:")) or loaded.file(model).is_dir():
        return _folder(loaded.file(model.removeprefix("file:")))
    try:
        found = store.find(_ref(model, settings))
    except ModelMissing:
        return Peek(missing=f"{model} is not in the store: the run pulls it")
    except MiyabiError as e:
        return Peek(trouble=e.message)
    if found.format == "safetensors":
        return _folder(store.files(found)["config.json"].parent)
    if (copy := _copy(found, store)) is not None:
        return _folder(store.files(copy)["config.json"].parent)
    header = _header(found, store)
    if header is None:
        return Peek(trouble=f"{model} is a {found.format} model: it cannot be trained")
    return Peek(None, _config(header), f"{model} is copied from GGUF to safetensors first")


def _folder(folder: Path) -> Peek:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Peek(trouble=f"{folder} is no model folder: its config.json cannot be read")
    if not any(folder.glob("*.safetensors")):
        return Peek(trouble=f"{folder} has no *.safetensors")
    return Peek(folder, config)


def _tiny(loaded: Loaded, store: Store, settings: Settings, engine: Engine) -> Peek:
    wanted = loaded.recipe.base.tiny
    assert wanted is not None
    try:
        found = store.find(_ref(wanted.from_, settings))
    except ModelMissing:
        return Peek(missing=f"{wanted.from_}, whose tokenizer it takes, is not in the store: the run pulls it")
    files = [f for f in found.files if f.name.lower().endswith(".gguf")]
    if len(files) != 1:
        return Peek(trouble=f"{wanted.from_} is not one GGUF file")
    folder = tiny.place(files[0].sha256, tiny.Tiny(wanted.hidden, wanted.layers, wanted.seed), engine, settings)
    if folder.is_dir():
        return _folder(folder)
    header = _header(found, store)
    vocab = header.vocab_size if header else 0
    heads = max(2, wanted.hidden // 64)
    config = {
        "hidden_size": wanted.hidden, "intermediate_size": 2 * wanted.hidden, "num_hidden_layers": wanted.layers,
        "num_attention_heads": heads, "num_key_value_heads": heads // 2, "vocab_size": vocab,
        "tie_word_embeddings": True,
    }  # fmt: skip
    return Peek(None, config, "the tiny model is made first")


def _ref(text: str, settings: Settings) -> ModelRef:
    ref = ModelRef.parse(text)
    return catalog.load(settings).canonical(ref) if ref.scheme == "catalog" else ref


def _copy(found: Artifact, store: Store) -> Artifact | None:
    """The copy in safetensors that `convert` made of a GGUF model."""
    hashes = {f.sha256 for f in found.files}
    for artifact in store.list():
        made = artifact.card.get("converted")
        if artifact.format == "safetensors" and isinstance(made, Mapping) and made.get("sha256") in hashes:
            return artifact
    return None


def _header(found: Artifact, store: Store) -> gguf.Header | None:
    files = [f for f in found.files if f.name.lower().endswith(".gguf")]
    if found.format != "gguf" or len(files) != 1:
        return None
    path = store.files(found)[files[0].name]
    with path.open("rb") as f:
        return gguf.read(f, path.stat().st_size)


def _config(header: gguf.Header) -> dict[str, Any]:
    """A GGUF header's shape under the names of config.json."""
    return {
        "hidden_size": header.number("{arch}.embedding_length"),
        "intermediate_size": header.number("{arch}.feed_forward_length"),
        "num_hidden_layers": header.number("{arch}.block_count"),
        "num_attention_heads": header.number("{arch}.attention.head_count"),
        "num_key_value_heads": header.number("{arch}.attention.head_count_kv"),
        "vocab_size": header.vocab_size,
        "tie_word_embeddings": not any(t.name == "output.weight" for t in header.tensors),
    }
