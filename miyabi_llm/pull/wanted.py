"""What a name means: its entry, its pinned hash, and what each of its sources offers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from miyabi_llm import catalog, sources
from miyabi_llm.catalog import CatalogEntry, Origin, Packages
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, Corrupt, MiyabiError, ModelMissing, NetworkError
from miyabi_llm.refs import Digest, ModelRef, is_safe_name
from miyabi_llm.sources.base import Source
from miyabi_llm.types import Artifact, Format, Listing, RemoteFile, Trust

if TYPE_CHECKING:
    from miyabi_llm.store import Store

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.", re.ASCII)

OpenSource = Callable[[str, Settings], Source]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A name, understood: `ref` is what the store keeps it by, `origins` where to look, in order.

    `pin` is the sha256 that its one file must have, None when nobody said one.
    """

    asked: ModelRef
    ref: ModelRef
    origins: tuple[Origin, ...]
    entry: CatalogEntry | None = None
    pin: Digest | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One place the model can come from; `problem` is why it cannot, None when it can or was not asked."""

    source: str
    asked: bool
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a name means, before a byte is here. `size` in bytes, None when no source says it.

    `layer` is the catalog layer the name came from, None for names that are no short names. `trust` is what the
    pulled model will be: `verified` only when every file's hash is known now.
    """

    ref: ModelRef
    canonical: ModelRef
    layer: str | None
    format: Format
    files: tuple[RemoteFile, ...]
    size: int | None
    license: str | None
    trust: Trust
    here: bool | None
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()


def want(ref: ModelRef, settings: Settings, sha256: Digest | None = None) -> Wanted:
    """Understand `ref`, with `sha256` as the user's own pin. Raises ModelMissing (short names), BadUsage."""
    entry = catalog.load(settings).find(ref) if ref.scheme == "catalog" else None
    known = entry.sha256 if entry else ref.sha256
    if sha256 and known and sha256 != known:
        raise BadUsage(
            f"--sha256 says {sha256[:12]}…, but {ref} is pinned to {known[:12]}…",
            hint="Name the file by its address if you mean other bytes.",
        )
    if entry:
        return Wanted(ref, entry.ref, entry.sources, entry, sha256 or known)
    return Wanted(ref, ref, (ref,), None, sha256 or known)


def already(store: Store, wanted: Wanted) -> Artifact | None:
    """The model, if every file of it is in the store, and is the pinned one."""
    try:
        artifact = store.find(wanted.ref)
    except (ModelMissing, Corrupt):  # a damaged manifest is written anew
        return None
    if wanted.pin and [f.sha256 for f in artifact.files] != [wanted.pin]:
        return None
    return artifact if all(store.has(f.sha256, f.size) for f in artifact.files) else None


def pinned_file(wanted: Wanted, store: Store) -> RemoteFile | None:
    """The one file of a pinned name as far as it is known without asking a source; None when its name is not."""
    ref, entry = wanted.ref, wanted.entry
    if wanted.pin is None or (entry is None and ref.scheme in ("file", "ollama")):
        return None  # a model of Ollama is more than its one large file
    if entry and entry.file:
        return RemoteFile(entry.file, entry.size, wanted.pin)
    name = ref.file or _url_file(ref)
    if name is None and (ref.quant or ref.scheme == "pypi"):
        stored = (f.name for a in store.list() for f in a.files if f.sha256 == wanted.pin)
        name = next(stored, None) or _quant_file(ref)
    if name is None or not name.endswith((".gguf", ".safetensors")) or _SHARD.search(name) or not is_safe_name(name):
        return None
    return RemoteFile(name, None, wanted.pin)


def _url_file(ref: ModelRef) -> str | None:
    return unquote(urlsplit(ref.name).path.rpartition("/")[2]) if ref.scheme == "https" else None


def _quant_file(ref: ModelRef) -> str | None:
    """What the file of a quantization is usually called: only its source could tell for sure."""
    return f"{ref.name.rpartition('/')[2].removesuffix('-GGUF')}-{ref.quant}.gguf" if ref.quant else None


