"""A model as its publisher has it: a folder of safetensors, and what its tokenizer and its configuration promise."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miyabi_llm import safetensors
from miyabi_llm.errors import BadUsage, Corrupt, ModelMissing
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.store import Store
from miyabi_llm.store.adopt import hash_file
from miyabi_llm.types import Artifact

# What a converter may see: data only. Code beside a model (`*.py`) and pickles (`*.bin`, `*.pt`) stay outside.
KEPT = (".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".md")
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Added:
    """A token that was added to the vocabulary: `special` ones are control tokens."""

    id: int
    text: str
    special: bool


@dataclass(frozen=True, slots=True)
class Promise:
    """What the original's own files say. `ends`: tokens that end an answer by the generation's configuration, else by
    the tokenizer's; `eos` is the tokenizer's. `tied`: input and output share their matrix."""

    architecture: str
    ends: tuple[int, ...]
    eos: int | None
    added: tuple[Added, ...]
    template: str | None
    tied: bool
    text_only: bool


@dataclass(frozen=True, slots=True)
class Folder:
    """Safetensors to convert. `files` maps names to paths; `parameters` counts the elements of all tensors."""

    ref: ModelRef
    artifact: Artifact | None
    files: Mapping[str, Path]
    parameters: int
    head: int
    promise: Promise

    def digests(self) -> dict[str, Digest]:
        """The sha256 of each file as it is now. Raises Corrupt when a stored one changed."""
        found = {name: hash_file(path) for name, path in self.files.items()}
        known = {f.name: f.sha256 for f in self.artifact.files} if self.artifact else found
        for name, digest in found.items():
            if known[name] != digest:
                hint = f"miyabi-llm verify {self.ref}"
                raise Corrupt(f"{name} has sha256 {digest}, expected {known[name]}", hint=hint)
        return found

    def state(self) -> tuple[tuple[int, ...], ...]:
        """What changes when somebody writes to a file: cheap beside `digests`, for a look after the work."""
        seen = [path.stat() for path in self.files.values()]
        return tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in seen)


def is_folder(ref: ModelRef, store: Store, user_home: Path) -> bool:
    """Whether `ref` means safetensors: a folder of the person's, or a stored model of that format."""
    if ref.scheme == "file":
        return local(ref, user_home).is_dir()
    try:
        return store.find(ref).format == "safetensors"
    except ModelMissing:
        return False


def local(ref: ModelRef, user_home: Path) -> Path:
    """The path that a `file:` reference means."""
    path = Path(ref.name)
    return user_home / path.relative_to("~") if path.parts[:1] == ("~",) else path


def open_folder(ref: ModelRef, store: Store, user_home: Path) -> Folder:
    """The safetensors that `ref` means, every header read. Raises BadUsage, ModelMissing, Corrupt for a cut file."""
    artifact = None
    if ref.scheme == "file":
        folder = local(ref, user_home)
        files = {p.name: p.absolute() for p in sorted(folder.iterdir()) if p.is_file() and p.name.endswith(KEPT)}
    else:
        artifact = store.find(ref)
        files = {n: p for n, p in store.files(artifact).items() if n.endswith(KEPT) and "/" not in n}
    weights = _weights(files, ref)
    promise = read_promise(files)
    head = sum(n for name, n in weights.items() if name == "lm_head.weight") if promise.tied else 0
    return Folder(ref, artifact, files, sum(weights.values()), head, promise)


def _weights(files: Mapping[str, Path], ref: ModelRef) -> dict[str, int]:
    """Tensor name -> elements, out of every header."""
    names = sorted(n for n in files if n.endswith(".safetensors"))
    if not names or "config.json" not in files:
        raise BadUsage(f"{ref} is no model in safetensors", hint="config.json and *.safetensors have to be there.")
    if INDEX in files:
        index = safetensors.parse_index(files[INDEX].read_bytes())
        if lacking := sorted(set(index.shards) - set(names)):
            raise Corrupt(f"{ref} lacks {', '.join(lacking[:3])}", hint="Pull the model again.")
    found: dict[str, int] = {}
    for name in names:
        try:
            with files[name].open("rb") as f:
                header = safetensors.read(f, files[name].stat().st_size)
        except Corrupt as e:
            raise Corrupt(f"{name}: {e.message}", hint=e.hint, **e.details) from None
        for t in header.tensors:
            found[t.name] = t.nbytes * 8 // safetensors.BITS[t.dtype]
    return found


