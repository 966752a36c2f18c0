"""The GGUF reader: sound headers read right, hostile ones refused fast and small."""

from __future__ import annotations

import contextlib
import io
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm import ggml, gguf
from miyabi_llm.errors import Corrupt
from tests.ggufs import ARRAY, BOOL, F32, I32, STRING, U8, U32, U64, header, kv, model, string, tensor, tiny

SOUND = tiny()
MIB = 1 << 20


def read(data: bytes, *, whole: bool = False) -> gguf.Header:
    return gguf.read(data, len(data), whole_arrays=whole)


def refused(data: bytes, says: str, *, size: int | None = None) -> Corrupt:
    """The reader refuses `data` with a Corrupt that says so, within its bounds of time and memory."""
    with bounded(), pytest.raises(Corrupt, match=says) as caught:
        gguf.read(data, len(data) if size is None else size)
    assert isinstance(caught.value.details["offset"], int)
    return caught.value


class bounded:
    """At most one second and 64 MiB."""

    def __enter__(self) -> None:
        tracemalloc.start()
        self.start = time.process_time()

    def __exit__(self, *_: object) -> None:
        seconds, peak = time.process_time() - self.start, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 * MIB
        assert seconds < 4  # tracemalloc slows Python by about five; the bare reader stays under one


def test_a_sound_header() -> None:
    h = read(SOUND)
    assert (h.version, h.alignment, h.architecture, h.layers, h.context_length) == (3, 32, "qwen2", 2, 4096)
    assert (h.vocab_size, h.eos, h.split, h.file_type) == (40, 1, None, "Q8_0")
    assert h.chat_template == "{{ messages[0].content }}"
    assert h.kv["tokenizer.ggml.add_bos_token"] is False
    assert h.parameters == 64 * 40 + 64 + 2 * (64 * 128 + 64)
    assert h.histogram["Q8_0"] == (3, 68 * (40 + 256))
    assert h.weight_bytes == sum(t.nbytes for t in h.tensors) <= len(SOUND) - h.data_offset
    assert h.data_offset % 32 == 0
    assert h.number("{arch}.attention.head_count_kv") == 2
    assert h.number("general.name") is None


def test_a_file_and_its_bytes_read_the_same() -> None:
    assert gguf.read(io.BytesIO(SOUND), len(SOUND)) == read(SOUND)


def test_a_long_array_is_summarised_unless_wanted_whole() -> None:
    data = tiny(tokens=3000)
    tokens = read(data).kv["tokenizer.ggml.tokens"]
    assert isinstance(tokens, gguf.Array)
    assert (tokens.kind, tokens.length, tokens.items, tokens.whole) == (
        "str",
        3000,
        tuple(f"t{i}" for i in range(8)),
        False,
    )
    types = read(data).kv["tokenizer.ggml.token_type"]
    assert types == gguf.Array("u32", 3000, (1,) * 8)
    whole = read(data, whole=True).kv["tokenizer.ggml.tokens"]
    assert isinstance(whole, gguf.Array)
    assert whole.whole
    assert whole.items[-1] == "t2999"
    assert read(data).vocab_size == 3000


def test_every_scalar_type() -> None:
    values = [(0, 255), (1, -128), (2, 65535), (3, -32768), (4, 2**32 - 1), (5, -(2**31)), (6, 0.5), (7, True)]
    values += [(8, "雅"), (10, 2**64 - 1), (11, -(2**63)), (12, 1e300)]
    h = read(header([kv(f"k{kind}", v, kind) for kind, v in values]))
    assert {k: h.kv[k] for k in h.kv} == {f"k{kind}": v for kind, v in values}


def test_per_layer_numbers() -> None:
    h = read(header([kv("general.architecture", "x"), kv("x.n", [1, 2, 0], I32), kv("x.one", 7)]))
    assert h.numbers("{arch}.n") == (1, 2, 0)
    assert h.numbers("{arch}.one") == (7,)
    assert h.numbers("{arch}.none") == ()


def test_split_is_told() -> None:
    assert read(tiny(extra={"split.no": 1, "split.count": 3})).split == (1, 3)
    assert read(tiny(extra={"split.count": 1})).split is None


def test_guessed_and_unknown_file_types() -> None:
    assert read(tiny(extra={"general.file_type": 1024 + 15})).file_type == "Q4_K_M"
    assert read(tiny(extra={"general.file_type": 4})).file_type is None


