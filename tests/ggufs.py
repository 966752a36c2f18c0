"""Little GGUF files, written byte by byte, right or wrong as a test wants them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_PACK = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, v: Any) -> bytes:
    return string(v) if kind == STRING else struct.pack("<" + _PACK[kind], v)


def kv(key: str, v: Any, kind: int | None = None) -> bytes:
    """One key with its value; the kind is guessed from a str, bool, int, float or list unless given."""
    if isinstance(v, list):
        of = kind if kind is not None else _guess(v[0]) if v else I32
        body = struct.pack("<IQ", of, len(v)) + b"".join(value(of, item) for item in v)
        return string(key) + struct.pack("<I", ARRAY) + body
    kind = _guess(v) if kind is None else kind
    return string(key) + struct.pack("<I", kind) + value(kind, v)


def _guess(v: Any) -> int:
    return {str: STRING, bool: BOOL, int: U32, float: F32}[type(v)]


def tensor(name: str | bytes, shape: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(kvs: Sequence[bytes], tensors: Sequence[bytes] = (), *, version: int = 3) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(kvs)) + b"".join(kvs) + b"".join(tensors)


def model(
    keys: Mapping[str, Any], tensors: Sequence[tuple[str, Sequence[int], int, int]] = (), *, align: int = 32
) -> bytes:
    """A whole file: `tensors` are (name, shape, type number, bytes), laid out as llama.cpp does."""
    infos, data = [], b""
    for name, shape, kind, nbytes in tensors:
        infos.append(tensor(name, shape, kind, len(data)))
        data += bytes(-(-nbytes // align) * align)
    head = header([kv(k, v) for k, v in keys.items()], infos)
    return head + bytes(-len(head) % align if tensors else 0) + data


def tiny(*, tokens: int = 40, extra: Mapping[str, Any] | None = None) -> bytes:
    """A small model of the qwen2 architecture, two layers, sound in every field."""
    keys = {
        "general.architecture": "qwen2",
        "general.name": "tiny",
        "general.file_type": 7,
        "qwen2.block_count": 2,
        "qwen2.context_length": 4096,
        "qwen2.embedding_length": 64,
        "qwen2.feed_forward_length": 128,
        "qwen2.attention.head_count": 4,
        "qwen2.attention.head_count_kv": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(tokens)],
        "tokenizer.ggml.token_type": [1] * tokens,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    } | dict(extra or {})
    q8 = 34 * 64 // 32  # bytes of one row of 64 in Q8_0
    tensors = [("token_embd.weight", (64, tokens), 8, q8 * tokens), ("output_norm.weight", (64,), 0, 256)]
    for i in range(2):
        tensors += [(f"blk.{i}.ffn_up.weight", (64, 128), 8, q8 * 128), (f"blk.{i}.attn_norm.weight", (64,), 0, 256)]
    return model(keys, tensors)
