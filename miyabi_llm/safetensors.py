"""A bounded reader of safetensors headers and of the index that ties shards together."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, Final, NamedTuple, NoReturn

from miyabi_llm.errors import Corrupt
from miyabi_llm.gguf import NeedMore
from miyabi_llm.refs import is_safe_name

MAX_HEADER: Final = 8 << 20  # bytes; the format allows 100 MB, shards of the largest models have less than 1 MB
MAX_INDEX: Final = 16 << 20
MAX_DIMS: Final = 16

# dtype -> bits per element: `enum Dtype` and `bitsize` of the safetensors crate
BITS: Final[dict[str, int]] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
_HINT = "The file is damaged or no safetensors file; pull it again."


class TensorInfo(NamedTuple):
    """One tensor: `shape` as torch counts it, `offset` from the start of the tensor data, sizes in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """A safetensors header. `data_offset` is where the tensor data starts in the file of `size` bytes."""

    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]
    data_offset: int
    size: int

    @cached_property
    def histogram(self) -> dict[str, tuple[int, int]]:
        """Number format -> (tensors, bytes), most bytes first."""
        found: dict[str, tuple[int, int]] = {}
        for t in self.tensors:
            n, size = found.get(t.dtype, (0, 0))
            found[t.dtype] = (n + 1, size + t.nbytes)
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))


@dataclass(frozen=True, slots=True)
class Index:
    """`model.safetensors.index.json`: which shard holds which tensor. `total_size` in bytes, when it is said."""

    weight_map: Mapping[str, str]
    total_size: int | None

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of the shards, each once, in order."""
        return tuple(sorted(set(self.weight_map.values())))


def read(source: BinaryIO | bytes | bytearray | memoryview, size: int) -> Header:
    """Read the header of a safetensors file of `size` bytes.

    `source` may hold only the first bytes: gguf.NeedMore then says how many to bring. Raises Corrupt.
    """
    if size < 10:
        raise _corrupt(0, f"a file of {size} bytes is too short for a header")
    (length,) = struct.unpack("<Q", _bytes(source, 0, 8))
    if length > MAX_HEADER or length + 8 > size:
        raise _corrupt(0, f"a header of {length} bytes in a file of {size}; {MAX_HEADER} at most")
    text = _bytes(source, 8, length)
    if text[:1] != b"{":
        raise _corrupt(8, f"the header starts with {text[:1]!r}, not with a brace")
    if text.count(b"[") + text.count(b"{") > 1000 + 3 * text.count(b'"data_offsets"'):
        raise _corrupt(8, "more brackets than tensors can have")  # before a parser makes an object of each
    body = _load(text, "safetensors header", _HINT)
    metadata = body.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _corrupt(8, "__metadata__ is not an object of texts")
    tensors = sorted((_tensor(name, entry) for name, entry in body.items()), key=lambda t: (t.offset, t.nbytes))
    _check_layout(tensors, 8 + length, size)
    return Header(tuple(tensors), metadata, 8 + length, size)


def parse_index(text: bytes | str) -> Index:
    """Parse an index; every shard must be a plain file name beside it. Raises Corrupt."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(raw) > MAX_INDEX:
        raise Corrupt(f"safetensors index: {len(raw)} bytes; {MAX_INDEX} at most", hint=_HINT)
    body = _load(raw, "safetensors index", _HINT)
    weights, metadata = body.get("weight_map"), body.get("metadata") or {}
    if not isinstance(weights, dict) or not weights:
        raise Corrupt("safetensors index: no weight_map", hint=_HINT)
    for shard in set(map(_plain_shard, weights.values())):
        if not shard.endswith(".safetensors"):
            raise Corrupt(f"safetensors index: shard {shard[:80]!r} is no safetensors file", hint=_HINT)
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return Index(weights, total if isinstance(total, int) and total >= 0 else None)


def _corrupt(at: int, what: str) -> Corrupt:
    return Corrupt(f"safetensors header, byte {at}: {what}", hint=_HINT, offset=at)


def _bytes(source: BinaryIO | bytes | bytearray | memoryview, at: int, n: int) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(memoryview(source)[at : at + n])
    else:
        source.seek(at)
        data = source.read(n)
        while len(data) < n and (part := source.read(n - len(data))):
            data += part
    if len(data) < n:
        raise NeedMore(at + n)
    return data


def _load(text: bytes, what: str, hint: str) -> dict[str, Any]:
    """A JSON object without repeated keys, numbers other than integers, or deep nesting."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            seen: set[str] = set()
            for key, _ in items:
                if key in seen:
                    raise ValueError(f"key {key[:80]!r} is there twice")
                seen.add(key)
        return found

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"the number {word[:40]!r} is no integer")

    try:
        refuse_float = refuse if what.endswith("header") else float
        body = json.loads(
            text.decode("utf-8"), object_pairs_hook=pairs, parse_constant=refuse, parse_float=refuse_float
        )
    except (ValueError, RecursionError) as e:
        raise Corrupt(f"{what}: {str(e)[:200] or 'not JSON'}", hint=hint) from None
    if not isinstance(body, dict):
        raise Corrupt(f"{what}: not an object", hint=hint)
    return body


def _tensor(name: str, entry: Any) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if len(entry) == 3:
            pass
        case _:
            raise _corrupt(8, f"tensor {name[:80]!r} has no dtype, shape and data_offsets, or more than those")
    if dtype not in BITS:
        raise _corrupt(8, f"tensor {name[:80]!r} has the unknown dtype {dtype[:40]!r}")
    if len(shape) > MAX_DIMS or any(type(d) is not int or not 0 <= d < 1 << 63 for d in shape):
        raise _corrupt(8, f"tensor {name[:80]!r} has an impossible shape")
    elements = 1
    for dim in shape:
        elements *= dim  # Python's integers do not wrap
    bits = elements * BITS[dtype]
    if bits % 8 or isinstance(begin, bool) or isinstance(end, bool) or begin < 0 or end - begin != bits // 8:
        raise _corrupt(8, f"tensor {name[:80]!r}: {dtype} of shape {shape} is not bytes {begin} to {end}")
    return TensorInfo(name, dtype, tuple(shape), begin, bits // 8)


def _check_layout(tensors: list[TensorInfo], data_offset: int, size: int) -> None:
    """The format's own rule: the tensors cover the data without overlap, hole or rest."""
    end = 0
    for t in tensors:
        if t.offset != end:
            what = "overlaps the one before it" if t.offset < end else f"leaves a hole of {t.offset - end} bytes"
            raise _corrupt(data_offset + t.offset, f"tensor {t.name[:80]!r} {what}")
        end += t.nbytes
    if data_offset + end != size:
        raise _corrupt(data_offset + end, f"the tensors end here, the file after {size} bytes")


def _plain_shard(name: Any) -> str:
    if not isinstance(name, str) or not is_safe_name(name) or "/" in name or name.startswith("."):
        raise Corrupt(f"safetensors index: shard {str(name)[:80]!r} is not a plain file name", hint=_HINT)
    return name