@pytest.mark.parametrize("number", ggml.TYPES)
def test_every_tensor_type_has_its_size(number: int) -> None:
    _, block, size = ggml.TYPES[number]
    h = read(model({}, [("a.weight", (block * 2, 3), number, size * 6)]))
    assert h.tensors[0].nbytes == size * 6
    assert h.tensors[0].elements == block * 6
    if block > 1:
        refused(model({}, [("a.weight", (block * 2 - 1, 3), number, size * 6)]), "impossible shape")


def attempt(prefix: bytes, size: int, wanted: list[int]) -> gguf.Header | None:
    try:
        return gguf.read(prefix, size)
    except gguf.NeedMore as more:
        wanted.append(more.need)
        return None


def test_a_prefix_asks_for_more_until_the_header_is_whole() -> None:
    data = tiny(tokens=1500)
    wanted = [24]
    while (h := attempt(data[: wanted[-1]], len(data), wanted)) is None:
        pass
    assert h == read(data)
    assert sorted(set(wanted)) == wanted
    assert wanted[-1] <= h.data_offset


def test_truncated_at_every_byte() -> None:
    """As a whole file it is corrupt, as a prefix it asks for more; nothing else happens."""
    offset = read(SOUND).data_offset
    for n in range(min(4096, len(SOUND))):
        with pytest.raises(Corrupt):
            gguf.read(SOUND[:n], n)
        with pytest.raises(Corrupt):
            gguf.read(io.BytesIO(SOUND[:n]), n)
        if n < offset - 31:
            with pytest.raises(gguf.NeedMore) as more:
                gguf.read(SOUND[:n], len(SOUND))
            assert n < more.value.need <= offset


def pre(kvs: int = 0, tensors: int = 0, *, magic: bytes = b"GGUF", version: int = 3) -> bytes:
    return struct.pack("<4sIQQ", magic, version, tensors, kvs)


def raw_array(kind: int, length: int, key: str = "a") -> bytes:
    return string(key) + struct.pack("<IIQ", ARRAY, kind, length)


