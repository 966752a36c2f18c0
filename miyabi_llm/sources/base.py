"""What every source of models can do, and what it needs of the place it writes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from miyabi_llm.refs import ModelRef
from miyabi_llm.types import Listing, OnEvent, RemoteFile


class Part(Protocol):
    """A file on its way: the few calls of the store's part that a source makes.

    `done` holds the half-open byte ranges already on disk, in order. `validator` is the strong ETag they
    belong to, None when they cannot be continued.
    """

    @property
    def size(self) -> int | None: ...

    @property
    def done(self) -> Sequence[tuple[int, int]]: ...

    @property
    def validator(self) -> str | None: ...

    def reset(self, validator: str | None, size: int | None) -> None:
        """Forget all bytes; what comes now belongs to `validator` and is `size` bytes long."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put all of `data` at `offset`; safe from several threads. Raises OSError or DiskFull."""


@runtime_checkable
class Source(Protocol):
    """A place models come from. One contract test covers all of them.

    `list` asks the network what a name means and downloads no model byte. `fetch` writes one listed file
    into a part, from the start or from where the part stands; checking and publishing is the store's.
    """

    @property
    def scheme(self) -> str: ...

    def list(self, ref: ModelRef) -> Listing:
        """The files behind `ref` at a fixed revision.

        Raises ModelMissing, AccessDenied, NetworkError, Unsafe (only files that run code), BadUsage (which file?).
        """

    def fetch(self, file: RemoteFile, part: Part, on_event: OnEvent) -> None:
        """Write the bytes of `file` into `part`. Raises NetworkError, AccessDenied, ModelMissing, Corrupt, DiskFull."""


PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".keras", ".h5", ".joblib", ".npy", ".npz", ".msgpack")
PROGRAMS = (".py", ".pyc", ".sh", ".so", ".dll", ".dylib", ".exe", ".js", ".jar", ".whl", ".zip", ".tar", ".gz", ".tgz")


def runs_code(name: str) -> bool:
    """Whether a file of this name may execute code when it is loaded."""
    return name.lower().endswith(PICKLES + PROGRAMS)
