"""Short names: which bytes a name means, and the places where they can be had."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from itertools import pairwise
from typing import Any, Literal, get_args

from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, ModelMissing
from miyabi_llm.refs import Digest, ModelRef, digest, is_safe_name
from miyabi_llm.types import Format, RemoteFile

Layer = Literal["built-in", "user"]

MOST_PACKAGES = 1000  # members in one table; more is a mistake

_RANGE = re.compile(r"\{(\d{1,6})\.\.(\d{1,6})\}", re.ASCII)
_ENTRY_KEYS: dict[str, type] = {
    "format": str,
    "file": str,
    "sha256": str,
    "size": int,
    "license": str,
    "sources": list,
    "note": str,
    "default": bool,
}
_TYPES = {str: "text", int: "whole number", bool: "true or false", list: "list", dict: "table"}
_PACKAGES_KEYS: dict[str, type] = {"packages": str, "version": str, "member": str, "each": int}


@dataclass(frozen=True, slots=True)
class Packages:
    """A file cut into members of package distributions, concatenated in order.

    `members` are spelt `DIST==VERSION!PATH-IN-WHEEL#BYTES`; `text` is how a person reads the whole.
    """

    text: str
    members: tuple[str, ...]

    scheme = "pypi"

    @property
    def requirements(self) -> tuple[str, ...]:
        """The distributions, spelt `DIST==VERSION`, in order."""
        return tuple(dict.fromkeys(m.rpartition("!")[0] for m in self.members))

    def __str__(self) -> str:
        return self.text


Origin = ModelRef | Packages


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One short name: `sha256` and `size` (bytes) say what it means, `sources` where to look, in order."""

    name: str
    tag: str
    format: Format
    file: str | None
    sha256: Digest | None
    size: int | None
    license: str | None
    sources: tuple[Origin, ...]
    layer: Layer
    note: str = ""
    default: bool = False

    @property
    def ref(self) -> ModelRef:
        """The entry's full name."""
        return ModelRef("catalog", self.name, self.tag)

    def remote(self, packages: Packages) -> RemoteFile:
        """The entry's file as `packages` hold it."""
        assert self.file is not None, "the loader lets no packages through without a file"
        return RemoteFile(self.file, self.size, self.sha256, members=packages.members)


@dataclass(frozen=True, slots=True)
class Catalog:
    """All layers in one: a user's entry replaces the built-in one of the same name and tag."""

    entries: tuple[CatalogEntry, ...]

    def find(self, ref: ModelRef) -> CatalogEntry:
        """The entry `ref` means; a name without a tag is its only or its default tag.

        Raises ModelMissing that names the nearest short names.
        """
        named = [e for e in self.entries if e.name.lower() == ref.name.lower()]
        if ref.revision is None:
            found = [e for e in named if e.default] or (named if len(named) == 1 else [])
        else:
            found = [e for e in named if e.tag.lower() == ref.revision.lower()]
        if not found:
            raise self._missing(ref, named)
        return next((e for e in found if e.layer == "user"), found[0])

    def canonical(self, ref: ModelRef) -> ModelRef:
        """`ref` under the name the store keeps it by: a known short name gets its tag, others stay as they are."""
        if ref.scheme != "catalog":
            return ref
        try:
            return self.find(ref).ref
        except ModelMissing:
            return ref

    def _missing(self, ref: ModelRef, named: list[CatalogEntry]) -> ModelMissing:
        if named:
            tags = ", ".join(str(e.ref) for e in named)
            what = f"has no tag {ref.revision!r}" if ref.revision else "has several tags and no default"
            return ModelMissing(f"{ref.name} {what} in the catalog", hint=f"Known: {tags}.")
        known = sorted({str(e.ref) for e in self.entries})
        near = _near(str(ref), known) or _near(ref.name, sorted({e.name for e in self.entries}))
        hint = f"Did you mean {near}?" if near else f"Known short names: {', '.join(known)}."
        return ModelMissing(
            f"no model is called {str(ref)!r} in the catalog",
            hint=hint
            + " Other models have longer names: hf:ORG/REPO:QUANT, ollama:NAME:TAG, https://….gguf, ./FILE.gguf.",
        )


def load(settings: Settings) -> Catalog:
    """The built-in catalog under the user's `catalog.toml`. Raises BadUsage naming file, entry and key."""
    text = resources.files("miyabi_llm").joinpath("data/catalog.toml").read_text(encoding="utf-8")
    entries = {e.ref: e for e in parse(text, "the built-in catalog", "built-in")}
    path = settings.config / "catalog.toml"
    try:
        own = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Catalog(tuple(entries.values()))
    except (OSError, UnicodeDecodeError) as e:
        raise BadUsage(f"{path}: {e}", hint=f"Mend or remove {path}.") from e
    mine = parse(own, str(path), "user")
    # a default of the user's takes the name away from a built-in default
    taken = {e.name.lower() for e in mine if e.default}
    entries = {ref: replace(e, default=e.default and e.name.lower() not in taken) for ref, e in entries.items()}
    return Catalog(tuple((entries | {e.ref: e for e in mine}).values()))


