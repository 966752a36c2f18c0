"""The header behind a name: from the store, from a file, or from the first bytes at a source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from miyabi_llm import catalog, gguf, sources
from miyabi_llm.config import Settings
from miyabi_llm.errors import AccessDenied, BadUsage, MiyabiError, ModelMissing, NetworkError
from miyabi_llm.gguf import Header
from miyabi_llm.refs import ModelRef
from miyabi_llm.shards import join, own
from miyabi_llm.sources import peek
from miyabi_llm.store import Store


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


def find_header(ref: ModelRef, store: Store, settings: Settings) -> tuple[Header, str]:
    """The header behind a name and where it was read: from the store, a file, or the first bytes at a source.

    Raises ModelMissing, BadUsage, Corrupt, NetworkError.
    """
    if ref.scheme == "file":
        listing = sources.open("file", settings).list(ref)
        return read_header({f.name: f.path for f in listing.files if f.path is not None}), str(ref)
    known = catalog.load(settings)
    name = known.canonical(ref)
    try:
        return read_header(store.files(store.find(name))), "the store"
    except ModelMissing:
        pass
    failed: list[MiyabiError] = []
    for origin in known.find(ref).sources if ref.scheme == "catalog" else (ref,):
        try:
            if isinstance(origin, ModelRef):
                return _whole(peek.headers(origin, settings), str(origin)), str(origin)
            file = known.find(ref).remote(origin)
            return peek.of_file(peek.in_order(origin.scheme, settings), file), str(origin)
        except (NetworkError, ModelMissing, AccessDenied) as e:
            failed.append(e)
    if len(failed) == 1:
        raise failed[0]
    reasons = "; ".join(e.message for e in failed)
    raise type(failed[0])(f"no source of {ref} gave its header: {reasons}", hint=failed[0].hint)