def read_promise(files: Mapping[str, Path]) -> Promise:
    """What the folder's JSON files promise. Raises Corrupt when one is no JSON object."""
    config, generation = _json(files, "config.json"), _json(files, "generation_config.json")
    words, tokenizer = _json(files, "tokenizer_config.json"), _json(files, "tokenizer.json")
    added = _added(words, tokenizer)
    inner = config.get("text_config")
    text = config | inner if isinstance(inner, dict) else config
    eos = _by_text(words.get("eos_token"), added, tokenizer)
    ends = (*_numbers(generation.get("eos_token_id")), *_numbers(text.get("eos_token_id")))
    kinds = config.get("architectures")
    return Promise(
        architecture=str(kinds[0]) if isinstance(kinds, list) and kinds else "",
        ends=tuple(dict.fromkeys(ends or _numbers(eos))),
        eos=eos,
        added=added,
        template=_template(files, words),
        tied=bool(text.get("tie_word_embeddings")),
        text_only=not any(k.endswith(("vision_config", "audio_config")) for k in config),
    )


def _json(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        value = json.loads(files[name].read_bytes())
    except (ValueError, RecursionError) as e:
        raise Corrupt(f"{name} is no JSON: {str(e)[:120]}", hint="Pull the model again.") from None
    if not isinstance(value, dict):
        raise Corrupt(f"{name} is no JSON object", hint="Pull the model again.")
    return value


def _numbers(value: object) -> tuple[int, ...]:
    items = value if isinstance(value, list) else [value]
    return tuple(v for v in items if isinstance(v, int) and not isinstance(v, bool))


def _added(words: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> tuple[Added, ...]:
    """Added tokens by tokenizer.json and, for what only that one names, by tokenizer_config.json."""
    found: dict[int, Added] = {}
    listed = words.get("added_tokens_decoder")
    named = [{"id": k, **v} for k, v in listed.items() if isinstance(v, dict)] if isinstance(listed, dict) else []
    for entry in (*named, *_entries(tokenizer.get("added_tokens"))):
        try:
            number, text = int(entry["id"]), entry["content"]
        except (KeyError, TypeError, ValueError):
            continue
        if isinstance(text, str):
            found[number] = Added(number, text, bool(entry.get("special")))
    return tuple(found[k] for k in sorted(found))


def _entries(value: object) -> Iterable[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _by_text(token: object, added: tuple[Added, ...], tokenizer: Mapping[str, Any]) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    for a in added:
        if a.text == text:
            return a.id
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    number = vocab.get(text) if isinstance(vocab, dict) else None
    return number if isinstance(number, int) else None


def _template(files: Mapping[str, Path], words: Mapping[str, Any]) -> str | None:
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].read_text(encoding="utf-8")
    said = words.get("chat_template")
    if isinstance(said, list):  # several by name
        said = next((t.get("template") for t in _entries(said) if t.get("name") == "default"), None)
    return said if isinstance(said, str) else None


def lay_out(folder: Folder, place: Path) -> tuple[Path, str | None]:
    """Links to the files in `place`, which must be new, and what was mended; None when nothing.

    A tokenizer that names another end than the generation's configuration is corrected: the converter asks only it.
    """
    place.mkdir()
    for name, path in folder.files.items():
        (place / name).symlink_to(path)
    p = folder.promise
    if p.eos is None or not p.ends or p.eos in p.ends:
        return place, None
    text = next((a.text for a in p.added if a.id == p.ends[0]), None)
    if text is None:
        return place, None
    words = _json(folder.files, "tokenizer_config.json")
    old, target = words.get("eos_token"), place / "tokenizer_config.json"
    target.unlink(missing_ok=True)
    target.write_text(json.dumps(words | {"eos_token": text}, ensure_ascii=False), encoding="utf-8")
    said = old.get("content") if isinstance(old, dict) else old
    return place, f"the tokenizer's end {said} is not among those of the generation; {text} was taken"
