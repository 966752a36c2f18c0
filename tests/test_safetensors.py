"""The safetensors reader: what the format allows is read, everything else refused fast and small."""

from __future__ import annotations

import io
import json
import struct
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm import safetensors
from miyabi_llm.errors import Corrupt
from miyabi_llm.gguf import NeedMore


def pack(body: Any, data: int = 0) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(data)


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BODY = {
    "__metadata__": {"format": "pt"},
    "b": entry("BF16", [2, 3], 24, 36),
    "a": entry("F32", [6], 0, 24),
    "empty": entry("F16", [0, 4], 36, 36),
    "scalar": entry("I64", [], 36, 44),
}
SOUND = pack(BODY, 44)


def test_a_sound_header() -> None:
    h = safetensors.read(SOUND, len(SOUND))
    assert [t.name for t in h.tensors] == ["a", "b", "empty", "scalar"]
    assert h.tensors[1] == ("b", "BF16", (2, 3), 24, 12)
    assert h.metadata == {"format": "pt"}
    assert h.histogram == {"F32": (1, 24), "BF16": (1, 12), "I64": (1, 8), "F16": (1, 0)}
    assert safetensors.read(io.BytesIO(SOUND), len(SOUND)) == h


def test_a_padded_header_and_one_without_tensors() -> None:
    raw = json.dumps(BODY).encode() + b"   "
    assert len(safetensors.read(pack(raw, 44), len(raw) + 52).tensors) == 4
    assert safetensors.read(pack({}), 10).tensors == ()


def test_truncated_at_every_byte() -> None:
    for n in range(len(SOUND)):
        with pytest.raises((Corrupt, NeedMore)):
            safetensors.read(SOUND[:n], n)
        if n < len(SOUND) - 44:
            with pytest.raises(NeedMore) as more:
                safetensors.read(SOUND[:n], len(SOUND))
            assert n < more.value.need <= len(SOUND) - 44


HOSTILE: list[tuple[bytes, str]] = [
    (b"", "too short"),
    (struct.pack("<Q", 2**63) + b"{}", "a header of"),
    (struct.pack("<Q", 100) + b"{}" + bytes(50), "a header of"),
    (pack(b"[]" + bytes(9)), "not with a brace"),
    (pack(b"{]" + bytes(9)), "Expecting"),
    (pack(b'{"a":1}'), "no dtype, shape"),
    (pack(b'{"a":\xff}'), "utf-8"),
    (pack(b'{"a":NaN}'), "no integer"),
    (pack(b'{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', 4), "no integer"),
    (pack(b'{"a":' + b"9" * 5000 + b"}"), "digits"),
    (pack(b'{"a":' * 500_000 + b"}" * 500_000), "brackets"),
    (pack(b'{"a":' * 900 + b"1" + b"}" * 900), "data_offsets"),
    (pack(b'{"a":' + b"[" * 3_000_000 + b"}"), "brackets"),
    (
        pack(
            b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        ),
        "twice",
    ),
    (pack({"__metadata__": {"a": 1}}), "__metadata__"),
    (pack({"__metadata__": []}), "__metadata__"),
    (pack({"a": entry("F31", [1], 0, 4)}, 4), "unknown dtype"),
    (pack({"a": entry("F32", [1], 0, 4) | {"x": 1}}, 4), "or more"),
    (pack({"a": entry("F32", [-1], 0, 4)}, 4), "impossible shape"),
    (pack({"a": entry("F32", [True], 0, 4)}, 4), "impossible shape"),
    (pack({"a": entry("F32", [2**32, 2**32], 0, 4)}, 4), "is not bytes"),
    (pack({"a": entry("F32", [1] * 17, 0, 4)}, 4), "impossible shape"),
    (pack({"a": entry("F32", [1], 0, 8)}, 8), "is not bytes"),
    (pack({"a": entry("F32", [1], 4, 0)}, 4), "is not bytes"),
    (pack({"a": entry("F32", [1], -4, 0)}, 4), "is not bytes"),
    (pack({"a": entry("F4", [3], 0, 1)}, 1), "is not bytes"),
    (pack({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, 8), "overlaps"),
    (pack({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)}, 8), "overlaps"),
    (pack({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, 12), "hole of 4"),
    (pack({"a": entry("F32", [1], 4, 8)}, 8), "hole of 4"),
    (pack({"a": entry("F32", [1], 0, 4)}, 5), "the tensors end here"),
    (pack({"a": entry("F32", [1], 0, 4)}, 3), "the tensors end here"),
]


@pytest.mark.parametrize(("data", "says"), HOSTILE, ids=[f"{i}-{s[:16]}" for i, (_, s) in enumerate(HOSTILE)])
def test_hostile_headers_are_refused(data: bytes, says: str) -> None:
    start = time.process_time()
    tracemalloc.start()
    with pytest.raises(Corrupt, match=says):
        safetensors.read(data, len(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20
    assert time.process_time() - start < 1


def test_a_header_of_100_megabytes_is_refused_unread() -> None:
    class Endless(io.RawIOBase):
        def seek(self, at: int, whence: int = 0) -> int:
            return at

        def read(self, n: int = -1) -> bytes:
            assert n == 8
            return struct.pack("<Q", 100_000_000)

    with pytest.raises(Corrupt, match="at most"):
        safetensors.read(Endless(), 1 << 40)  # type: ignore[arg-type]


@settings(max_examples=300, deadline=1000)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated_bytes(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SOUND)
    for at, byte in changes:
        data[at % len(data)] = byte
    try:
        h = safetensors.read(bytes(data), len(data))
    except (Corrupt, NeedMore):
        return
    assert sum(t.nbytes for t in h.tensors) + h.data_offset == len(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F4", "x"]) | JSON,
        "shape": st.lists(st.integers(-1, 4)) | JSON,
        "data_offsets": st.lists(st.integers(-1, 70), min_size=2, max_size=2) | JSON,
    }
)


@settings(max_examples=300, deadline=1000)
@given(st.dictionaries(st.text(max_size=6), TENSOR | JSON, max_size=4), st.integers(0, 70))
def test_generated_headers(body: dict[str, Any], rest: int) -> None:
    data = pack(body, rest)
    try:
        safetensors.read(data, len(data))
    except Corrupt:
        return


def test_an_index() -> None:
    text = json.dumps({"metadata": {"total_size": 8}, "weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors"}})
    index = safetensors.parse_index(text)
    assert index.shards == ("m-1.safetensors", "m-2.safetensors")
    assert index.total_size == 8
    assert (
        safetensors.parse_index(
            json.dumps({"metadata": {"total_size": 1.5}, "weight_map": {"a": "m.safetensors"}})
        ).total_size
        is None
    )


@pytest.mark.parametrize(
    "name",
    [
        "../m.safetensors",
        "/m.safetensors",
        "a/m.safetensors",
        "C:m.safetensors",
        "m.bin",
        "",
        "a\\m.safetensors",
        "\x00.safetensors",
        ".safetensors",
        3,
        None,
        ["m"],
    ],
)
def test_an_index_names_plain_files_only(name: Any) -> None:
    with pytest.raises(Corrupt, match="shard"):
        safetensors.parse_index(json.dumps({"weight_map": {"a": name}}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": "m.safetensors", "a": "m.safetensors"}}',
        "[" * 200_000,
    ],
)
def test_a_broken_index(text: str) -> None:
    with pytest.raises(Corrupt):
        safetensors.parse_index(text)
