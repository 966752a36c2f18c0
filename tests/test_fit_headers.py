"""Headers put together from shards, and fetched from a source without the rest of the file."""

from __future__ import annotations

from dataclasses import replace

import pytest

from miyabi_llm import gguf, shards
from miyabi_llm.errors import Corrupt
from miyabi_llm.refs import ModelRef
from miyabi_llm.sources import peek
from miyabi_llm.sources.base import Part
from miyabi_llm.types import Listing, OnEvent, RemoteFile
from tests.ggufs import tiny


def parts(count: int = 3) -> dict[str, gguf.Header]:
    found = {}
    for i in range(count):
        data = tiny(extra={"split.no": i, "split.count": count, "split.tensors.count": 6 * count})
        h = gguf.read(data, len(data))
        renamed = tuple(t._replace(name=f"{i}.{t.name}") for t in h.tensors)
        found[f"m-{i + 1:05}-of-{count:05}.gguf"] = replace(h, tensors=renamed)
    return found


def test_shards_are_one_model() -> None:
    whole = shards.join(parts())
    assert len(whole.tensors) == 18
    assert whole.weight_bytes == 3 * next(iter(parts().values())).weight_bytes
    one = next(iter(parts(1).values()))
    assert shards.join({"any name.gguf": replace(one, kv={})}).tensors == one.tensors


def renamed(old: str, new: str) -> dict[str, gguf.Header]:
    return {name.replace(old, new): h for name, h in parts().items()}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({k: v for k, v in parts().items() if "00003" not in k[:8]}, "2 shards are here, the model has 3"),
        ({k: v for k, v in parts().items() if "00002" not in k[:8]}, "says it is number 3 of 3"),
        ({k: v for k, v in parts().items() if "00001" not in k[:8]}, "says it is number 2 of 3"),
        (parts() | {"m-00004-of-00003.gguf": parts()["m-00003-of-00003.gguf"]}, "says it is number 3"),
        (renamed("m-00002", "n-00002"), "says it is|another model"),
        (renamed("m-00003", "n-00003"), "another model"),
        (renamed("m-", "../m-"), "is not named"),
        (renamed("m-00001-of-00003", "first"), "is not named"),
        (parts() | {"m-00002-of-00003.gguf": next(iter(parts(1).values()))}, "says it is no shard"),
        (parts() | {"m-00002-of-00003.gguf": replace(parts()["m-00002-of-00003.gguf"], tensors=())}, "hold 12 tensors"),
    ],
)
def test_broken_sets_of_shards_are_refused(found: dict[str, gguf.Header], says: str) -> None:
    with pytest.raises(Corrupt, match=says):
        shards.join(found)


class Served:
    """A source that gives a file piece by piece and counts what was taken; it fails once on the way."""

    scheme = "test"

    def __init__(self, data: bytes, *, piece: int = 1000) -> None:
        self.data, self.piece, self.taken = data, piece, 0

    def list(self, ref: ModelRef) -> Listing:
        return Listing(ref, ref, "gguf", (RemoteFile("m.gguf", len(self.data), None),))

    def fetch(self, file: RemoteFile, part: Part, on_event: OnEvent) -> None:
        part.reset('"v"', file.size)
        part.write(0, self.data[: self.piece])  # the connection breaks here: the piece comes again
        for at in range(0, len(self.data), self.piece):
            self.taken = at + self.piece
            part.write(at, self.data[at : at + self.piece])


def test_only_the_beginning_of_a_remote_file_is_fetched() -> None:
    data = tiny(tokens=20_000)
    data += bytes(4_000_000)
    source = Served(data)
    header = peek.of_file(source, source.list(ModelRef.parse("x")).files[0])
    assert header == gguf.read(data, len(data))
    assert header.data_offset < source.taken < 3 * header.data_offset


def test_a_remote_file_that_is_none() -> None:
    for data, error in ((b"<html>" + bytes(100_000), Corrupt), (tiny()[:800], Corrupt), (b"GGUF", Corrupt)):
        source = Served(data)
        with pytest.raises(error):
            peek.of_file(source, source.list(ModelRef.parse("x")).files[0])
