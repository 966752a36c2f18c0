"""Bring a model here: try its sources in order, check every byte, publish the manifest last."""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from miyabi_llm import __version__, gguf, safetensors, sources
from miyabi_llm.catalog import Origin
from miyabi_llm.config import Settings
from miyabi_llm.errors import (
    AccessDenied,
    BadUsage,
    Corrupt,
    DiskFull,
    MachineLimit,
    MiyabiError,
    ModelMissing,
    NetworkError,
    Unsafe,
)
from miyabi_llm.pull.wanted import OpenSource, Wanted, already, offer, open_origin, pinned_file, trust_of, want
from miyabi_llm.refs import Digest, ModelRef, is_safe_name
from miyabi_llm.sources.base import Source, runs_code
from miyabi_llm.store import adopt
from miyabi_llm.types import Artifact, Event, Format, Listing, OnEvent, RemoteFile, StoredFile, silent

if TYPE_CHECKING:
    from miyabi_llm.store import Store

SPARE = 0.05  # of the download, left free for the store's own files
HERE = "this machine"  # the source of what nobody had to be asked for
SPARE_LEAST = 256 * 2**20  # bytes: wheels on their way, journals, and air for everything else on the disk


@dataclass(frozen=True, slots=True)
class Options:
    """How to pull. `sha256` pins the one file; `trust_first_use` accepts a stranger's packages without a hash.

    `refresh` asks the source again though the model is here. `fits` judges a listing before its download and
    returns a warning or None. `open_source` opens sources by their scheme.
    """

    sha256: Digest | None = None
    trust_first_use: bool = False
    refresh: bool = False
    fits: Callable[[Listing], str | None] | None = None
    open_source: OpenSource = sources.open


def pull(
    ref: ModelRef, store: Store, settings: Settings, on_event: OnEvent = silent, *, options: Options | None = None
) -> Artifact:
    """The model `ref`, whole and verified in `store`; at once when it is there already.

    Bytes that are pinned and on this machine already are taken before any source is asked. Sources are tried in
    order; one that fails is a warning, and when all fail one error names every reason. Partial downloads stay for
    the next try. Raises ModelMissing, NetworkError, AccessDenied, Corrupt, Unsafe, DiskFull, BadUsage.
    """
    options = options or Options()
    wanted = want(ref, settings, options.sha256)
    if not options.refresh:
        if found := already(store, wanted):
            on_event(Event("done", str(wanted.ref), "already here"))
            return found
        if found := _from_here(wanted, store, settings, on_event):
            return found
    if settings.offline and all(origin.scheme != "file" for origin in wanted.origins):
        what = f"{wanted.ref} is not on this machine, and its sources are not asked: you are offline by choice"
        raise NetworkError(what, hint=settings.offline_hint)
    failed: list[tuple[Origin, MiyabiError]] = []
    for origin in wanted.origins:
        try:
            source = open_origin(origin, settings, options.open_source)
            listing = offer(origin, wanted, source)
            with store.using():  # no removal takes what this pull counts on
                return _Pull(wanted, str(origin), store, settings, on_event).run(listing, source, options)
        except (BadUsage, MachineLimit):
            raise
        except MiyabiError as e:
            _drop_refused(store, e)
            failed.append((origin, e))
            if len(failed) < len(wanted.origins):
                on_event(Event("warning", str(wanted.ref), f"{_reason(origin, e)}; trying the next source"))
        except OSError as e:
            raise _explained(e) from e
        except KeyboardInterrupt:
            what = f"interrupted; what has arrived is kept, `miyabi-llm pull {wanted.asked}` continues"
            on_event(Event("warning", str(wanted.ref), what))
            raise
    raise _all_failed(wanted, failed)


def _from_here(wanted: Wanted, store: Store, settings: Settings, on_event: OnEvent) -> Artifact | None:
    """The pinned model from bytes that are on this machine, under another name or another tool's; asks nobody."""
    try:
        file = pinned_file(wanted, store)
        if file is None:
            return None
        with store.using():
            return _Pull(wanted, HERE, store, settings, on_event).here(file)
    except Corrupt as e:
        _drop_refused(store, e)
        raise
    except OSError as e:
        raise _explained(e) from e


