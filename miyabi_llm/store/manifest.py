"""One file per model that says it is here, whole: written last, checked when it is read."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from miyabi_llm.errors import BadUsage, Corrupt, Unsafe
from miyabi_llm.refs import Digest, ModelRef, is_safe_name
from miyabi_llm.store.fs import Fs, explained, is_regular, read_small, sweep, write_atomic
from miyabi_llm.types import Artifact, Format, StoredFile, Trust, plain

LIMIT = 32 << 20  # bytes
_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)


def save(fs: Fs, path: Path, artifact: Artifact) -> None:
    """Write a model's manifest, atomically and durably. Raises BadUsage, Unsafe, MiyabiError."""
    data = encode(artifact)
    decode(data)  # what we could not read back must not be written
    with explained(path, need=len(data)):
        is_regular(fs, path)
        sweep(fs, path)
        write_atomic(fs, path, data)


def load(fs: Fs, path: Path) -> Artifact:
    """Read a manifest. Raises FileNotFoundError, Unsafe on a planted link, Corrupt on anything not as written."""
    try:
        data = read_small(fs, path, LIMIT)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as e:
        raise Corrupt(f"{path}: {e}", hint="Check the disk, then pull the model again.", path=str(path)) from e
    try:
        artifact = decode(data)
    except (ValueError, KeyError, TypeError, RecursionError, BadUsage, Unsafe) as e:
        raise Corrupt(f"{path}: not a model's manifest: {e}", hint="Pull the model again.", path=str(path)) from e
    if path.stem != hashlib.sha256(str(artifact.ref).encode()).hexdigest():
        raise Corrupt(f"{path} names {artifact.ref}, whose manifest has another place", hint="Pull the model again.")
    return artifact


def encode(artifact: Artifact) -> bytes:
    """A manifest's bytes."""
    body = plain(artifact)
    return json.dumps({"version": 1, "sum": _sum(body), "artifact": body}, ensure_ascii=True, indent=1).encode()


def decode(data: bytes) -> Artifact:
    """A manifest's value. Raises ValueError, KeyError, TypeError, RecursionError, BadUsage or Unsafe."""
    document = json.loads(data)
    body = document["artifact"]
    if document["version"] != 1 or document["sum"] != _sum(body):
        raise ValueError("its check sum is wrong")
    ref = ModelRef.parse(_text(body["ref"]))
    if str(ref) != body["ref"]:
        raise ValueError(f"{body['ref']!r} is not how {ref} is written")
    files = tuple(_file(f) for f in body["files"])
    check_names(f.name for f in files)
    if body["format"] not in get_args(Format) or body["trust"] not in get_args(Trust):
        raise ValueError(f"unknown format {body['format']!r} or trust {body['trust']!r}")
    if not isinstance(body["card"], dict):
        raise ValueError("its card is not an object")
    return Artifact(
        ref=ref,
        format=body["format"],
        files=files,
        trust=body["trust"],
        source=_text(body["source"]),
        pulled_at=_text(body["pulled_at"]),
        license=None if body["license"] is None else _text(body["license"]),
        card=body["card"],
    )


def check_names(names: Iterable[str]) -> None:
    """Raise Unsafe unless all are plain relative paths that can lie in one folder on every system."""
    seen: dict[str, str] = {}
    for name in names:
        if not is_safe_name(name) or any(0xD800 <= ord(c) <= 0xDFFF for c in name):
            raise Unsafe(f"file name {name[:200]!r} leaves its place", hint="The source is not to be trusted.")
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            raise Unsafe(f"file names {seen[key]!r} and {name!r} are the same on some systems")
        seen[key] = name
    for key in seen:
        parents = key.split("/")[:-1]
        for i in range(len(parents)):
            if "/".join(parents[: i + 1]) in seen:
                raise Unsafe(f"{seen[key]!r} lies in a folder that is also a file's name")


def _file(body: Any) -> StoredFile:
    sha256, size = body["sha256"], body["size"]
    if not isinstance(sha256, str) or not _HEX.fullmatch(sha256):
        raise ValueError("a file's sha256 is not one")
    if type(size) is not int or size < 0:
        raise ValueError("a file's size is not a number of bytes")
    return StoredFile(_text(body["name"]), Digest(sha256), size)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _sum(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
