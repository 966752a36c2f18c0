"""What commands that take a stored model share: the name, parsed once, and a suggestion when it is not here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from miyabi_llm.errors import MiyabiError, ModelMissing
from miyabi_llm.refs import ModelRef

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.store import Store
    from miyabi_llm.types import Artifact


def parse(text: str, settings: Settings) -> ModelRef:
    """A name as the store spells it: a short name gets its catalog tag. Raises BadUsage."""
    ref = ModelRef.parse(text)
    if ref.scheme != "catalog":
        return ref
    from miyabi_llm import catalog

    return catalog.load(settings).canonical(ref)


def find(text: str, store: Store, settings: Settings, *, damaged: bool = False) -> Artifact:
    """The stored model called `text`; with `damaged` also one whose files are not whole. Raises ModelMissing."""
    ref = parse(text, settings)
    try:
        return store.manifest(ref) if damaged else store.find(ref)
    except ModelMissing as e:
        raise e if e.details.get("damaged") else missing(ref, store, settings) from e


def missing(ref: ModelRef, store: Store, settings: Settings) -> ModelMissing:
    """The error for a model that is not here: how to get it, or the nearest names when no source can have it."""
    here = [str(a.ref) for a in store.list()]
    if ref.scheme == "catalog" and (unknown := _unknown(ref, here, settings)):
        return unknown
    near = _near(str(ref), here)
    hint = f"Did you mean {_either(near)}? " if near else ""
    return ModelMissing(f"{ref} is not in the store", hint=f"{hint}`miyabi-llm pull {ref}` brings it.")


def _unknown(ref: ModelRef, here: list[str], settings: Settings) -> ModelMissing | None:
    """The error for a short name that means nothing, or None when the catalog knows it."""
    from miyabi_llm import catalog

    known = catalog.load(settings)
    try:
        known.find(ref)
    except ModelMissing as e:
        near = _near(str(ref), list(dict.fromkeys([*here, *(str(entry.ref) for entry in known.entries)])))
        hint = f"Did you mean {_either(near)}?" if near else e.hint
        message = f"{ref} is neither in the store nor in the catalog"
        return ModelMissing(message, hint=f"{hint} `miyabi-llm list` shows what is here.", unknown=str(ref))
    return None


def _either(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if names[:-1] else names)


def complete(incomplete: str) -> list[str]:
    """The stored names that begin with what was typed, for the shell; a store that cannot be read has none."""
    from miyabi_llm import config
    from miyabi_llm.store import Store

    try:
        names = [str(a.ref) for a in Store(config.load().store).list()]
    except MiyabiError:
        return []
    return [n for n in names if n.startswith(incomplete)]


def _near(wanted: str, names: list[str]) -> list[str]:
    import difflib

    lower = {n.lower(): n for n in names}
    close = difflib.get_close_matches(wanted.lower(), lower, n=3, cutoff=0.6)
    return [lower[c] for c in close] or [n for n in names if wanted.lower() in n.lower()][:3]