@dataclass(frozen=True, slots=True)
class _Pull:
    """One try: a wanted model from one source."""

    wanted: Wanted
    origin: str
    store: Store
    settings: Settings
    on_event: OnEvent
    adopted: list[dict[str, str]] = field(default_factory=list)  # for the card: bytes that did not come from `origin`

    def run(self, listing: Listing, source: Source, options: Options) -> Artifact:
        self._judge(listing, options)
        missing = [f for f in listing.files if not (f.sha256 and self.store.has(f.sha256, f.size))]
        for note in listing.notes:
            self._say("log", note)
        self._check_space([f for f in missing if f.path is None])
        if options.fits and missing and (warning := options.fits(listing)):
            self._say("warning", warning)
        files = tuple(self._file(f, source) for f in listing.files)
        if self.wanted.entry and self.wanted.entry.file and len(files) == 1:
            files = (replace(files[0], name=self.wanted.entry.file),)
        for file in files:
            check_header(self.store, file)
        artifact = self._artifact(listing, files)
        self.store.publish(artifact)
        self._say("done", f"{artifact.size:,} bytes, {artifact.trust}")
        return artifact

    def here(self, file: RemoteFile) -> Artifact | None:
        """Publish the wanted model from bytes that need no source; None when they are not on this machine."""
        found = self._on_machine(file)
        if found is None:
            return None
        check_header(self.store, found)
        kind: Format = "safetensors" if file.name.endswith(".safetensors") else "gguf"
        entry = self.wanted.entry
        listing = Listing(self.wanted.ref, self.wanted.ref, entry.format if entry else kind, (file,))
        artifact = self._artifact(listing, (found,))
        self.store.publish(artifact)
        how = f"{self.adopted[0]['how']} of {self.adopted[0]['from']}" if self.adopted else "its bytes were here"
        self._say("done", f"{artifact.size:,} bytes, {artifact.trust}; {how}")
        return artifact

    def _say(self, kind: Any, message: str) -> None:
        self.on_event(Event(kind, str(self.wanted.ref), message))

    def _judge(self, listing: Listing, options: Options) -> None:
        """Refuse what must not come in, before a byte of it does."""
        names = [f.name for f in listing.files]
        if not names:
            raise ModelMissing(f"{self.origin} has no model file")
        for name in names:
            if not is_safe_name(name) or any(p.startswith(".") for p in name.split("/")):
                raise Unsafe(f"{self.origin}: refused: {name!r} is not a plain file name")
            if runs_code(name):
                raise Unsafe(
                    f"{self.origin}: refused: {name} can run code when it is loaded",
                    hint="Use a model with .gguf or .safetensors files.",
                )
        if len(set(names)) != len(names):
            raise Unsafe(f"{self.origin}: refused: two files have the same name")
        unknown = [f for f in listing.files if f.sha256 is None]
        if any(f.members for f in unknown) and not options.trust_first_use:
            raise Unsafe(
                f"{self.origin}: packages are anybody's upload, and no sha256 is known for {unknown[0].name}",
                hint="Give --sha256 HEX, or accept what comes first with --trust-first-use.",
            )
        if any(f.path is None for f in unknown):
            self._say("warning", f"no sha256 is known for {unknown[0].name}: trusted on first use, not verified")

    def _check_space(self, missing: Sequence[RemoteFile]) -> None:
        """Raise DiskFull before the first byte when the rest cannot fit."""
        need = sum(f.size or 0 for f in missing)
        spare = max(int(need * SPARE), SPARE_LEAST)
        free = self.store.free_bytes()
        if need and need + spare > free:
            need -= sum(self._arrived(f) for f in missing)
        if need and need + spare > free:
            mib = 2**20
            raise DiskFull(
                f"{self.wanted.ref} needs {-(-need // mib)} MiB and {spare // mib} MiB to spare on the disk of "
                f"{self.store.root}; {free // mib} MiB are free",
                hint="Run `miyabi-llm prune`, or put the store elsewhere with MIYABI_HOME.",
                need=need,
                spare=spare,
                free=free,
            )

    def _arrived(self, file: RemoteFile) -> int:
        with self.store.part(self._key(file), file.size) as part:
            return sum(end - start for start, end in part.done)

    def _key(self, file: RemoteFile) -> str:
        return file.sha256 or hashlib.sha256(f"{self.origin}\n{file.name}".encode()).hexdigest()

    def _file(self, file: RemoteFile, source: Source) -> StoredFile:
        """One file, in the store: there already, shared from another tool's folder, or fetched."""
        if file.path is not None:
            sha256, size, how = self.store.adopt(file.path, file.sha256)
            self.adopted.append({"file": file.name, "how": how, "from": str(file.path)})
            self._say("log", f"{file.name}: {how} of {file.path}")
            return StoredFile(file.name, sha256, size)
        if found := self._on_machine(file):
            return found
        try:
            return self._fetch(file, source, again=False)
        except Corrupt as e:
            self.on_event(Event("warning", file.name, f"{e.message}; fetching it again from the beginning"))
            return self._fetch(file, source, again=True)

    def _on_machine(self, file: RemoteFile) -> StoredFile | None:
        """A file of known hash that is in the store, or that another tool holds and shares with it now."""
        if not file.sha256:
            return None
        if not self.store.has(file.sha256, file.size):
            taken = adopt.take(self.store, file.sha256, file.size, file.name, self.settings)
            if taken is None or not self.store.has(file.sha256, file.size):
                return None
            self.adopted.append({"file": file.name, "how": taken[1], "from": str(taken[0])})
            self._say("log", f"{file.name}: {taken[1]} of {taken[0]}, verified")
        return StoredFile(file.name, file.sha256, self.store.blob(file.sha256).stat().st_size)

    def _fetch(self, file: RemoteFile, source: Source, *, again: bool) -> StoredFile:
        self._say("phase", f"{file.name} from {self.origin}")
        told: list[str] = []

        def wait() -> None:
            if not told:
                told.append(file.name)
                self._say("phase", f"another pull is bringing {file.name}; waiting for it")

        with self.store.part(self._key(file), file.size, on_wait=wait) as part:
            if again:
                part.reset(None, file.size)
            if not part.present:  # another process may have brought it while we waited
                source.fetch(file, part, self.on_event)
            blob = part.commit(file.sha256, file.size)
        return StoredFile(file.name, blob.sha256, blob.size)

    def _artifact(self, listing: Listing, files: tuple[StoredFile, ...]) -> Artifact:
        entry = self.wanted.entry
        notes = (*((entry.note,) if entry and entry.note else ()), *listing.notes)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        card = {
            "source": self.origin,
            "resolved": str(listing.resolved),
            "asked": str(self.wanted.asked),
            "tool": {"name": "miyabi-llm", "version": __version__},
            "pulled_at": now,
            "lineage": [{"step": "pull", "from": self.origin, "sha256": [f.sha256 for f in files]}],
            "notes": list(notes),
        }
        if self.adopted:
            card["adopted"] = self.adopted
        return Artifact(
            ref=self.wanted.ref,
            format=listing.format,
            files=files,
            trust=trust_of(listing),
            source=self.origin,
            pulled_at=now,
            license=(entry.license if entry else None) or listing.license,
            card=dict(listing.card) | card,
        )


