"""The header of a model that is not here: only the first bytes of its file are fetched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from miyabi_llm import gguf, sources
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, NetworkError
from miyabi_llm.refs import ModelRef
from miyabi_llm.sources.base import Source
from miyabi_llm.types import RemoteFile, silent

T = TypeVar("T")

MOST = 64 << 20  # bytes of a file's beginning; headers have 0.1 to 20 MB


def headers(ref: ModelRef, settings: Settings) -> dict[str, gguf.Header]:
    """The header of each GGUF file that `ref` means at its source, by file name.

    Raises BadUsage when there is none, Corrupt, and whatever its source raises.
    """
    source = in_order(ref.scheme, settings)
    files = [f for f in source.list(ref).files if is_model(f.name)]
    if not files:
        raise BadUsage(f"{ref} has no GGUF file", hint="Memory is estimated from GGUF headers only.")
    return {f.name: of_file(source, f) for f in files}


def in_order(scheme: str, settings: Settings) -> Source:
    """A source that fetches over one connection: a file's beginning then comes first."""
    return sources.open(scheme, replace(settings, connections=1))


def is_model(name: str) -> bool:
    """Whether a file of this name holds a model's weights in GGUF (and is no projector for images)."""
    base = name.rpartition("/")[2].lower()
    return base.endswith(".gguf") and not base.startswith("mmproj")


def of_file(source: Source, file: RemoteFile) -> gguf.Header:
    """The header of one listed GGUF file; the transfer is broken off as soon as it is whole."""
    return beginning(source, file, gguf.read)


def beginning(source: Source, file: RemoteFile, read: Callable[[bytes, int], T]) -> T:
    """What `read` makes of the file's first bytes and its size; it raises gguf.NeedMore for more of them."""
    head = _Head(file.size, read)
    with contextlib.suppress(_Enough):
        source.fetch(file, head, silent)
    if head.header is None:
        raise NetworkError(f"{file.name}: the source ended before the header did")
    return head.header


def whole(source: Source, file: RemoteFile, most: int) -> bytes:
    """A small file's bytes. Raises NetworkError when it is larger than `most`, or the source ends before it does."""
    if file.size is None or file.size > most:
        raise NetworkError(f"{file.name}: {file.size or 'unknown'} bytes are too many for such a file")

    def all_of_it(data: bytes, size: int) -> bytes:
        if len(data) < size:
            raise gguf.NeedMore(size)
        return data

    return beginning(source, file, all_of_it)


class _Enough(Exception):
    """The header is whole: nothing more is wanted."""


@dataclass
class _Head(Generic[T]):
    """A part that keeps the first bytes of a file, in order, until a header can be read from them."""

    size: int | None
    read: Callable[[bytes, int], T]
    validator: str | None = None
    data: bytearray = field(default_factory=bytearray)
    need: int = 1 << 16
    header: T | None = None

    @property
    def done(self) -> list[tuple[int, int]]:
        return [(0, len(self.data))] if self.data else []

    def reset(self, validator: str | None, size: int | None) -> None:
        self.validator, self.size = validator, size
        self.data.clear()

    def write(self, offset: int, data: bytes | memoryview) -> None:
        if self.header is not None:
            raise _Enough
        if offset > len(self.data):
            raise NetworkError("the beginning of the file did not come first")
        self.data[offset:] = data
        if self.size is None:
            raise NetworkError("the source does not say how long the file is")
        if len(self.data) >= min(self.need, self.size):
            self._try(self.size)

    def _try(self, size: int) -> None:
        try:
            self.header = self.read(bytes(self.data), size)
        except gguf.NeedMore as more:
            self.need = max(more.need, 2 * len(self.data))
            if more.need > MOST:
                raise NetworkError(f"the header has more than {MOST} bytes") from None
        else:
            raise _Enough
