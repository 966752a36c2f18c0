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
        raise e if e.details.get("damaged") else missing(ref, store) from e


def missing(ref: ModelRef, store: Store) -> ModelMissing:
    """The error for a model that is not here: the nearest names that are, else how to get it."""
    near = _near(str(ref), [str(a.ref) for a in store.list()])
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return ModelMissing(f"{ref} is not in the store", hint=f"{hint}`miyabi-llm pull {ref}` brings it.")


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
