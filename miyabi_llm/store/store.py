"""The store: what a model's name means on this disk, and nothing half-written ever seen."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from miyabi_llm.errors import Corrupt, MiyabiError, ModelMissing
from miyabi_llm.refs import Digest, ModelRef, digest
from miyabi_llm.store import gc, layout, leases, locks, manifest, usage, verify, views
from miyabi_llm.store.blobs import FRESH, Blobs
from miyabi_llm.store.follow import STEP, hash_file
from miyabi_llm.store.fs import Fs, explained, is_regular, nonce, open_regular, quietly_unlink
from miyabi_llm.store.layout import Layout
from miyabi_llm.store.leases import Lease
from miyabi_llm.store.locks import OnWait
from miyabi_llm.store.part import Part, PartFiles, tidy
from miyabi_llm.store.values import FileCheck, Pruned, Removed, StoredBlob, Usage
from miyabi_llm.types import Artifact, Finding, OnEvent, silent

# `Store.list` hides the built-in name within the class.
_Artifacts = list[Artifact]
_Findings = list[Finding]
_Checks = list[FileCheck]
_Survey = tuple[list[tuple[Artifact, str]], list[tuple[Path, MiyabiError]]]

WAIT = 10.0  # seconds


class Store:
    """A folder of verified bytes and of manifests that name them. Making one touches no disk.

    `step` is how many bytes of a download are made durable at a time; `clock` gives the time in seconds;
    `wait` is how long a removal waits for pulls to end, in seconds.
    """

    part_type: type[Part] = Part

    def __init__(
        self,
        root: Path,
        fs: Fs | None = None,
        *,
        step: int = STEP,
        clock: Callable[[], float] = time.time,
        wait: float = WAIT,
    ) -> None:
        self.root = root
        self.fs = fs or Fs()
        self.layout = Layout(root)
        self.blobs = Blobs(self.fs, self.layout)
        self._step, self._clock, self._wait = step, clock, wait

    # -- questions

    def find(self, ref: ModelRef) -> Artifact:
        """The model of that name, every file here with its size. Raises ModelMissing, Unsafe, Corrupt (damaged)."""
        artifact = self.manifest(ref)
        wrong = self._damage(artifact)
        if wrong:
            raise ModelMissing(f"{ref} is damaged: {wrong}", hint=f"Pull it again: miyabi-llm pull {ref}", damaged=True)
        return artifact

    def manifest(self, ref: ModelRef) -> Artifact:
        """What the manifest says, without a look at the files: for `verify` and `rm`. Raises as `find`."""
        self._check()
        path = self.layout.manifest(ref)
        try:
            return manifest.load(self.fs, path)
        except FileNotFoundError:
            raise ModelMissing(f"{ref} is not in the store", hint=f"Run `miyabi-llm pull {ref}`.") from None
        except Corrupt as e:
            raise ModelMissing(
                f"{ref} is damaged: {e.message}", hint=f"Pull it again: miyabi-llm pull {ref}", damaged=True
            ) from e

    def list(self) -> _Artifacts:
        """Every model that is here, whole, by name."""
        return [a for a, wrong in self._survey()[0] if not wrong]

    def problems(self) -> _Findings:
        """What is damaged: manifests that cannot be read, models whose files are missing, quarantined bytes."""
        models, corrupt = self._survey()
        found = [
            Finding(str(a.ref), "fail", f"damaged: {wrong}", fix=f"miyabi-llm pull {a.ref}")
            for a, wrong in models
            if wrong
        ]
        found += [Finding(p.name, "fail", e.message, fix=f"rm {p}", data={"path": p}) for p, e in corrupt]
        for name in self.fs.names(self.layout.quarantine):
            path = self.layout.quarantine / name
            found.append(
                Finding(name, "warn", f"wrong bytes are kept at {path}", fix=f"rm {path}", data={"path": path})
            )
        return found

    def has(self, sha256: str, size: int | None = None) -> bool:
        """Whether the blob is here (with `size` bytes). A yes keeps it from `prune` for an hour."""
        self._check()
        if not self.blobs.has(sha256, size):
            return False
        path = self.blob(sha256)
        with suppress(OSError):  # a store that cannot be written cannot be pruned
            if abs(self._clock() - self.fs.lstat(path).st_mtime) > FRESH:
                self.fs.touch(path)
        return True

    def blob(self, sha256: str) -> Path:
        """Where a blob lies or would lie. Raises BadUsage when `sha256` is not one."""
        return self.blobs.path(sha256)

    def df(self) -> Usage:
        """What the store uses of the disk, in bytes."""
        with explained(self.root):
            return usage.usage(self.fs, self.layout, [a for a, _ in self._survey()[0]])

    def free_bytes(self) -> int:
        """Bytes free where the store lies or will lie."""
        with explained(self.root):
            return usage.free(self.fs, self.root)

    # -- bytes come in

    @contextmanager
    def using(self, on_wait: OnWait | None = None) -> Iterator[None]:
        """Keep removals out while a pull looks, fetches and publishes."""
        layout.ensure(self.fs, self.layout)
        with explained(self.layout.lock):
            lock = locks.take(self.fs, self.layout.lock, exclusive=False, on_wait=on_wait)
        assert lock is not None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def part(self, key: str, size: int | None = None, *, on_wait: OnWait | None = None) -> Iterator[Part]:
        """A file on its way; `key` is its sha256, or the sha256 of its URL while the former is unknown.

        A second process with the same key waits for the first (`on_wait` is called in short steps and may
        raise) and then finds the blob `present`. Where locks cannot be trusted, everybody has a private part.
        """
        key = digest(key)
        with self.using(on_wait):
            path = self.layout.parts / f"{key}.lock"
            with explained(path):
                lock = locks.take(self.fs, path, exclusive=True, on_wait=on_wait)
            assert lock is not None
            files = self._part_files(key if lock.trusted else f"{key}.{nonce()}", resumable=lock.trusted)
            try:
                part = self.part_type(self.blobs, files, size, key=key, step=self._step)
                try:
                    yield part
                finally:
                    part.close()
            finally:
                lock.release(remove=True)

    def scratch(self) -> Path:
        """A new name on the store's filesystem, for bytes that `publish_blob` will take. Make it within `using`."""
        layout.ensure(self.fs, self.layout)
        return self.layout.parts / f"{nonce()}.part"

    def publish_blob(self, path: Path, sha256: Digest, *, seal: bool = True) -> StoredBlob:
        """Take over a file made at `scratch()` whose bytes the caller has verified: sync, 0444, rename, sync."""
        return self.blobs.publish_file(path, sha256, seal=seal)

    def adopt(self, path: Path, sha256: Digest | None = None) -> tuple[Digest, int, str]:
        """Share another file's bytes: reflink, else hard link, else copy; returns hash, size and how.

        Hashed is what the store will keep. Raises Corrupt when it is not `sha256`, MiyabiError.
        """
        from miyabi_llm.store.adopt import share

        with self.using():
            target = self.scratch()
            try:
                try:
                    how: str = share(path, target)
                except OSError:  # cannot be shared; if it cannot be read either, the copy says so
                    quietly_unlink(self.fs, target)
                    _copy(path, target)
                    how = "copy"
                with explained(target):
                    fd = open_regular(self.fs, target, os.O_RDONLY)
                    try:
                        found, size = hash_file(self.fs, target, fd)
                    finally:
                        self.fs.close(fd)
                if sha256 is not None and found != sha256:
                    raise Corrupt(f"{path} has sha256 {found}, expected {sha256}", hint="It is another file.")
                self.publish_blob(target, found, seal=how != "hardlink")
            finally:
                quietly_unlink(self.fs, target)
        return found, size, how

    def publish(self, artifact: Artifact) -> None:
        """Say that a model is here: its manifest, last. Raises Corrupt when a file is not, Unsafe, MiyabiError."""
        with self.using():
            wrong = self._damage(artifact)
            if wrong:
                raise Corrupt(f"{artifact.ref} cannot be published: {wrong}", hint="Pull it again.")
            for file in artifact.files:
                self._tidy(file.sha256)
            manifest.save(self.fs, self.layout.manifest(artifact.ref), artifact)

    # -- bytes are used

    def files(self, artifact: Artifact) -> dict[str, Path]:
        """File name -> path, in a folder where the files have their real names. Raises Unsafe, MiyabiError."""
        with self.using():
            return views.make(self.fs, self.layout, artifact)

    @contextmanager
    def lease(self, artifact: Artifact) -> Iterator[Lease]:
        """While it is held, no removal takes the model's blobs."""
        with self.using(), explained(self.layout.leases):
            held = leases.take(self.fs, self.layout, (f.sha256 for f in artifact.files))
        try:
            yield held
        finally:
            held.release()

    def verify(self, artifact: Artifact, on_event: OnEvent = silent) -> _Checks:
        """Hash every file again; a wrong one goes to quarantine and the model counts as missing."""
        with self.using():
            return verify.verify(self.blobs, artifact, on_event)

    # -- bytes go

    def remove(self, ref: ModelRef) -> Removed:
        """Remove a model and the blobs that only it needs. Raises ModelMissing; MiyabiError while it is served."""
        self._check()
        path = self.layout.manifest(ref)
        with explained(path):
            if is_regular(self.fs, path) is None:
                raise ModelMissing(f"{ref} is not in the store", hint="Run `miyabi-llm list`.")
            lock = locks.take(self.fs, self.layout.lock, exclusive=True, timeout=self._wait)
            if lock is None:
                raise gc.busy(self.root)
            try:
                return self._remove(ref, path, lock)
            finally:
                lock.release()

    def _remove(self, ref: ModelRef, path: Path, lock: locks.Lock) -> Removed:
        try:
            gone: Artifact | None = manifest.load(self.fs, path)
        except Corrupt:
            gone = None
        held, unreadable = gc.Collector(self.fs, self.layout, self._needs(), lock).held()
        mine = {f.sha256 for f in gone.files} if gone else set()
        if mine & held or (unreadable and mine):
            raise MiyabiError(f"{ref} is in use", hint="See `miyabi-llm ps`, then `miyabi-llm stop`.")
        self.fs.unlink(path)
        self.fs.fsync_dir(self.layout.models)
        needs = self._needs()
        if gone is None:
            return Removed(ref, 0, "its manifest could not be read; `miyabi-llm prune` finds its files")
        if views.key(gone) not in {views.key(a) for a in needs.models}:
            views.drop(self.fs, self.layout.views / views.key(gone))
        if needs.unreadable:
            return Removed(ref, 0, f"{needs.unreadable} manifests cannot be read and may need its files")
        kept = [f"the same bytes are those of {', '.join(also)}"] if (also := _also(mine, needs)) else []
        freed = shared = 0
        for sha256 in mine - needs.blobs:
            size = self.blobs.size(sha256)
            if size is not None:
                alone = self.fs.lstat(self.layout.blob(sha256)).st_nlink == 1
                self.fs.unlink(self.layout.blob(sha256))
                freed, shared = (freed + size, shared) if alone else (freed, shared + size)
        if shared:
            kept.append(f"{shared:,} bytes stay on the disk: another tool has them too")
        return Removed(ref, freed, "; ".join(kept))

    def discard(self, sha256: Digest) -> bool:
        """Remove a blob that no model needs; False when one does, or while somebody uses the store. Not within `using`.

        Raises MiyabiError.
        """
        self._check()
        with explained(self.root):
            lock = locks.take(self.fs, self.layout.lock, exclusive=True, timeout=0)
            if lock is None:
                return False
            try:
                needs = self._needs()
                held, unreadable = gc.Collector(self.fs, self.layout, needs, lock).held()
                if sha256 in needs.blobs | held or needs.unreadable or unreadable or not self.blobs.has(sha256):
                    return False
                self.fs.unlink(self.layout.blob(sha256))
                return True
            finally:
                lock.release()

    def prune(self, *, dry_run: bool = True) -> Pruned:
        """Remove (or only list) blobs no model needs, partial downloads and leftovers older than an hour."""
        if not self._check():
            return Pruned((), (), dry_run)
        with explained(self.root):
            if dry_run:
                return gc.Collector(self.fs, self.layout, self._needs(), None, self._clock).run(dry_run=True)
            lock = locks.take(self.fs, self.layout.lock, exclusive=True, timeout=self._wait)
            if lock is None:
                raise gc.busy(self.root)
            try:
                return gc.Collector(self.fs, self.layout, self._needs(), lock, self._clock).run(dry_run=False)
            finally:
                lock.release()

    # -- within

    def _part_files(self, stem: str, *, resumable: bool) -> PartFiles:
        return PartFiles(self.layout.parts / f"{stem}.part", self.layout.parts / f"{stem}.json", resumable)

    def _tidy(self, sha256: Digest) -> None:
        """Remove what a pull left in parts/ that was killed just after it had published this blob."""
        path = self.layout.parts / f"{sha256}.lock"
        files = self._part_files(sha256, resumable=True)
        with suppress(OSError):
            if any(os.path.lexists(p) for p in (path, files.data, files.journal)):
                lock = locks.take(self.fs, path, exclusive=True, timeout=0)
                if lock is not None:
                    if lock.trusted:
                        tidy(self.fs, files)
                    lock.release(remove=True)

    def _check(self) -> bool:
        with explained(self.root):
            return layout.check(self.fs, self.layout)

    def _damage(self, artifact: Artifact) -> str:
        """What is wrong with a model's files by presence and size; empty when nothing is."""
        for file in artifact.files:
            size = self.blobs.size(file.sha256)
            if size is None:
                return f"{file.name} is missing"
            if size != file.size:
                return f"{file.name} has {size:,} bytes instead of {file.size:,}"
        return ""

    def _survey(self) -> _Survey:
        """All manifests: (model, what is wrong with its files), and (path, error) of those not readable."""
        models: list[tuple[Artifact, str]] = []
        corrupt: list[tuple[Path, MiyabiError]] = []
        self._check()
        for name in self.fs.names(self.layout.models):
            if not name.endswith(".json"):
                continue
            path = self.layout.models / name
            try:
                artifact = manifest.load(self.fs, path)
                models.append((artifact, self._damage(artifact)))
            except FileNotFoundError:
                continue  # removed meanwhile
            except MiyabiError as e:
                corrupt.append((path, e))
        return sorted(models, key=lambda m: str(m[0].ref)), corrupt

    def _needs(self) -> gc.Needs:
        models, corrupt = self._survey()
        return gc.Needs(tuple(a for a, _ in models), len(corrupt))


def _also(blobs: set[Digest], needs: gc.Needs) -> list[str]:
    """The models that need some of `blobs`."""
    return [str(a.ref) for a in needs.models if not blobs.isdisjoint(f.sha256 for f in a.files)]


def _copy(source: Path, target: Path) -> None:
    """Copy bytes to a new file; the caller hashes and syncs the copy. Raises DiskFull, MiyabiError."""
    import shutil

    with explained(source):
        size = os.stat(source).st_size
    with explained(target, need=size):
        shutil.copyfile(source, target)
