"""A small real GGUF file, written by hand: a few keys and two tensors of zeros."""

import hashlib
import struct
from pathlib import Path

from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.types import Artifact, StoredFile

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def gguf_bytes(name: str = "tiny", *, template: bool = True) -> bytes:
    """A version-3 file of architecture qwen2 with an F32 and an F16 tensor; `name` makes the bytes differ."""
    kv: dict[str, str | int] = {
        "general.architecture": "qwen2",
        "general.name": name,
        "general.license": "apache-2.0",
        "general.file_type": 1,
        "qwen2.context_length": 2048,
        "qwen2.block_count": 1,
    }
    if template:
        kv["tokenizer.chat_template"] = TEMPLATE
    out = struct.pack("<4sIQQ", b"GGUF", 3, 2, len(kv))
    for key, value in kv.items():
        out += _text(key)
        out += struct.pack("<II", 4, value) if isinstance(value, int) else struct.pack("<I", 8) + _text(value)
    out += _text("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 4, 0, 0)
    out += _text("output.weight") + struct.pack("<IQQIQ", 2, 32, 4, 1, 512)
    return out + bytes(-len(out) % 32) + bytes(512 + 256)


def gguf_file(path: Path, name: str = "tiny") -> tuple[Path, Digest, int]:
    """Write one to `path`; returns path, sha256 and size in bytes."""
    data = gguf_bytes(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path, Digest(hashlib.sha256(data).hexdigest()), len(data)


def artifact(ref: str, path: Path, sha256: Digest, *, source: str = "", name: str | None = None) -> Artifact:
    """An artifact of the one file at `path`."""
    file = StoredFile(name or path.name, sha256, path.stat().st_size)
    return Artifact(ModelRef.parse(ref), "gguf", (file,), "verified", source or ref, "2026-11-22T00:00:00Z")


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data
