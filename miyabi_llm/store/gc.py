"""Remove what no model needs: never a leased, young or possibly needed thing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.errors import MiyabiError
from miyabi_llm.store import leases, views
from miyabi_llm.store.fs import Fs, explained
from miyabi_llm.store.layout import Layout
from miyabi_llm.store.locks import Lock
from miyabi_llm.store.values import Pruned, Removal
from miyabi_llm.types import Artifact

YOUNG = 3600.0  # seconds; a pull may have put it there, or counted on it, and not be done
UNTRUSTED = 24 * 3600.0  # seconds; the same where locks cannot tell whether a download is under way


@dataclass(frozen=True, slots=True)
class Needs:
    """What must stay: the models that are here, and how many manifests could not be read."""

    models: tuple[Artifact, ...]
    unreadable: int

    @property
    def blobs(self) -> set[str]:
        """Every blob a model names."""
        return {f.sha256 for a in self.models for f in a.files}


@dataclass(frozen=True, slots=True)
class Collector:
    """One look for things to remove. `lock` is the store's exclusive lock, None for a dry run."""

    fs: Fs
    layout: Layout
    needs: Needs
    lock: Lock | None
    clock: Callable[[], float] = time.time

    def run(self, *, dry_run: bool) -> Pruned:
        """Find, and unless `dry_run` remove. Views go first: they keep blobs' bytes alive. Raises MiyabiError."""
        removed: list[Removal] = []
        kept: list[Removal] = []
        for item in (*self._views(), *self._blobs(), *self._parts(), *self._leases()):
            (kept if item.kind == "kept" else removed).append(item)
        if not dry_run:
            for item in removed:
                self.remove(item)
        return Pruned(tuple(removed), tuple(kept), dry_run)

    def remove(self, item: Removal) -> None:
        """Remove one thing; gone already is fine."""
        with explained(item.path):
            try:
                if item.kind == "view":
                    views.drop(self.fs, item.path)
                else:
                    self.fs.unlink(item.path)
            except FileNotFoundError:
                pass

    def held(self) -> tuple[set[str], bool]:
        """Blobs under a lease, and whether a lease could not be read."""
        blobs, _, unreadable = leases.active(self.fs, self.layout, trusted=self._trusted)
        return blobs, unreadable

    @property
    def _trusted(self) -> bool:
        return self.lock is None or self.lock.trusted

    def _blobs(self) -> Iterator[Removal]:
        needed, (held, unreadable) = self.needs.blobs, self.held()
        for name in self.fs.names(self.layout.blobs):
            path = self.layout.blobs / name
            if name in needed:
                continue
            found = self.fs.lstat(path)
            why = ""
            if self.needs.unreadable:
                why = f"{self.needs.unreadable} manifests cannot be read and may need it"
            elif unreadable or name in held:
                why = "in use"
            elif self._age(path) < YOUNG:
                why = "younger than an hour"
            yield Removal(path, found.st_size, "kept" if why else "blob", why or "no model needs it")

    def _parts(self) -> Iterator[Removal]:
        limit = YOUNG if self._trusted else UNTRUSTED
        for folder, kind in ((self.layout.parts, "partial"), (self.layout.models, "leftover")):
            for name in self.fs.names(folder):
                path = folder / name
                if kind == "leftover" and not name.endswith(".tmp"):
                    continue
                young = self._age(path) < limit
                size = self.fs.lstat(path).st_blocks * 512
                reason = "younger than an hour" if young else "a download that nobody continues"
                yield Removal(path, size, "kept" if young else kind, reason)

    def _views(self) -> Iterator[Removal]:
        keys = {views.key(a) for a in self.needs.models}
        held, unreadable = self.held()
        if self.needs.unreadable or unreadable or held - self.needs.blobs:
            return  # a server may use a view whose model was replaced since
        for name in self.fs.names(self.layout.views):
            path = self.layout.views / name
            if name not in keys and self._age(path) >= YOUNG:
                yield Removal(path, 0, "view", "its model is gone")

    def _leases(self) -> Iterator[Removal]:
        _, dead, _ = leases.active(self.fs, self.layout, trusted=self._trusted)
        for path in dead:
            yield Removal(path, 0, "lease", "its process ended")

    def _age(self, path: Path) -> float:
        """Seconds since a thing was last written, named or touched; negative after the clock was set back."""
        try:
            found = self.fs.lstat(path)
        except FileNotFoundError:
            return 0.0
        return self.clock() - max(found.st_mtime, found.st_ctime)


def busy(root: Path) -> MiyabiError:
    """The error when the store's exclusive lock is not to be had."""
    return MiyabiError(f"{root} is in use by a pull", hint="Wait for the pull to end, then run the command again.")