def offer(origin: Origin, wanted: Wanted, source: Source) -> Listing:
    """What `origin` has of the wanted model; asks the network except for packages of the catalog.

    Raises what `Source.list` raises, and Corrupt when the source has other bytes than the pinned ones.
    """
    if isinstance(origin, Packages):
        assert wanted.entry is not None, "only the catalog has packages"
        resolved = ModelRef.parse("pypi:" + origin.requirements[0])
        return Listing(wanted.ref, resolved, wanted.entry.format, (wanted.entry.remote(origin),))
    listing = source.list(origin)
    if wanted.pin is None:
        return listing
    if len(listing.files) != 1:
        raise BadUsage(
            f"{origin} has {len(listing.files)} files, and a sha256 can pin one only",
            hint="Name one file: hf:ORG/REPO/FILE.gguf.",
        )
    return replace(listing, files=(_pinned(listing.files[0], wanted, origin),))


def _pinned(file: RemoteFile, wanted: Wanted, origin: Origin) -> RemoteFile:
    entry = wanted.entry
    size = entry.size if entry else None
    if file.sha256 and file.sha256 != wanted.pin:
        raise Corrupt(f"{origin}: {file.name} has the sha256 {file.sha256[:12]}…, {str(wanted.pin)[:12]}… is expected")
    if file.size and size and file.size != size:
        raise Corrupt(f"{origin}: {file.name} has {file.size} bytes, {size} are expected")
    return replace(file, size=file.size or size, sha256=wanted.pin)


def open_origin(origin: Origin, settings: Settings, open_source: OpenSource) -> Source:
    """The source behind `origin`. Raises NetworkError when it needs a network and the user said offline."""
    if settings.offline and origin.scheme != "file":
        raise NetworkError(f"{origin}: not asked, because you are offline by choice", hint=settings.offline_hint)
    return open_source(origin.scheme, settings)


def trust_of(listing: Listing) -> Trust:
    """How far the model can be trusted when it is here."""
    if all(f.sha256 for f in listing.files):
        return "verified"
    return "local" if listing.resolved.scheme == "file" else "first-use"


def resolve(
    ref: ModelRef,
    settings: Settings,
    *,
    remote: bool = False,
    store: Store | None = None,
    sha256: Digest | None = None,
    open_source: OpenSource = sources.open,
) -> Resolution:
    """Say what `ref` means without downloading. A short name needs no network unless `remote`.

    Raises ModelMissing, BadUsage; and, when no source of a name that is not in the catalog answers, its error.
    """
    wanted = want(ref, settings, sha256)
    here = already(store, wanted) is not None if store else None
    entry = wanted.entry
    if entry and not remote:
        candidates = tuple(Candidate(str(o), asked=False) for o in wanted.origins)
        return _resolution(wanted, _from_entry(entry), here, candidates)
    listing: Listing | None = None
    tried: list[Candidate] = []
    error: MiyabiError | None = None
    for origin in wanted.origins:
        try:
            found = offer(origin, wanted, open_origin(origin, settings, open_source))
        except BadUsage:
            raise
        except MiyabiError as e:
            error = error or e
            tried.append(Candidate(str(origin), asked=True, problem=e.message.removeprefix(f"{origin}: ")))
        else:
            listing = listing or found
            tried.append(Candidate(str(origin), asked=not isinstance(origin, Packages)))
    if listing is None and entry is None and error:
        raise error
    return _resolution(wanted, listing or _from_entry(entry), here, tuple(tried))


def _from_entry(entry: CatalogEntry | None) -> Listing:
    assert entry is not None, "a name without an entry raises its source's error"
    files = (RemoteFile(entry.file, entry.size, entry.sha256),) if entry.file else ()
    return Listing(entry.ref, entry.ref, entry.format, files, entry.license)


def _resolution(wanted: Wanted, listing: Listing, here: bool | None, candidates: tuple[Candidate, ...]) -> Resolution:
    entry = wanted.entry
    notes = (*((entry.note,) if entry and entry.note else ()), *listing.notes)
    return Resolution(
        ref=wanted.asked,
        canonical=wanted.ref,
        layer=entry.layer if entry else None,
        format=listing.format,
        files=listing.files,
        size=listing.size if listing.files else None,
        license=(entry.license if entry else None) or listing.license,
        trust=trust_of(listing) if listing.files else "first-use",
        here=here,
        candidates=candidates,
        notes=notes,
    )