def parse(text: str, where: str, layer: Layer) -> tuple[CatalogEntry, ...]:
    """The entries of one catalog file; `where` names it in errors. Raises BadUsage."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise BadUsage(f"{where}: {e}", hint="The file is TOML: see the built-in catalog for the form.") from e
    _known(document, {"models": dict}, where)
    entries = tuple(_entry(name, body, where, layer) for name, body in document.get("models", {}).items())
    for name in {e.name for e in entries}:
        if len([e for e in entries if e.name == name and e.default]) > 1:
            raise BadUsage(f"{where}: {name}: more than one tag says default = true")
    return entries


def _entry(title: str, body: Any, where: str, layer: Layer) -> CatalogEntry:
    at = f'{where}: models."{title}"'
    if not isinstance(body, dict):
        raise BadUsage(f"{at}: {body!r} is not a table")
    _known(body, _ENTRY_KEYS, at)
    try:
        ref = ModelRef.parse(title)
    except BadUsage as e:
        raise BadUsage(f"{at}: {e.message}", hint=e.hint) from e
    if ref.scheme != "catalog" or ref.revision is None:
        raise BadUsage(f"{at}: a catalog name is NAME:TAG", hint=f'Write [models."{ref.name}:latest"], for example.')
    kind, file, size = body.get("format", "gguf"), body.get("file"), body.get("size")
    if kind not in get_args(Format):
        raise BadUsage(f"{at}: format: {kind!r} is none of {', '.join(get_args(Format))}")
    if file is not None and not is_safe_name(file):
        raise BadUsage(f"{at}: file: {file!r} is not a plain file name")
    if size is not None and size <= 0:
        raise BadUsage(f"{at}: size: {size} is not a number of bytes")
    sha256 = _digest(body["sha256"], at) if "sha256" in body else None
    if sha256 and file is None:
        raise BadUsage(f"{at}: file: a sha256 needs the name of the file it belongs to")
    sources = tuple(_origin(s, body, f"{at}: sources[{i}]") for i, s in enumerate(body.get("sources", [])))
    if not sources:
        raise BadUsage(f"{at}: sources: at least one is needed", hint='For example sources = ["hf:ORG/REPO:Q4_K_M"].')
    return CatalogEntry(
        ref.name, ref.revision, kind, file, sha256, size, body.get("license"), sources, layer,
        body.get("note", ""), body.get("default", False),
    )  # fmt: skip


def _digest(text: str, at: str) -> Digest:
    try:
        return digest(text)
    except BadUsage as e:
        raise BadUsage(f"{at}: sha256: {e.message}", hint=e.hint) from e


def _origin(value: Any, entry: Mapping[str, Any], at: str) -> Origin:
    if isinstance(value, str):
        try:
            ref = ModelRef.parse(value)
        except BadUsage as e:
            raise BadUsage(f"{at}: {e.message}", hint=e.hint) from e
        if ref.scheme == "catalog":
            raise BadUsage(f"{at}: {value!r} is a short name again; a source says where the file lies")
        return ref
    if not isinstance(value, dict):
        raise BadUsage(f"{at}: {value!r} is neither a name nor a table of packages")
    _known(value, _PACKAGES_KEYS, at)
    for key in _PACKAGES_KEYS:
        if key not in value:
            raise BadUsage(f"{at}: {key}: missing; packages need {', '.join(_PACKAGES_KEYS)}")
    if not entry.get("file") or not entry.get("size"):
        raise BadUsage(f"{at}: packages need the entry's file and size")
    return _packages(value, entry["size"], at)


def _packages(value: Mapping[str, Any], size: int, at: str) -> Packages:
    lengths = {abs(int(b) - int(a)) + 1 for a, b in _RANGE.findall(value["packages"] + value["member"])} or {1}
    if len(lengths) > 1 or (count := lengths.pop()) > MOST_PACKAGES:
        raise BadUsage(
            f"{at}: the ranges {{a..b}} of packages and member must have one length, {MOST_PACKAGES} at most"
        )
    each = value["each"]
    if not (each > 0 and each * (count - 1) < size <= each * count):
        raise BadUsage(f"{at}: each: {count} members of {each} bytes cannot hold {size} bytes")
    names = [_expand(value["packages"], i) for i in range(count)]
    paths = [_expand(value["member"], i) for i in range(count)]
    for name, path in zip(names, paths, strict=True):
        try:
            ModelRef.parse(f"pypi:{name}=={value['version']}")
        except BadUsage as e:
            raise BadUsage(f"{at}: packages: {e.message}") from e
        if not is_safe_name(path) or "!" in path or "#" in path:
            raise BadUsage(f"{at}: member: {path!r} is not a plain path inside a package")
    if count > 1 and any(a == b for a, b in pairwise(zip(names, paths, strict=True))):
        raise BadUsage(f"{at}: packages: every member has the same name; write {{1..{count}}} where they differ")
    sizes = [each] * (count - 1) + [size - each * (count - 1)]
    members = tuple(f"{n}=={value['version']}!{p}#{s}" for n, p, s in zip(names, paths, sizes, strict=True))
    return Packages(f"pypi:{value['packages']}=={value['version']}", members)


def _expand(pattern: str, index: int) -> str:
    """`pattern` with every `{a..b}` at its `index`-th step, padded as wide as `a` is written."""

    def step(found: re.Match[str]) -> str:
        first, last = int(found[1]), int(found[2])
        return str(first + (index if last >= first else -index)).zfill(len(found[1]))

    return _RANGE.sub(step, pattern)


def _known(body: Mapping[str, Any], keys: Mapping[str, type], at: str) -> None:
    for key, value in body.items():
        want = keys.get(key)
        if want is None:
            near = _near(key, list(keys))
            hint = f"Did you mean {near}?" if near else f"Known keys: {', '.join(keys)}."
            raise BadUsage(f"{at}: {key}: unknown key", hint=hint)
        if type(value) is not want:
            raise BadUsage(f"{at}: {key}: {value!r} is not a {_TYPES[want]}")


def _near(word: str, known: list[str]) -> str | None:
    lower = {k.lower(): k for k in known}
    found = difflib.get_close_matches(word.lower(), list(lower), n=1, cutoff=0.6)
    return lower[found[0]] if found else None