def check_header(store: Store, file: StoredFile) -> None:
    """Read a model file's header within bounds before anything may load it. Raises Corrupt (`refused`: its hash)."""
    read = (
        gguf.read if file.name.endswith(".gguf") else safetensors.read if file.name.endswith(".safetensors") else None
    )
    if read is None:
        return
    with store.blob(file.sha256).open("rb") as stream:
        try:
            read(stream, file.size)
        except Corrupt as e:
            raise Corrupt(f"{file.name}: {e.message}", hint=e.hint, refused=file.sha256) from e


def _drop_refused(store: Store, error: MiyabiError) -> None:
    """Keep no bytes whose header was refused; call it outside of `store.using`."""
    if refused := error.details.get("refused"):
        with contextlib.suppress(MiyabiError):  # `prune` finds what is left; the refusal is what matters
            store.discard(refused)


def _explained(e: OSError) -> MiyabiError:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the disk is full: {e}", hint="Run `miyabi-llm prune`; what has arrived is kept.")
    return MiyabiError(f"cannot write or read: {e}")


def _reason(origin: Origin, error: MiyabiError) -> str:
    """Why `origin` failed, under its name once: most messages begin with the place they speak of."""
    names = {str(origin), origin.name} if isinstance(origin, ModelRef) else {str(origin), *origin.requirements}
    known = any(name in error.message for name in names if len(name) > 8 or ":" in name or "/" in name)
    return error.message if known else f"{origin}: {error.message}"


def _all_failed(wanted: Wanted, failed: Sequence[tuple[Origin, MiyabiError]]) -> MiyabiError:
    """One error for all sources: the only one's own, else the class that tells most, naming every reason."""
    if len(failed) == 1:
        return failed[0][1]
    order: tuple[type[MiyabiError], ...] = (Unsafe, Corrupt, AccessDenied, NetworkError, ModelMissing)
    kind = next((k for k in order if any(isinstance(e, k) for _, e in failed)), MiyabiError)
    reasons = "; ".join(_reason(origin, e) for origin, e in failed)
    hint = next((e.hint for _, e in failed if isinstance(e, kind) and e.hint), None)
    return kind(f"no source of {wanted.ref} could give it: {reasons}", hint=hint)