PAD = bytes(400)
HOSTILE: list[tuple[bytes, str]] = [
    (b"", "too short"),
    (b"GGUF", "too short"),
    (pre(magic=b"GGML") + PAD, "not with 'GGUF'"),
    (b"FUGG" + pre()[4:] + PAD, "not with 'GGUF'"),
    (b"<!DOCTYPE html>" + PAD, "not with 'GGUF'"),
    (pre(version=0) + PAD, "version 0"),
    (pre(version=1) + PAD, "version 1"),
    (pre(version=4) + PAD, "version 4"),
    (pre(version=3 << 24) + PAD, "other byte order"),
    (pre(2**63) + PAD, "keys are announced"),
    (pre(2**64 - 1) + PAD, "keys are announced"),
    (pre(65_536) + PAD, "need 851992 bytes"),
    (pre(0, 2**63) + PAD, "tensors are announced"),
    (pre(0, 65_536) + PAD, "need 2"),
    (pre(1) + struct.pack("<Q", 2**60) + PAD, "a key of"),
    (pre(1) + struct.pack("<Q", 399) + PAD, "past the end"),
    (pre(1) + string("") + PAD, "a key is empty"),
    (pre(1) + string(b"\xff\xfe") + PAD, "not UTF-8"),
    (pre(1) + string("k") + struct.pack("<I", 13) + PAD, "unknown type 13"),
    (pre(1) + string("k") + struct.pack("<I", 2**32 - 1) + PAD, "unknown type"),
    (pre(1) + string("k") + struct.pack("<IQ", STRING, 2**60) + PAD, "longer than"),
    (pre(1) + string("k") + struct.pack("<IB", BOOL, 2) + PAD, "truth value 2"),
    (pre(1) + raw_array(ARRAY, 1) + PAD, "array inside an array"),
    (pre(1) + raw_array(99, 1) + PAD, "unknown type 99"),
    (pre(1) + raw_array(U8, 2**63) + PAD, "more than the rest"),
    (pre(1) + raw_array(U64, 2**61) + PAD, "more than the rest"),
    (pre(1) + raw_array(STRING, 2**63) + PAD, "more than the rest"),
    (pre(1) + raw_array(STRING, 51) + PAD, "more than the rest"),
    (pre(1) + raw_array(STRING, 2) + struct.pack("<Q", 2**63) + PAD, "at most"),
    (pre(1) + raw_array(STRING, 2) + struct.pack("<Q", 1000) + PAD, "past the end"),
    (pre(2) + kv("k", 1) + kv("k", 2) + PAD, "there twice"),
    (pre(1) + kv("general.alignment", 0) + PAD, "no power of two"),
    (pre(1) + kv("general.alignment", 24) + PAD, "no power of two"),
    (pre(1) + kv("general.alignment", 2**31) + PAD, "no power of two"),
    (pre(1) + kv("general.alignment", 32, U64) + PAD, "no power of two"),
    (pre(1) + kv("general.alignment", "32") + PAD, "no power of two"),
    (pre(0, 1) + tensor("t", ()) + PAD, "0 dimensions"),
    (pre(0, 1) + tensor("t", (1,) * 5) + PAD, "5 dimensions"),
    (pre(0, 1) + string("t") + struct.pack("<I", 2**32 - 1) + PAD, "dimensions"),
    (pre(0, 1) + tensor("t", (0,)) + PAD, "impossible shape"),
    (pre(0, 1) + tensor("t", (2**32, 2**32)) + PAD, "impossible shape"),
    (pre(0, 1) + tensor("t", (2**63,)) + PAD, "impossible shape"),
    (pre(0, 1) + tensor("t", (2**16,) * 4) + PAD, "impossible shape"),
    (pre(0, 1) + tensor("t", (33,), 8) + PAD, "impossible shape"),
    (pre(0, 1) + tensor("t", (32,), 4) + PAD, "unknown type 4"),
    (pre(0, 1) + tensor("t", (32,), 43) + PAD, "unknown type 43"),
    (pre(0, 1) + tensor("t" * 64, (1,)) + PAD, "longer than 63"),
    (pre(0, 1) + tensor("t", (1,), 0, 1) + PAD, "no multiple of 32"),
    (pre(0, 1) + tensor("t", (1,), 0, 2**63) + PAD, "past the end"),
    (pre(0, 1) + tensor("t", (1000,)) + PAD, "past the end"),
    (pre(0, 2) + tensor("t", (4,)) + tensor("u", (4,)) + PAD, "overlaps"),
    (pre(0, 2) + tensor("t", (16,)) + tensor("u", (4,), 0, 32) + PAD, "overlaps"),
    (pre(0, 2) + tensor("t", (4,)) + tensor("t", (4,), 0, 32) + PAD, "there twice"),
]


@pytest.mark.parametrize(("data", "says"), HOSTILE, ids=[f"{i}-{s[:20]}" for i, (_, s) in enumerate(HOSTILE)])
def test_hostile_headers_are_refused(data: bytes, says: str) -> None:
    refused(data, says)


class Zeros(io.RawIOBase):
    """A file of 2^40 bytes: `head`, then zeros; counts what is read of it."""

    SIZE = 1 << 40

    def __init__(self, head: bytes) -> None:
        self.head, self.at, self.given = head, 0, 0

    def seek(self, at: int, whence: int = 0) -> int:
        self.at = at
        return at

    def read(self, n: int = -1) -> bytes:
        assert 0 <= n <= 2 * MIB
        data = self.head[self.at : self.at + n]
        data += bytes(n - len(data))
        self.at += n
        self.given += n
        return data


def heavy() -> Iterator[tuple[str, bytes]]:
    """Headers that a file of any size could back: only the reader's own limits stop them."""
    yield "strings", pre(1) + raw_array(STRING, 2**36)
    yield "many arrays of strings", pre(65_000) + b"".join(raw_array(STRING, 100_000, "k") for _ in range(1)) + PAD
    yield "numbers", pre(1) + raw_array(U8, 2**39)
    yield "long values", pre(40) + b"".join(kv(f"k{i}", "x" * (MIB - 1)) for i in range(40))
    yield "short arrays", pre(4000) + b"".join(kv(f"k{i}", [0.5] * 1024, F32) for i in range(4000))
    yield "keys", pre(65_536) + b"".join(kv(f"k{i:05}", 1) for i in range(65_536))
    names = [tensor(f"{i:063}", (1, 1, 1, 1), 0, 32 * i) for i in range(65_536)]
    yield "tensors", pre(0, 65_536) + b"".join(names)
    yield "tensors in reverse", pre(0, 65_536) + b"".join(reversed(names))


