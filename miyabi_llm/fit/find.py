"""The header behind a name: from the store, from a file, or from the first bytes at a source."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from miyabi_llm import catalog, gguf, safetensors, sources
from miyabi_llm.config import Settings
from miyabi_llm.errors import AccessDenied, BadUsage, Corrupt, MiyabiError, ModelMissing, NetworkError
from miyabi_llm.fit.values import Found
from miyabi_llm.gguf import Header
from miyabi_llm.paged import Weights
from miyabi_llm.refs import ModelRef
from miyabi_llm.shards import join, own
from miyabi_llm.sources import peek
from miyabi_llm.sources.hf import HfSource
from miyabi_llm.store import Store
from miyabi_llm.types import Listing

_BESIDE: Final = ("config.json", "tokenizer_config.json", "chat_template.jinja")
_CONFIG_MOST: Final = 4 << 20  # bytes of a small file that are read


def read_header(paths: Mapping[str, Path]) -> Header:
    """The header of a model's GGUF file on disk, or of all its shards as one.

    Raises BadUsage without one, Corrupt, ModelMissing when a file is gone.
    """
    headers = {}
    for name in sorted(n for n in paths if n.lower().endswith(".gguf")):
        try:
            with paths[name].open("rb") as f:
                headers[name] = gguf.read(f, paths[name].stat().st_size)
        except FileNotFoundError:
            raise ModelMissing(f"{paths[name]} is not there", hint="Pull the model again.") from None
    return _whole(headers, "this model")


def _whole(headers: Mapping[str, Header], what: str) -> Header:
    if not (mine := own(headers)):
        raise BadUsage(f"no GGUF file in {what}", hint="Memory is estimated from GGUF headers only.")
    return join(mine)


def read_weights(paths: Mapping[str, Path]) -> Weights:
    """The weights of a model's safetensors files on disk. Raises BadUsage without any, Corrupt."""
    names = sorted(n for n in paths if n.endswith(".safetensors"))
    headers = []
    for name in names:
        with paths[name].open("rb") as file:
            headers.append(safetensors.read(file, paths[name].stat().st_size))
    small = {n: paths[n].read_bytes()[:_CONFIG_MOST] for n in _BESIDE if n in paths}
    return _weights(headers, small)


def find_header(ref: ModelRef, store: Store, settings: Settings) -> tuple[Header, str]:
    """The GGUF header behind a name and where it was read: from the store, a file, or the first bytes at a source.

    Raises ModelMissing, BadUsage (no GGUF), Corrupt, NetworkError.
    """
    found = find(ref, store, settings)
    if found.header is None:
        raise BadUsage(f"{ref} has no GGUF file", hint="`--backend vllm` serves models in the hub's layout.")
    return found.header, found.place


def find(ref: ModelRef, store: Store, settings: Settings) -> Found:
    """What is known of a model before it is loaded: from the store, from files, or from its source.

    Of a hub repository one header is fetched: of the quantization named, else of Q4_K_M, else of the smallest file.
    Raises ModelMissing, BadUsage, Corrupt, NetworkError.
    """
    if ref.scheme == "file":
        listing = sources.open("file", settings).list(ref)
        return _local({f.name: f.path for f in listing.files if f.path is not None}, str(ref))
    known = catalog.load(settings)
    with contextlib.suppress(ModelMissing):
        return _local(store.files(store.find(known.canonical(ref))), "the store")
    if ref.scheme == "hf":
        return _in_repository(ref, settings)
    failed: list[MiyabiError] = []
    for origin in known.find(ref).sources if ref.scheme == "catalog" else (ref,):
        try:
            if isinstance(origin, ModelRef):
                return Found(str(origin), _whole(peek.headers(origin, settings), str(origin)))
            file = known.find(ref).remote(origin)
            return Found(str(origin), peek.of_file(peek.in_order(origin.scheme, settings), file))
        except (NetworkError, ModelMissing, AccessDenied) as e:
            failed.append(e)
    if len(failed) == 1:
        raise failed[0]
    reasons = "; ".join(e.message for e in failed)
    raise type(failed[0])(f"no source of {ref} gave its header: {reasons}", hint=failed[0].hint)


def _local(paths: Mapping[str, Path], place: str) -> Found:
    if any(name.lower().endswith(".gguf") for name in paths):
        header = read_header(paths)
        return Found(place, header, size=header.size)
    return Found(place, weights=read_weights(paths))


def _in_repository(ref: ModelRef, settings: Settings) -> Found:
    """One header of a hub repository, and the sizes of all its models."""
    source = HfSource(replace(settings, connections=1))
    listed = () if ref.file else source.variants(ref)
    if not listed:
        return _listed(source, source.list(ref), str(ref))
    quants = {v.quant: (v, files) for v, files in listed}
    smallest = min(listed, key=lambda row: sum(f.size or 0 for f in row[0].files))
    wanted = ref.quant.upper() if ref.quant else "Q4_K_M"
    if ref.quant and wanted not in quants:
        return _listed(source, source.list(ref), str(ref))  # finds it, or says what there is
    chosen, files = quants.get(wanted, smallest)
    header = _whole({f.name.rpartition("/")[2]: peek.of_file(source, f) for f in files}, str(ref))
    size = sum(f.size or 0 for f in files)
    return Found(f"{ref.name}, {chosen.quant}", header, size=size, variants=tuple(v for v, _ in listed))


def _listed(source: HfSource, listing: Listing, place: str) -> Found:
    models = [f for f in listing.files if peek.is_model(f.name)]
    if models:
        headers = {f.name.rpartition("/")[2]: peek.of_file(source, f) for f in models}
        header = _whole(headers, place)
        return Found(place, header, size=header.size)
    tensors = [f for f in listing.files if f.name.endswith(".safetensors")]
    read = [peek.beginning(source, f, safetensors.read) for f in tensors]
    small = {f.name: peek.whole(source, f, _CONFIG_MOST) for f in listing.files if f.name in _BESIDE}
    return Found(place, weights=_weights(read, small))


def _weights(headers: Sequence[safetensors.Header], small: Mapping[str, bytes]) -> Weights:
    if not headers or "config.json" not in small:
        what = "no GGUF file, and no safetensors file" if not headers else "no config.json"
        raise BadUsage(f"{what} in this model", hint="Memory is estimated from GGUF or safetensors headers.")
    types: dict[str, int] = {}
    numbers = 0
    for header in headers:
        for t in header.tensors:
            types[t.dtype] = types.get(t.dtype, 0) + t.nbytes
            numbers += t.nbytes * 8 // safetensors.BITS[t.dtype]
    config = _json(small["config.json"], "config.json")
    named = "chat_template" in _json(small.get("tokenizer_config.json", b"{}"), "tokenizer_config.json")
    types = dict(sorted(types.items(), key=lambda item: -item[1]))
    return Weights(config, sum(types.values()), numbers, types, named or "chat_template.jinja" in small)


def _json(data: bytes, name: str) -> Mapping[str, object]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise Corrupt(f"{name} is not JSON", hint="Pull the model again.") from None
    return body if isinstance(body, dict) else {}
