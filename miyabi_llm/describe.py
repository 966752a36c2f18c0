"""What a model is, from its own header and from its card; nothing of it is loaded or run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miyabi_llm import gguf, safetensors
from miyabi_llm.errors import BadUsage, Corrupt, Missing, ModelMissing
from miyabi_llm.shards import join, own
from miyabi_llm.types import Artifact, Format, plain

MAX_CONFIG = 4 << 20  # bytes of a config.json or tokenizer_config.json


@dataclass(frozen=True, slots=True)
class Tensors:
    """Tensors of one type: how many, and their bytes."""

    type: str
    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Description:
    """A model's own words. `parameters` counts numbers, `context_length` tokens, `size` bytes of all files.

    `keys` has what the header (GGUF) or the configuration (safetensors) says, long arrays cut to their beginning.
    """

    name: str
    format: Format
    architecture: str | None
    parameters: int
    context_length: int | None
    layers: int | None
    quantization: str | None
    tensors: tuple[Tensors, ...]
    chat_template: bool
    license: str | None
    size: int
    artifact: Artifact | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = field(default=None, repr=False)


def describe(files: Mapping[str, Path], name: str, artifact: Artifact | None = None) -> Description:
    """Read the headers of a model's `files` (file name -> path). Raises Corrupt, ModelMissing when none is a model."""
    ggufs = {n: p for n, p in files.items() if n.endswith(".gguf")}
    weights = {n: p for n, p in files.items() if n.endswith(".safetensors")}
    size = sum(p.stat().st_size for p in files.values())
    if ggufs:
        return _gguf(ggufs, name, size, artifact)
    if weights:
        return _safetensors(files, weights, (name, size), artifact)
    raise ModelMissing(f"{name} has no .gguf or .safetensors file", hint="Name a model file, or a folder with one.")


def lookup(found: Description, key: str) -> Any:
    """One fact: a field of the description, a key of the header, or `card.KEY`. Raises BadUsage with a suggestion."""
    facts = {k: v for k, v in plain(found).items() if k not in ("keys", "artifact", "template")}
    card: Any = plain(found.artifact.card) if found.artifact else {}
    if key == "card" or key.startswith("card."):
        for part in key.split(".")[1:]:
            if not isinstance(card, dict) or part not in card:
                raise BadUsage(f"the card of {found.name} has no {key!r}", hint=f"`miyabi-llm show {found.name}`")
            card = card[part]
        return card
    known = {**found.keys, **facts}
    if key not in known:
        import difflib

        near = difflib.get_close_matches(key, list(known), n=3) or sorted(k for k in known if key in k)[:3]
        hint = f"Did you mean {' or '.join(near)}?" if near else "All keys: `miyabi-llm show REF --json`."
        raise BadUsage(f"{found.name} does not say {key!r}", hint=hint)
    return known[key]


def template(found: Description) -> str:
    """The chat template's text. Raises Missing for a base model."""
    if found.template is None:
        raise Missing(
            f"{found.name} has no chat template", hint="It is a base model: it continues text, it does not chat."
        )
    return found.template


def local(path: Path) -> dict[str, Path]:
    """The model files at `path`: a file, or a folder's own. Raises ModelMissing, Corrupt on an unknown suffix."""
    if path.is_dir():
        found = {p.name: p for p in sorted(path.iterdir()) if p.is_file() and not p.name.startswith(".")}
    elif path.is_file():
        found = {path.name: path}
        if path.suffix not in (".gguf", ".safetensors"):
            raise Corrupt(f"{path} is neither a .gguf nor a .safetensors file")
    else:
        raise ModelMissing(f"{path}: no such file or folder", hint="Check the path.")
    return found


def _gguf(files: Mapping[str, Path], name: str, size: int, artifact: Artifact | None) -> Description:
    headers = {}
    for file, path in files.items():
        with path.open("rb") as f:
            headers[file] = gguf.read(f, path.stat().st_size)
    headers = own(headers) or headers
    # one shard shown by its path speaks for itself; a model must have all of them
    header = next(iter(headers.values())) if len(headers) == 1 and artifact is None else join(headers)
    return Description(
        name=name,
        format="gguf",
        architecture=header.architecture or None,
        parameters=header.parameters,
        context_length=header.context_length,
        layers=header.layers,
        quantization=header.file_type,
        tensors=_types(header.histogram),
        chat_template=header.chat_template is not None,
        license=(artifact.license if artifact else None) or header.text("general.license"),
        size=size,
        artifact=artifact,
        keys={k: _shown(v) for k, v in header.kv.items()},
        template=header.chat_template,
    )


def _safetensors(
    files: Mapping[str, Path], weights: Mapping[str, Path], known: tuple[str, int], artifact: Artifact | None
) -> Description:
    name, size = known
    types, parameters, keys = _weights(weights.values())
    config = _config(files, "config.json")
    architectures = config.get("architectures")
    chat = _config(files, "tokenizer_config.json").get("chat_template")
    if "chat_template.jinja" in files and chat is None:
        chat = files["chat_template.jinja"].read_text(encoding="utf-8", errors="replace")[:MAX_CONFIG]
    return Description(
        name=name,
        format="adapter" if "adapter_config.json" in files else "safetensors",
        architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else None,
        parameters=parameters,
        context_length=_int(config.get("max_position_embeddings")),
        layers=_int(config.get("num_hidden_layers")),
        quantization=max(types, key=lambda k: types[k][1], default=None),
        tensors=_types(dict(sorted(types.items(), key=lambda item: -item[1][1]))),
        chat_template=isinstance(chat, str),
        license=artifact.license if artifact else None,
        size=size,
        artifact=artifact,
        keys=keys | config,
        template=chat if isinstance(chat, str) else None,
    )


def _weights(paths: Iterable[Path]) -> tuple[dict[str, tuple[int, int]], int, dict[str, Any]]:
    """(number format -> (tensors, bytes), numbers in all, metadata) of all shards."""
    types: dict[str, tuple[int, int]] = {}
    parameters, metadata = 0, dict[str, Any]()
    for path in paths:
        with path.open("rb") as f:
            header = safetensors.read(f, path.stat().st_size)
        metadata |= header.metadata
        parameters += sum(math.prod(t.shape) for t in header.tensors)
        for kind, (n, size) in header.histogram.items():
            before = types.get(kind, (0, 0))
            types[kind] = (before[0] + n, before[1] + size)
    return types, parameters, metadata


def _config(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    if name not in files or files[name].stat().st_size > MAX_CONFIG:
        return {}
    try:
        value = json.loads(files[name].read_bytes())
    except (ValueError, RecursionError) as e:
        raise Corrupt(f"{name} cannot be read: {e}", hint="Pull the model again.") from e
    return value if isinstance(value, dict) else {}


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _types(histogram: Mapping[str, tuple[int, int]]) -> tuple[Tensors, ...]:
    return tuple(Tensors(kind, n, size) for kind, (n, size) in histogram.items())


def _shown(value: gguf.Value) -> Any:
    """A header's value as JSON holds it; of a long array, how long it is and how it begins."""
    if not isinstance(value, gguf.Array):
        return value
    return list(value.items) if value.whole else {"length": value.length, "first": list(value.items)}