@pytest.mark.parametrize(("name", "head"), list(heavy()), ids=[name for name, _ in heavy()])
def test_heavy_headers_stay_within_bounds(name: str, head: bytes) -> None:
    source = Zeros(head)
    start = time.process_time()
    with contextlib.suppress(Corrupt):
        gguf.read(source, Zeros.SIZE)  # type: ignore[arg-type]
    assert time.process_time() - start < 2  # under one second on an idle machine
    with bounded(), contextlib.suppress(Corrupt):
        gguf.read(source, Zeros.SIZE)  # type: ignore[arg-type]


def sane(data: bytes, size: int) -> None:
    """Whatever the bytes: a header, Corrupt or NeedMore."""
    try:
        h = gguf.read(data, size)
    except (Corrupt, gguf.NeedMore):
        return
    assert all(h.data_offset + t.offset + t.nbytes <= size for t in h.tensors)
    assert h.parameters >= 0
    assert h.architecture is not None
    _ = h.file_type, h.eos, h.split, h.vocab_size, h.context_length, h.histogram, h.chat_template


@settings(max_examples=400, deadline=1000)
@given(st.lists(st.tuples(st.integers(0, 2200), st.integers(0, 255)), min_size=1, max_size=8))
def test_mutated_bytes(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SOUND)
    for at, byte in changes:
        data[at % len(data)] = byte
    sane(bytes(data), len(data))


@settings(max_examples=200, deadline=1000)
@given(st.integers(0, 2200), st.binary(max_size=24), st.booleans())
def test_inserted_and_cut_bytes(at: int, extra: bytes, cut: bool) -> None:
    data = SOUND[:at] + extra + SOUND[at + (len(extra) if cut else 0) :]
    sane(data, len(data))
    sane(data[:at], len(data))


ENTRY: st.SearchStrategy[bytes] = st.builds(
    lambda key, kind, rest: string(key) + struct.pack("<I", kind) + rest,
    st.binary(max_size=8),
    st.one_of(st.integers(0, 14), st.integers(0, 2**32 - 1)),
    st.one_of(
        st.binary(max_size=24),
        st.builds(lambda n, b: struct.pack("<Q", n) + b, st.integers(0, 2**64 - 1), st.binary(max_size=16)),
    ),
)
TENSOR: st.SearchStrategy[bytes] = st.builds(
    lambda name, dims, kind, offset: string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset),
    st.binary(max_size=8),
    st.lists(st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1)), max_size=6),
    st.integers(0, 50),
    st.one_of(st.integers(0, 8).map(lambda n: 32 * n), st.integers(0, 2**64 - 1)),
)


@settings(max_examples=400, deadline=1000)
@given(st.lists(ENTRY, max_size=4), st.lists(TENSOR, max_size=4), st.integers(0, 600))
def test_generated_headers(kvs: list[bytes], tensors: list[bytes], rest: int) -> None:
    data = header(kvs, tensors) + bytes(rest)
    sane(data, len(data))
    sane(data, len(data) + 10_000)


@pytest.mark.parametrize("whole", [False, True])
def test_a_vocabulary_of_150000_tokens_reads_fast(whole: bool) -> None:
    data = tiny(tokens=150_000)
    start = time.process_time()
    read(data, whole=whole)
    assert time.process_time() - start < (1.5 if whole else 0.3)


def test_overlap_is_found_in_any_order() -> None:
    infos: Callable[[int, int], list[bytes]] = lambda a, b: [tensor("a", (8,), 0, a), tensor("b", (8,), 0, b)]  # noqa: E731
    good = header([], infos(32, 0)) + bytes(200)
    assert {t.name: t.offset for t in read(good).tensors} == {"a": 32, "b": 0}
    refused(header([], infos(0, 0)) + bytes(200), "overlaps")


def test_u32_is_what_alignment_must_be() -> None:
    data = model({"general.alignment": 64}, [("a.weight", (4,), 0, 16), ("b.weight", (4,), 0, 16)], align=64)
    h = read(data)
    assert (h.alignment, h.data_offset % 64, h.tensors[1].offset) == (64, 0, 64)
    assert kv("general.alignment", 64) == kv("general.alignment", 64, U32)
