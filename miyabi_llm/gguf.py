"""A bounded reader of GGUF headers: every count is checked against the bytes that are there before anything is read.

The layout is that of llama.cpp's `ggml/src/gguf.cpp`; what it refuses, this refuses too, and earlier.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO, Final, NamedTuple

from miyabi_llm.errors import Corrupt
from miyabi_llm.ggml import FILE_TYPES, TYPES

MAX_KV: Final = 65_536
MAX_TENSORS: Final = 65_536  # the largest published models have a few thousand; keeps a hostile header under 64 MiB
MAX_STRING: Final = 1 << 20  # bytes in one string; the longest chat templates have some tens of thousands
MAX_KEPT: Final = 8 << 20  # bytes of all keys and values that are kept
MAX_TEXT: Final = 64 << 20  # bytes of text in all arrays
MAX_ARRAY_STRINGS: Final = (
    1 << 21
)  # strings in all arrays; a vocabulary of 262,144 tokens with its merges has < 800,000
MAX_NAME: Final = 63  # GGML_MAX_NAME - 1
MAX_DIMS: Final = 4
SMALL: Final = 1_024  # an array of at most so many elements is always read whole
HEAD: Final = 8  # elements kept of a longer one
CHUNK: Final = 1 << 20

_STRING, _ARRAY, _BOOL, _U32 = 8, 9, 7, 4
_SCALARS: Final[dict[int, tuple[str, struct.Struct]]] = {
    0: ("u8", struct.Struct("<B")),
    1: ("i8", struct.Struct("<b")),
    2: ("u16", struct.Struct("<H")),
    3: ("i16", struct.Struct("<h")),
    4: ("u32", struct.Struct("<I")),
    5: ("i32", struct.Struct("<i")),
    6: ("f32", struct.Struct("<f")),
    7: ("bool", struct.Struct("<B")),
    10: ("u64", struct.Struct("<Q")),
    11: ("i64", struct.Struct("<q")),
    12: ("f64", struct.Struct("<d")),
}
_U64 = _SCALARS[10][1]
_HEADER = struct.Struct("<4sIQQ")
_NOT_GGUF = "The file is damaged or no GGUF model; pull it again."

Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True)
class Array:
    """An array of a header: its element type, its length and its first elements (all of a short one)."""

    kind: str
    length: int
    items: tuple[Scalar, ...]

    @property
    def whole(self) -> bool:
        """Whether `items` has every element."""
        return len(self.items) == self.length


Value = Scalar | Array


class TensorInfo(NamedTuple):
    """One tensor: `shape` as ggml counts it (row length first), `offset` from the start of the tensor data."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        n = 1
        for dim in self.shape:
            n *= dim
        return n


class NeedMore(Exception):
    """The prefix ends inside the header: read at least the first `need` bytes of the file and try again."""

    def __init__(self, need: int) -> None:
        super().__init__(f"the header goes on: at least {need} bytes are needed")
        self.need = need


