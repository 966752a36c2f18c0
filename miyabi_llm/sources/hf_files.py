"""Which files of a hub repository a name means: pure decisions over the list of its files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from miyabi_llm.errors import BadUsage, Corrupt, ModelMissing, Unsafe
from miyabi_llm.refs import Digest, ModelRef, is_safe_name
from miyabi_llm.sources.base import PICKLES, runs_code
from miyabi_llm.types import Format

PREFERRED = "Q4_K_M"
BESIDE_MOST = 128 * 2**20  # bytes; a tokenizer is smaller, and a .json that is larger is something else

_QUANT = re.compile(
    r"(?<![A-Za-z0-9])(?:UD-)?(?:I?Q\d+(?:_(?:K|S|M|L|XL|XS|XXS|NL|P|\d+))*|TQ\d_\d|MXFP4(?:_MOE)?|BF16|FP?16|FP?32)"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE | re.ASCII,
)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf|\.safetensors)", re.ASCII)
_COMPANION = re.compile(r"(?:^|[-_./])(?:mmproj|imatrix|mtp|draft)(?![a-z])", re.IGNORECASE)
_BESIDE = (".json", ".jinja", ".model", ".tiktoken")
_BESIDE_NAMES = ("merges.txt", "vocab.txt")

Index = Callable[[str], Mapping[str, object]]  # file name -> the JSON document in it


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file as the hub lists it. `sha256` for large files; `git` (a blob's sha1) for small ones."""

    name: str
    size: int | None
    sha256: Digest | None = None
    git: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The files that a name means, in order, and what was left out."""

    format: Format
    files: tuple[HubFile, ...]
    notes: tuple[str, ...] = ()


def choose(ref: ModelRef, files: Sequence[HubFile], read: Index) -> Choice:
    """The files of `ref` among `files`; `read` fetches a small JSON file of the repository.

    Raises ModelMissing, BadUsage (which of them?), Corrupt (a shard is missing), Unsafe (only pickles).
    """
    by_name = {f.name: f for f in files if is_safe_name(f.name)}
    ggufs = [n for n in by_name if n.lower().endswith(".gguf")]
    if ref.file:
        return _exact(ref, by_name)
    if ref.quant or [n for n in ggufs if not _COMPANION.search(n)]:
        return _gguf(ref, by_name, [n for n in ggufs if not _COMPANION.search(n)])
    return _safetensors(ref, by_name, read)


@dataclass(frozen=True, slots=True)
class Variant:
    """One GGUF model of a repository that has several: its quantization, or its file's name, and its parts in order."""

    quant: str
    files: tuple[HubFile, ...]


def variants(files: Sequence[HubFile]) -> tuple[Variant, ...]:
    """Every whole GGUF model among a repository's files, without image encoders, drafts and the like."""
    by_name = {f.name: f for f in files if is_safe_name(f.name)}
    ggufs = sorted(n for n in by_name if n.lower().endswith(".gguf") and not _COMPANION.search(n))
    found = []
    for first in sorted({_first(n) for n in ggufs}):
        try:
            parts = tuple(by_name[n] for n in shards(first, ggufs))
        except (Corrupt, KeyError):
            continue  # a part is missing: nobody could take it
        found.append(Variant(quant_of(first) or first, parts))
    return tuple(found)


def quant_of(name: str) -> str | None:
    """The quantization a file's name carries, in upper case: the last word of that shape."""
    shard = _SHARD.fullmatch(name)
    stem = shard["stem"] if shard else name.rpartition(".")[0]
    found = _QUANT.findall(stem)
    return found[-1].upper() if found else None


