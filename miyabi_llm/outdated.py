"""Compare models that are here with what their sources have now; asks for names and hashes, downloads nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from miyabi_llm import catalog, sources
from miyabi_llm.catalog import Catalog
from miyabi_llm.config import Settings
from miyabi_llm.errors import MiyabiError, ModelMissing, NetworkError
from miyabi_llm.refs import ModelRef
from miyabi_llm.sources.base import Source
from miyabi_llm.types import Artifact, Event, Listing, OnEvent, silent

State = Literal["current", "outdated", "pinned", "local", "unknown"]
OpenSource = Callable[[str, Settings], Source]

_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a model here stands to its source: `here` and `there` are revisions or hashes, as far as they are known.

    `unknown` means that the source could not be asked, or publishes nothing to compare with; `reason` says which.
    """

    ref: ModelRef
    state: State
    reason: str
    here: str | None = None
    there: str | None = None
    failed: bool = False


def outdated(
    artifacts: Iterable[Artifact],
    settings: Settings,
    on_event: OnEvent = silent,
    *,
    open_source: OpenSource = sources.open,
) -> list[Standing]:
    """One standing per artifact, in order. A source that fails makes its model `unknown` and `failed`.

    Raises NetworkError when the user said offline and a source would have to be asked.
    """
    names = catalog.load(settings)
    found = []
    for artifact in artifacts:
        standing = _without_asking(artifact, names)
        if standing is None:
            if settings.offline:
                raise NetworkError(
                    f"{artifact.ref}: its source cannot be asked, because you are offline by choice",
                    hint=settings.offline_hint,
                )
            on_event(Event("phase", str(artifact.ref), "asking its source"))
            standing = _ask(artifact, settings, open_source)
        found.append(standing)
    return found


def _without_asking(artifact: Artifact, names: Catalog) -> Standing | None:
    """What a pin decides: a name that fixes its bytes cannot be outdated."""
    ref = artifact.ref
    if "quantized" in artifact.card:
        return Standing(ref, "local", "it was quantized on this machine")
    match ref.scheme:
        case "file":
            return Standing(ref, "local", "it was read from this machine")
        case "https" if ref.sha256:
            return Standing(ref, "pinned", "its name has the sha256")
        case "pypi" if ref.revision:
            return Standing(ref, "pinned", "its name has the version")
        case "hf" if _COMMIT.fullmatch(ref.revision or ""):
            return Standing(ref, "pinned", "its name has the commit")
        case "catalog":
            return _catalog(artifact, names)
    return None


def _catalog(artifact: Artifact, names: Catalog) -> Standing | None:
    try:
        pin = names.find(artifact.ref).sha256
    except ModelMissing:
        return Standing(artifact.ref, "unknown", "the catalog does not know this name any more")
    if pin is None:
        return None
    here = [f.sha256 for f in artifact.files]
    if here == [pin]:
        return Standing(artifact.ref, "pinned", "the catalog fixes its sha256")
    return Standing(artifact.ref, "outdated", "the catalog names other bytes now", ", ".join(here), pin)


def _ask(artifact: Artifact, settings: Settings, open_source: OpenSource) -> Standing:
    name = artifact.ref
    try:
        if name.scheme == "catalog":  # without a pin: its source decides
            name = ModelRef.parse(artifact.source)
        listing = open_source(name.scheme, settings).list(name)
    except MiyabiError as e:
        gone = isinstance(e, ModelMissing)
        return Standing(artifact.ref, "unknown", e.message, _revision(artifact), failed=not gone)
    return _compare(artifact, listing)


def _compare(artifact: Artifact, listing: Listing) -> Standing:
    here, there = _revision(artifact), listing.resolved.revision
    mine = {f.name: f.sha256 for f in artifact.files}
    theirs = {f.name: f.sha256 for f in listing.files}
    known = {name: sha for name, sha in theirs.items() if sha is not None}
    if here is not None and here == there and _COMMIT.fullmatch(here):
        return Standing(artifact.ref, "current", "", here, there)
    moved = here is not None and there is not None and here != there
    changed = sorted(
        n for n in mine.keys() | known.keys() if n not in theirs or (n in known and mine.get(n) != known[n])
    )
    if changed:
        what = f"the source has other bytes: {', '.join(changed[:3])}" + (" and more" if len(changed) > 3 else "")
        return Standing(artifact.ref, "outdated", what, here, there)
    sizes = {f.name: f.size for f in artifact.files}
    grown = [f.name for f in listing.files if f.size is not None and sizes.get(f.name) not in (None, f.size)]
    if grown:
        return Standing(artifact.ref, "outdated", f"the source has another size of {grown[0]}", here, there)
    if len(known) < len(theirs):
        what = "the revision moved, and" if moved else "the source publishes no hash:"
        return Standing(artifact.ref, "unknown", f"{what} not every file can be compared", here, there)
    return Standing(artifact.ref, "current", "the revision moved, the files did not" if moved else "", here, there)


def _revision(artifact: Artifact) -> str | None:
    """The revision that was pulled, as the card has it."""
    resolved = artifact.card.get("resolved")
    try:
        return ModelRef.parse(resolved).revision if isinstance(resolved, str) else None
    except MiyabiError:
        return None