@dataclass(frozen=True)
class Header:
    """A GGUF header. `data_offset` is where the tensor data starts in the file, `size` the file's bytes."""

    version: int
    kv: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    alignment: int
    size: int

    def text(self, key: str) -> str | None:
        """The string at `key`, or None."""
        value = self.kv.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """The integer at `key`, or None; `{arch}` in the key stands for the architecture."""
        value = self.kv.get(key.replace("{arch}", self.architecture))
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def numbers(self, key: str) -> tuple[int, ...]:
        """The integers at `key`: one per layer, or the one value, or none."""
        value = self.kv.get(key.replace("{arch}", self.architecture))
        items = value.items if isinstance(value, Array) and value.whole else (value,)
        return tuple(int(v) for v in items if isinstance(v, int))

    @property
    def architecture(self) -> str:
        """`general.architecture`, such as qwen2; empty when it is not said."""
        return self.text("general.architecture") or ""

    @cached_property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(t.elements for t in self.tensors)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(t.nbytes for t in self.tensors)

    @property
    def context_length(self) -> int | None:
        """Tokens the model was trained for."""
        return self.number("{arch}.context_length")

    @property
    def layers(self) -> int | None:
        """Blocks of the network."""
        return self.number("{arch}.block_count")

    @property
    def vocab_size(self) -> int | None:
        """Tokens in the vocabulary."""
        tokens = self.kv.get("tokenizer.ggml.tokens")
        return tokens.length if isinstance(tokens, Array) else self.number("{arch}.vocab_size")

    @property
    def file_type(self) -> str | None:
        """The label of the quantization, such as Q4_K_M. `histogram` says what the tensors really are."""
        number = self.number("general.file_type")
        return None if number is None else FILE_TYPES.get(number & ~1024)  # 1024: guessed

    @cached_property
    def histogram(self) -> dict[str, tuple[int, int]]:
        """Tensor type -> (tensors, bytes), most bytes first."""
        found: dict[str, tuple[int, int]] = {}
        for t in self.tensors:
            n, size = found.get(t.type, (0, 0))
            found[t.type] = (n + 1, size + t.nbytes)
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))

    @property
    def chat_template(self) -> str | None:
        """The template that turns messages into a prompt, or None for a base model."""
        return self.text("tokenizer.chat_template")

    @property
    def eos(self) -> int | None:
        """The token that ends an answer."""
        return self.number("tokenizer.ggml.eos_token_id")

    @property
    def split(self) -> tuple[int, int] | None:
        """(index from 0, shards in all) when the model is split over files, else None."""
        count = self.number("split.count")
        return (self.number("split.no") or 0, count) if count is not None and count > 1 else None


def read(source: BinaryIO | bytes | bytearray | memoryview, size: int, *, whole_arrays: bool = False) -> Header:
    """Read the header of a GGUF file of `size` bytes.

    `source` may hold only the first bytes of the file: NeedMore then says how many to bring. An array of more than
    1,024 elements comes as its length and first 8 elements unless `whole_arrays`. Raises Corrupt with the offset.
    """
    cursor = _Cursor(source, size)
    tensors_n, version, kv_n = _preamble(cursor)
    kv: dict[str, Value] = {}
    alignment = 32  # GGUF_DEFAULT_ALIGNMENT
    for _ in range(kv_n):
        at = cursor.pos
        key = cursor.string("a key", MAX_STRING, errors="strict")
        if not key or key in kv:
            raise _corrupt(at, f"key {key[:80]!r} is there twice" if key else "a key is empty")
        kind = cursor.u32()
        kv[key] = _array(cursor, key, whole=whole_arrays) if kind == _ARRAY else _scalar(cursor, kind, key)
        if key == "general.alignment":
            alignment = _alignment(kv[key], kind, at)
    tensors = tuple(_tensor(cursor, alignment) for _ in range(tensors_n))
    data_offset = cursor.pos if not tensors else -(-cursor.pos // alignment) * alignment
    _check_layout(tensors, data_offset, size)
    return Header(version, kv, tensors, data_offset, alignment, size)


def _corrupt(at: int, what: str) -> Corrupt:
    return Corrupt(f"GGUF header, byte {at}: {what}", hint=_NOT_GGUF, offset=at)


class _Cursor:
    """Reads forward through the source in a window of about 1 MiB; never past `size`."""

    def __init__(self, source: BinaryIO | bytes | bytearray | memoryview, size: int) -> None:
        self._file = None if isinstance(source, bytes | bytearray | memoryview) else source
        self._data = memoryview(source) if isinstance(source, bytes | bytearray | memoryview) else memoryview(b"")
        self._base = 0
        self.size = size
        self.pos = 0
        self.kept = 0
        self.text = 0
        self.strings = 0

    def window(self, at: int, n: int, what: str) -> tuple[memoryview, int]:
        """A buffer and the file offset of its first byte, so that bytes [at, at + n) lie in it."""
        if at + n > self.size:
            raise _corrupt(at, f"{what} of {n} bytes goes past the end of the file ({self.size} bytes)")
        if not self._base <= at <= at + n <= self._base + len(self._data):
            if self._file is None:
                raise NeedMore(at + n)
            self._file.seek(at)
            want, parts = max(n, min(CHUNK, self.size - at)), []
            while want > 0 and (part := self._file.read(want)):
                parts.append(part)
                want -= len(part)
            self._data, self._base = memoryview(b"".join(parts)), at
            if len(self._data) < n:
                raise NeedMore(at + n)
        return self._data, self._base

    def take(self, n: int, what: str) -> memoryview:
        """The next `n` bytes."""
        data, base = self.window(self.pos, n, what)
        start = self.pos - base
        self.pos += n
        return data[start : start + n]

    def u32(self) -> int:
        return int(_SCALARS[_U32][1].unpack(self.take(4, "a number"))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8, "a length"))[0])

    def string(self, what: str, limit: int, *, errors: str = "replace") -> str:
        """The next string; `limit` in bytes."""
        at, n = self.pos, self.u64()
        if n > limit:
            raise _corrupt(at, f"{what} of {n} bytes is longer than {limit}")
        self.kept += n
        if self.kept > MAX_KEPT:
            raise _corrupt(at, f"keys and values of more than {MAX_KEPT} bytes in all")
        try:
            return str(self.take(n, what), "utf-8", errors)
        except UnicodeDecodeError:
            raise _corrupt(at, f"{what} is not UTF-8") from None


