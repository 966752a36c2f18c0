"""Models that already lie on this machine: one GGUF file with its parts, or a folder in the hub's layout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from miyabi_llm.config import Settings
from miyabi_llm.errors import Corrupt, ModelMissing, NetworkError, Unsafe
from miyabi_llm.refs import ModelRef
from miyabi_llm.sources.base import PICKLES, Part, runs_code
from miyabi_llm.types import Event, Format, Listing, OnEvent, RemoteFile

CHUNK = 4 * 2**20

# beside the weights, what a reader of a model folder may want; anything else stays where it is
_BESIDE = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_WEIGHTS = (".safetensors", ".gguf")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf|\.safetensors)")


class FileSource:
    """Files of this machine, listed where they lie."""

    scheme = "file"

    def __init__(self, settings: Settings) -> None:
        self._home = settings.user_home

    def list(self, ref: ModelRef) -> Listing:
        """The model's files at `ref`, in place. Raises ModelMissing, Unsafe (pickles), Corrupt (no such format)."""
        path = self._path(ref)
        if path.is_dir():
            kind, names, notes = _folder(path)
            root = path
        elif path.is_file():
            kind, names, notes = _one(path)
            root = path.parent
        else:
            raise ModelMissing(f"{path}: no such file or folder", hint="Check the path.")
        files = tuple(RemoteFile(n, (root / n).stat().st_size, None, path=root / n) for n in names)
        for file in files:
            _check_magic(root / file.name)
        return Listing(ref, ModelRef("file", str(path)), kind, files, notes=notes)

    def fetch(self, file: RemoteFile, part: Part, on_event: OnEvent) -> None:
        """Copy a listed file into `part`: the way when the store cannot share the bytes."""
        assert file.path is not None, "a file of this source has a path"
        with file.path.open("rb") as stream:
            position = 0
            while chunk := stream.read(CHUNK):
                part.write(position, chunk)
                position += len(chunk)
                on_event(Event("progress", file.name, done=position, total=file.size, unit="bytes"))
        if position != file.size:
            raise NetworkError(f"{file.path} changed while it was copied", hint="Run the command again.")

    def _path(self, ref: ModelRef) -> Path:
        text = ref.name
        if text == "~" or text.startswith("~/"):
            text = str(self._home) + text[1:]
        try:
            return Path(text).resolve()
        except (OSError, RuntimeError, ValueError) as e:  # a circle of links, a name the system refuses
            raise ModelMissing(f"{text}: {e}") from e


def _one(path: Path) -> tuple[Format, tuple[str, ...], tuple[str, ...]]:
    if path.name.lower().endswith(PICKLES):
        raise _pickle(path)
    if path.suffix not in _WEIGHTS:
        raise Corrupt(f"{path}: neither a .gguf nor a .safetensors file")
    kind: Format = "gguf" if path.suffix == ".gguf" else "safetensors"
    return kind, _shards(path), ()


def _shards(path: Path) -> tuple[str, ...]:
    """All parts of the model that `path` is a part of. Raises ModelMissing when one is not there."""
    found = _SHARD.fullmatch(path.name)
    if not found:
        return (path.name,)
    count = int(found["count"])
    names = tuple(f"{found['stem']}-{i:05d}-of-{found['count']}{found['suffix']}" for i in range(1, count + 1))
    if lost := [n for n in names if not (path.parent / n).is_file()]:
        raise ModelMissing(f"{path.parent}: {len(lost)} of {count} parts are missing, the first is {lost[0]}")
    return names


def _folder(path: Path) -> tuple[Format, tuple[str, ...], tuple[str, ...]]:
    names = sorted(_files_below(path))
    weights = [n for n in names if n.endswith(".safetensors")]
    unsafe = [n for n in names if runs_code(n)]
    if not weights:
        if ggufs := [n for n in names if n.endswith(".gguf") and "/" not in n]:
            return _ggufs(path, ggufs)
        if any(n.lower().endswith(PICKLES) for n in unsafe):
            raise _pickle(path)
        raise ModelMissing(f"{path}: a folder without a .gguf or .safetensors file")
    kept = [n for n in names if n in weights or (n.endswith(_BESIDE) and not runs_code(n))]
    if "config.json" not in names and "adapter_config.json" not in names:
        raise ModelMissing(f"{path}: no config.json beside the weights", hint="Name a folder in the hub's layout.")
    kind: Format = "adapter" if "adapter_config.json" in names else "safetensors"
    notes = (f"left out, because they can run code: {', '.join(unsafe[:5])}",) if unsafe else ()
    return kind, tuple(kept), notes


def _ggufs(path: Path, names: list[str]) -> tuple[Format, tuple[str, ...], tuple[str, ...]]:
    models = {_shards(path / n) for n in names if not n.startswith("mmproj")}
    if len(models) != 1:
        raise ModelMissing(
            f"{path}: {len(models)} models in one folder: {', '.join(sorted(names)[:6])}", hint="Name one of the files."
        )
    return "gguf", models.pop(), ()


def _files_below(path: Path) -> Iterator[str]:
    """Files in `path` and one folder below, hidden ones left out; a link counts only if it stays a file."""
    for entry in path.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            yield entry.name
        elif entry.is_dir() and not entry.is_symlink():
            yield from (f"{entry.name}/{e.name}" for e in entry.iterdir() if e.is_file() and not e.name.startswith("."))


def _check_magic(path: Path) -> None:
    with path.open("rb") as stream:
        head = stream.read(9)
    if path.suffix == ".gguf" and head[:4] != b"GGUF":
        raise Corrupt(f"{path}: named .gguf, but it does not begin as a GGUF file does")
    if path.suffix == ".safetensors" and head[8:9] != b"{":
        raise Corrupt(f"{path}: named .safetensors, but it does not begin as one")


def _pickle(path: Path) -> Unsafe:
    return Unsafe(
        f"{path}: pickled weights can run code when they are loaded, and are refused",
        hint="Use the model's .safetensors or .gguf files.",
    )
