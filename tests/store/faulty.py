"""File operations that fail on purpose, and a small pull that drives the store as the real one does."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miyabi_llm.errors import Corrupt, MiyabiError
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.store import Fs, Part, Store
from miyabi_llm.types import Artifact, StoredFile

WRITES = (
    "open", "pwrite", "fdatasync", "fsync", "fsync_dir", "fchmod", "rename", "link", "symlink", "unlink", "mkdir",
    "rmdir", "flock", "touch",
)  # fmt: skip
READS = ("pread", "names")
TAKES_SPACE = {"open", "pwrite", "rename", "link", "symlink", "mkdir"}

STEP = 64 << 10
PIECE = 48 << 10
REF = ModelRef.parse("hf:acme/tiny:Q4_K_M")
OTHER = ModelRef.parse("hf:acme/other:Q8_0")


class FaultyFs(Fs):
    """Does `act(op)` before the `at`-th counted operation. `fired` says whether it came to that.

    Counted are those of the main thread, in an order that is the same each time, or, with `behind`, those
    of the threads behind it.
    """

    def __init__(
        self, at: int, act: Callable[[str], None], counted: Iterable[str] = WRITES, *, behind: bool = False
    ) -> None:
        self.at, self.act, self.counted, self.behind = at, act, frozenset(counted), behind
        self.count, self.fired = 0, False
        self._lock = threading.Lock()

    def strike(self, op: str) -> bool:
        """Count an operation; True when it is the one."""
        if op not in self.counted or (threading.current_thread() is not threading.main_thread()) != self.behind:
            return False
        with self._lock:
            self.count += 1
            hit = self.count == self.at
            self.fired = self.fired or hit
        return hit


def _faulty(name: str) -> Callable[..., Any]:
    plain = getattr(Fs, name)

    def method(self: FaultyFs, *args: Any) -> Any:
        if self.strike(name):
            if name == "pwrite" and len(args[1]) > 1:  # a torn write: half of it is there
                plain(self, args[0], args[1][: len(args[1]) // 2], args[2])
            self.act(name)
        return plain(self, *args)

    return method


for _name in WRITES + READS:
    setattr(FaultyFs, _name, _faulty(_name))


def kill(op: str) -> None:
    """Die as by kill -9: no handler, no finally."""
    os.kill(os.getpid(), signal.SIGKILL)


def failing(code: int) -> Callable[[str], None]:
    """Fail with this errno."""

    def act(op: str) -> None:
        raise OSError(code, os.strerror(code))

    return act


class FullFs(FaultyFs):
    """From the `at`-th operation on the disk is full, until it is replaced."""

    def strike(self, op: str) -> bool:
        super().strike(op)
        return self.fired and op in TAKES_SPACE


@dataclass
class Server:
    """The far side: files by name, sent right, with one byte flipped, or without regard to ranges."""

    files: Mapping[str, bytes]
    flip: bool = False
    ranges: bool = True
    served: Callable[[int], None] = lambda count: None
    etag: str = '"v1"'

    def pieces(self, name: str, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        data = self.files[name]
        if self.flip:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        for at in range(start, end, PIECE):
            piece = data[at : min(at + PIECE, end)]
            self.served(len(piece))
            yield at, piece

    def listing(self) -> list[StoredFile]:
        return [StoredFile(n, Digest(hashlib.sha256(d).hexdigest()), len(d)) for n, d in self.files.items()]


def gaps(done: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    found, at = [], 0
    for start, end in done:
        if start > at:
            found.append((at, start))
        at = end
    return [*found, (at, size)] if at < size else found


def fetch(server: Server, file: StoredFile, part: Part) -> None:
    """Bring what is missing; the second half first, so that there are holes."""
    if part.validator != server.etag or part.size != file.size:
        if part.present:
            return
        part.reset(server.etag, file.size)
    for start, end in gaps(part.done, file.size):
        middle = (start + end) // 2
        for a, b in ((middle, end), (start, middle)):
            for at, piece in server.pieces(file.name, a, b):
                part.write(at, piece)


Fetch = Callable[[Server, StoredFile, Part], None]


def pull(store: Store, ref: ModelRef, server: Server, *, fetch: Fetch = fetch) -> Artifact:
    """Make `ref` mean the server's files: what the real pull does, without a network."""
    with store.using():
        files = []
        for file in server.listing():
            if not store.has(file.sha256, file.size):
                _bring(store, server, file, fetch)
            files.append(file)
        artifact = Artifact(ref, "gguf", tuple(files), "verified", "test", "2026-01-01T00:00:00+00:00")
        store.publish(artifact)
    store.files(artifact)
    return artifact


def _bring(store: Store, server: Server, file: StoredFile, fetch: Fetch) -> None:
    for last in (False, True):
        with store.part(file.sha256, file.size) as part:
            fetch(server, file, part)
            try:
                part.commit(file.sha256, file.size)
                return
            except Corrupt:
                if last:
                    raise


@dataclass
class Scene:
    """A store that holds the model's old version and another model that shares a file with the new one."""

    rng: Any
    old: dict[str, bytes] = field(default_factory=dict)
    new: dict[str, bytes] = field(default_factory=dict)
    other: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shared = self.rng.randbytes(30_000)
        self.old = {"m.gguf": self.rng.randbytes(100_000)}
        self.new = {"m.gguf": self.rng.randbytes(300_000), "sub/projector.gguf": shared, "x.json": b"{}"}
        self.other = {"o.gguf": shared}

    def build(self, root: Path) -> None:
        store = Store(root)
        pull(store, OTHER, Server(self.other))
        pull(store, REF, Server(self.old))

    def judge(self, root: Path, *, must: Mapping[str, bytes] | None = None) -> list[str]:
        """What is wrong with the store at `root`; with `must`, the model must mean exactly these files now."""
        wrong: list[str] = []
        for blob in sorted((root / "blobs").glob("*")):
            if hashlib.sha256(blob.read_bytes()).hexdigest() != blob.name:
                wrong.append(f"bad bytes are published as {blob.name[:8]}")
        store = Store(root)
        allowed = [must] if must is not None else [self.old, self.new]
        for ref, versions in ((OTHER, [self.other]), (REF, allowed)):
            try:
                artifact = store.find(ref)
                seen = {name: path.read_bytes() for name, path in store.files(artifact).items()}
            except MiyabiError as e:
                wrong.append(f"{ref} does not resolve: {e}")
                continue
            if seen not in versions:
                wrong.append(f"{ref} means other bytes")
        return wrong

    def clean(self, root: Path) -> list[str]:
        """What should not be there after a pull that succeeded."""
        store = Store(root)
        left = [str(p.relative_to(root)) for p in root.glob("parts/*")]
        left += [str(p.relative_to(root)) for p in root.glob("models/*") if p.suffix != ".json"]
        left += [str(p.relative_to(root)) for p in (*root.glob("leases/*"), *root.glob("quarantine/*"))]
        left += [str(p.relative_to(root)) for p in root.iterdir() if p.name.endswith(".tmp")]
        bad = [c for a in store.list() for c in store.verify(a) if not c.ok]
        return [*(f"left over: {p}" for p in left), *(str(c) for c in bad), *(str(p) for p in store.problems())]


def forked(work: Callable[[], int]) -> int:
    """Run `work` in a child; its exit code, or minus the signal that ended it. The child never returns here."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


ENOSPC, EIO = errno.ENOSPC, errno.EIO