def shards(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """All the parts of the file that `name` belongs to, in order. Raises Corrupt that names the missing ones."""
    match = _SHARD.fullmatch(name)
    if not match:
        return (name,)
    count = int(match["count"])
    known = set(names)
    if not 1 <= count <= 4096 or not 1 <= int(match["index"]) <= count:
        raise Corrupt(f"{name}: its number makes no sense")
    wanted = tuple(f"{match['stem']}-{i:05d}-of-{match['count']}{match['end']}" for i in range(1, count + 1))
    missing = [n for n in wanted if n not in known]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise Corrupt(
            f"{match['stem']}: {len(missing)} of its {count} parts are not there: {', '.join(missing[:3])}{more}",
            hint="The repository is not complete; choose another quantization or repository.",
        )
    return wanted


def _exact(ref: ModelRef, by_name: Mapping[str, HubFile]) -> Choice:
    name = ref.file or ""
    if runs_code(name):
        raise Unsafe(f"{ref}: {name} can run code when it is loaded", hint="Choose a .gguf or .safetensors file.")
    if name not in by_name:
        raise ModelMissing(
            f"{ref.name} has no file {name}", hint=f"It has: {_some(n for n in by_name if not runs_code(n))}."
        )
    names = shards(name, by_name)
    kind: Format = "gguf" if name.lower().endswith(".gguf") else "safetensors"
    notes = (f"{name} is one of {len(names)} parts: all are taken",) if len(names) > 1 else ()
    return Choice(kind, tuple(by_name[n] for n in names), notes)


def _gguf(ref: ModelRef, by_name: Mapping[str, HubFile], ggufs: Sequence[str]) -> Choice:
    firsts = sorted({_first(n) for n in ggufs})
    if not firsts:
        raise ModelMissing(
            f"{ref.name} has no GGUF file", hint="Name a GGUF repository, or leave the quantization out."
        )
    table = _table(firsts, ggufs, by_name)
    if ref.quant:
        found = [n for n in firsts if _carries(n, ref.quant)]
        exact = [n for n in found if quant_of(n) == ref.quant.upper()]
        found = exact or found
        if not found:
            raise ModelMissing(f"{ref.name} has no {ref.quant}", hint=f"It has: {table}.")
    else:
        found = [n for n in firsts if quant_of(n) == PREFERRED] or firsts
        if len(found) > 1 and not any(quant_of(n) == PREFERRED for n in found):
            raise BadUsage(f"{ref.name} has several files: which one?", hint=f"Add :QUANT. It has: {table}.")
    if len(found) > 1:
        raise BadUsage(
            f"{ref.name} has {len(found)} files of this quantization: {_some(found)}",
            hint=f"Name the file: hf:{ref.name}/{found[0]}",
        )
    files = tuple(by_name[n] for n in shards(found[0], by_name))
    companions = [n for n in by_name if n.lower().endswith(".gguf") and _COMPANION.search(n)]
    notes = (f"not taken: {_some(companions)}",) if companions else ()
    return Choice("gguf", files, notes)


def _carries(name: str, quant: str) -> bool:
    word = rf"(?<![A-Za-z0-9]){re.escape(quant)}(?![A-Za-z0-9])(?!_)"
    return quant_of(name) in (quant.upper(), f"UD-{quant.upper()}") or bool(
        quant_of(name) is None and re.search(word, name.rpartition("/")[2], re.IGNORECASE)
    )


def _first(name: str) -> str:
    """The name of the first part, of a file in parts."""
    match = _SHARD.fullmatch(name)
    return f"{match['stem']}-00001-of-{match['count']}{match['end']}" if match else name


def _table(firsts: Sequence[str], ggufs: Sequence[str], by_name: Mapping[str, HubFile]) -> str:
    rows = []
    for first in firsts[:40]:
        size = sum(by_name[n].size or 0 for n in ggufs if _first(n) == first)
        rows.append(f"{quant_of(first) or first} ({size / 1e9:.2f} GB)")
    return ", ".join(rows)


def _safetensors(ref: ModelRef, by_name: Mapping[str, HubFile], read: Index) -> Choice:
    root = [n for n in by_name if "/" not in n]
    tensors = [n for n in root if n.lower().endswith(".safetensors")]
    if not tensors:
        pickles = [n for n in by_name if n.lower().endswith(PICKLES)]
        if pickles:
            raise Unsafe(
                f"{ref.name} has its weights only as {_some(pickles)}: loading those files runs code that is in them",
                hint="Choose a repository with .safetensors or .gguf files.",
            )
        raise ModelMissing(f"{ref.name} has no model file", hint=f"It has: {_some(by_name) or 'nothing'}.")
    kind: Format = "safetensors"
    weights: tuple[str, ...]
    if "adapter_config.json" in root and "adapter_model.safetensors" in root:
        kind, weights = "adapter", ("adapter_model.safetensors",)
    else:
        weights = _weights(tensors, root, read)
    missing = [n for n in weights if n not in by_name]
    if missing:
        raise Corrupt(f"{ref.name}: its index names files that are not there: {_some(missing)}")
    beside = [n for n in root if _is_beside(n) and (by_name[n].size or 0) <= BESIDE_MOST]
    programs = [n for n in by_name if n.endswith(".py")]
    notes = (f"code of the repository is not taken and never run: {_some(programs)}",) if programs else ()
    return Choice(kind, tuple(by_name[n] for n in (*weights, *sorted(beside))), notes)


def _weights(tensors: Sequence[str], root: Sequence[str], read: Index) -> tuple[str, ...]:
    if "model.safetensors.index.json" in root:
        table = read("model.safetensors.index.json").get("weight_map")
        names = set(table.values()) if isinstance(table, dict) and len(table) <= 1_000_000 else set()
        bad = [n for n in names if not isinstance(n, str) or not is_safe_name(n) or not n.endswith(".safetensors")]
        if bad or not names:
            raise Unsafe(f"model.safetensors.index.json: refused: {bad[0]!r:.80}" if bad else "an index without names")
        return tuple(sorted(names))
    if "model.safetensors" in tensors:
        return ("model.safetensors",)
    parts = sorted(n for n in tensors if _SHARD.fullmatch(n))
    return shards(parts[0], tensors) if parts else tuple(sorted(tensors))


def _is_beside(name: str) -> bool:
    return (name.endswith(_BESIDE) or name in _BESIDE_NAMES) and not name.startswith(".") and not runs_code(name)


def _some(names: Iterable[str], most: int = 6) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