def _preamble(cursor: _Cursor) -> tuple[int, int, int]:
    if cursor.size < _HEADER.size:
        raise _corrupt(0, f"a file of {cursor.size} bytes is too short for a header")
    data, _ = cursor.window(0, 4, "the magic")
    if bytes(data[:4]) != b"GGUF":
        raise _corrupt(0, f"starts with {bytes(data[:4])!r}, not with 'GGUF'")
    _, version, tensors, kv = _HEADER.unpack(cursor.take(_HEADER.size, "the header"))
    if version & 0xFFFF == 0 and version:
        raise _corrupt(4, "the file was written for the other byte order")
    if version not in (2, 3):
        raise _corrupt(4, f"version {version} of the format; 2 and 3 are read")
    if tensors > MAX_TENSORS:
        raise _corrupt(8, f"{tensors} tensors are announced; {MAX_TENSORS} at most")
    if kv > MAX_KV:
        raise _corrupt(16, f"{kv} keys are announced; {MAX_KV} at most")
    if (least := _HEADER.size + 13 * kv + 33 * tensors) > cursor.size:  # the shortest key and tensor entries
        raise _corrupt(8, f"{kv} keys and {tensors} tensors need {least} bytes; the file has {cursor.size}")
    return tensors, version, kv


def _scalar(cursor: _Cursor, kind: int, key: str) -> Scalar:
    if kind == _STRING:
        return cursor.string(f"the value of {key[:80]!r}", MAX_STRING)
    at = cursor.pos
    if kind not in _SCALARS:
        raise _corrupt(at - 4, f"key {key[:80]!r} has the unknown type {kind}")
    _, packed = _SCALARS[kind]
    value = packed.unpack(cursor.take(packed.size, "a value"))[0]
    if kind != _BOOL:
        return int(value) if isinstance(value, int) else float(value)
    if value > 1:
        raise _corrupt(at, f"key {key[:80]!r} has the truth value {value}")
    return bool(value)


def _array(cursor: _Cursor, key: str, *, whole: bool) -> Array:
    at, kind, length = cursor.pos, cursor.u32(), cursor.u64()
    keep = length if whole or length <= SMALL else HEAD
    if kind == _STRING:
        return Array("str", length, _strings(cursor, key, length, keep))
    if kind not in _SCALARS:
        what = "an array inside an array" if kind == _ARRAY else f"elements of the unknown type {kind}"
        raise _corrupt(at, f"key {key[:80]!r} has {what}")
    name, packed = _SCALARS[kind]
    if cursor.pos + length * packed.size > cursor.size:
        raise _corrupt(at, f"key {key[:80]!r} has {length} elements, more than the rest of the file can hold")
    cursor.kept += keep * packed.size * (1 if whole else 4)  # a Python number takes about four times its bytes
    if cursor.kept > (MAX_TEXT if whole else MAX_KEPT):
        raise _corrupt(at, f"keys and values of more than {MAX_KEPT} bytes in all")
    end = cursor.pos + length * packed.size
    raw = cursor.take(keep * packed.size, f"the array {key[:80]!r}")
    cursor.pos = end
    items = struct.unpack(f"<{keep}{packed.format[1:]}", raw)
    return Array(name, length, tuple(bool(v) for v in items) if kind == _BOOL else items)


