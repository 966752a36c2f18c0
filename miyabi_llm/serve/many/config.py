"""The file models.yaml: which models are behind one address, and how each is served. Closed: no unknown keys."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miyabi_llm import documents
from miyabi_llm.documents import Document, Place, spelled
from miyabi_llm.errors import BadUsage

LIMIT = 1 << 20  # bytes of the file
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]i?B?|B)?", re.IGNORECASE)
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One model as the file names it; `ttl` in seconds (None: the file's, 0 never), `ctx` in tokens."""

    ref: str
    alias: str | None = None
    backend: str | None = None
    ctx: int | None = None
    kv: str | None = None
    threads: int | None = None
    pin: bool = False
    ttl: float | None = None
    process: bool = False
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """The whole file. `memory` in bytes."""

    models: tuple[Entry, ...]
    memory: int | None = None
    host: str | None = None
    port: int | None = None
    ttl: float | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


# key -> the types it may have, and what to call them
_Kinds = Mapping[str, tuple[tuple[type, ...], str]]
_TOP: _Kinds = {
    "models": ((list,), "a list of models"),
    "memory": ((str, int), "a size like 12GiB"),
    "host": ((str,), "an address"),
    "port": ((int,), "a number"),
    "ttl": ((int, float), "a number of seconds"),
    "hosts": ((list,), "a list of names"),
    "origins": ((list,), "a list of origins"),
}
_MODEL: _Kinds = {
    "ref": ((str,), "a model's name"),
    "alias": ((str,), "a name"),
    "backend": ((str,), "a backend's name"),
    "ctx": ((int,), "a number of tokens"),
    "kv": ((str,), "a cache type"),
    "threads": ((int,), "a number"),
    "pin": ((bool,), "true or false"),
    "ttl": ((int, float), "a number of seconds"),
    "process": ((bool,), "true or false"),
    "extra": ((list,), "a list of words"),
}


def load(path: Path) -> Config:
    """The file's content. Raises BadUsage with file, line and key."""
    try:
        text = path.read_bytes()[: LIMIT + 1]
        if len(text) > LIMIT:
            raise BadUsage(f"{path}: more than {LIMIT >> 20} MiB")
        return parse(text.decode("utf-8"), str(path))
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror}", hint="Give a file with --config.") from e
    except UnicodeDecodeError as e:
        raise BadUsage(f"{path}: not UTF-8: {e.reason}") from e


def parse(text: str, name: str = "models.yaml") -> Config:
    """What `text` says; `name` is for messages. Raises BadUsage with line and key. Pure."""
    document = documents.parse_yaml(text, name)
    if not document.value:
        raise BadUsage(f"{name}:1: begin with `models:`")
    top = _checked(document, document.value, _TOP, ())
    rows = top.pop("models", [])
    if not rows:
        raise BadUsage(f"{name}:1: models: name one at least")
    if (size := top.get("memory")) is not None:
        top["memory"] = bytes_of(str(size), f"{name}: memory")
    for key in ("hosts", "origins"):
        top[key] = tuple(str(v).lower() for v in top.get(key, ()))
    models = tuple(_entry(document, row, ("models", i)) for i, row in enumerate(rows))
    return Config(models, **top)


def bytes_of(text: str, what: str) -> int:
    """`12GiB`, `900M` or a number of bytes, as bytes; decimal prefixes are taken as binary. Raises BadUsage. Pure."""
    m = _SIZE.fullmatch(text.strip())
    if m is None:
        raise BadUsage(f"{what}: {text!r} is no size", hint="Sizes look like 12GiB, 900MiB or 2000000000.")
    unit = (m["unit"] or "B").upper()[0]
    return int(float(m["number"]) * 1024 ** "BKMGT".index(unit))


def _checked(document: Document, body: dict[str, Any], kinds: _Kinds, path: Place) -> dict[str, Any]:
    for key, value in body.items():
        here = (*path, key)
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1)
            hint = f"Did you mean {spelled((*path, near[0]))}?" if near else f"Known keys: {', '.join(kinds)}."
            raise document.wrong(here, "unknown key", hint)
        types, called = kinds[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise document.wrong(here, f"{value!r} is not {called}")
        if isinstance(value, int | float) and not isinstance(value, bool) and value < (key != "ttl"):
            raise document.wrong(here, f"{value!r} is too small")
    return dict(body)


def _entry(document: Document, row: Any, path: Place) -> Entry:
    if isinstance(row, str):
        return Entry(row)
    if not isinstance(row, dict):
        raise document.wrong(path, f"{row!r} is neither a name nor a model")
    body = _checked(document, row, _MODEL, path)
    if "ref" not in body:
        raise document.wrong((*path, "ref"), "is missing")
    if (alias := body.get("alias")) is not None and not _ALIAS.fullmatch(alias):
        raise document.wrong((*path, "alias"), f"{alias!r} is no name for a model")
    body["extra"] = tuple(str(word) for word in body.get("extra", ()))
    return Entry(**body)
