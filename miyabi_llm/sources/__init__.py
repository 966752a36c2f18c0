"""Where models come from: one table from scheme to source; third parties add to it by entry points."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast

from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage
from miyabi_llm.sources.base import Part, Source

GROUP = "miyabi_llm.sources.v1"
Factory = Callable[[Settings], Source]

TABLE: dict[str, str] = {
    "hf": "miyabi_llm.sources.hf:HfSource",
    "ollama": "miyabi_llm.sources.ollama:OllamaSource",
    "https": "miyabi_llm.sources.http:HttpSource",
    "file": "miyabi_llm.sources.file:FileSource",
    "pypi": "miyabi_llm.sources.pypi:PypiSource",
}

__all__ = ["GROUP", "TABLE", "Factory", "Part", "Source", "open", "schemes"]


def schemes() -> tuple[str, ...]:
    """Every scheme that can be opened: the built-in ones first, then those of installed extensions."""
    return (*TABLE, *sorted(set(_extensions()) - set(TABLE)))


def open(scheme: str, settings: Settings) -> Source:
    """The source for `scheme`. Raises BadUsage for a scheme nobody provides. Built-in schemes cannot be replaced."""
    target = TABLE.get(scheme) or _extensions().get(scheme)
    if target is None:
        raise BadUsage(f"no source for {scheme!r}", hint=f"Known sources: {', '.join(schemes())}.")
    module, _, name = target.partition(":")
    return cast(Factory, getattr(importlib.import_module(module), name))(settings)


def _extensions() -> dict[str, str]:
    from importlib.metadata import entry_points

    return {e.name: e.value for e in entry_points(group=GROUP)}