def _strings(cursor: _Cursor, key: str, length: int, keep: int) -> tuple[str, ...]:
    """Walk over `length` strings and keep the first `keep`; only the lengths of the others are looked at."""
    start = cursor.pos
    if start + 8 * length > cursor.size:
        raise _corrupt(start - 8, f"key {key[:80]!r} has {length} strings, more than the rest of the file can hold")
    cursor.strings += length
    if cursor.strings > MAX_ARRAY_STRINGS:
        raise _corrupt(start - 8, f"more than {MAX_ARRAY_STRINGS} strings in all arrays")
    kept, pos, text = [], start, cursor.text
    data, base = memoryview(b""), start
    end, unpack = base, _U64.unpack_from
    for i in range(length):
        if pos + 8 > end:
            data, base = cursor.window(pos, 8, f"a string of {key[:80]!r}")
            end = base + len(data)
        n = unpack(data, pos - base)[0]
        text += n
        if n > MAX_STRING or text > MAX_TEXT:
            raise _corrupt(pos, f"a string of {n} bytes in {key[:80]!r}; {MAX_STRING} at most, {MAX_TEXT} in all")
        if i < keep:
            data, base = cursor.window(pos, 8 + n, f"a string of {key[:80]!r}")
            end = base + len(data)
            kept.append(str(data[pos - base + 8 : pos - base + 8 + n], "utf-8", "replace"))
        pos += 8 + n
    if pos > cursor.size:
        raise _corrupt(start, f"the strings of {key[:80]!r} go past the end of the file ({cursor.size} bytes)")
    cursor.pos, cursor.text = pos, text
    return tuple(kept)


def _alignment(value: Value, kind: int, at: int) -> int:
    if kind != _U32 or not isinstance(value, int) or value <= 0 or value & (value - 1) or value > 1 << 20:
        raise _corrupt(at, f"general.alignment is {value!r}, no power of two up to {1 << 20}")
    return value


def _tensor(cursor: _Cursor, alignment: int) -> TensorInfo:
    at = cursor.pos
    name = cursor.string("a tensor's name", MAX_NAME, errors="strict")
    dims = cursor.u32()
    if not 1 <= dims <= MAX_DIMS:
        raise _corrupt(at, f"tensor {name!r} has {dims} dimensions; 1 to {MAX_DIMS} are possible")
    shape: tuple[int, ...] = struct.unpack(f"<{dims}Q", cursor.take(8 * dims, "a tensor's shape"))
    number, offset = cursor.u32(), cursor.u64()
    if number not in TYPES:
        raise _corrupt(at, f"tensor {name!r} has the unknown type {number}")
    kind, block, block_bytes = TYPES[number]
    elements = 1
    for dim in shape:
        elements *= dim  # Python's integers do not wrap
    if not 0 < elements < 1 << 63 or shape[0] % block:
        raise _corrupt(at, f"tensor {name!r} of type {kind} has the impossible shape {shape}")
    if offset % alignment:
        raise _corrupt(at, f"tensor {name!r} starts at {offset}, no multiple of {alignment}")
    return TensorInfo(name, shape, kind, offset, elements // block * block_bytes)


def _check_layout(tensors: tuple[TensorInfo, ...], data_offset: int, size: int) -> None:
    names, end = set(), 0
    for t in sorted(tensors, key=lambda t: t.offset):
        if t.name in names:
            raise _corrupt(data_offset + t.offset, f"tensor {t.name!r} is there twice")
        names.add(t.name)
        if t.offset < end:
            raise _corrupt(data_offset + t.offset, f"tensor {t.name!r} overlaps the one before it")
        end = t.offset + t.nbytes
        if data_offset + end > size:
            raise _corrupt(
                data_offset + t.offset, f"tensor {t.name!r} of {t.nbytes} bytes goes past the end ({size} bytes)"
            )
