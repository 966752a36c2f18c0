"""The model that is quantized: a stored one or a GGUF file, its header, and its bytes by hash before and after."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm import gguf
from miyabi_llm.errors import BadUsage, Corrupt, ModelMissing
from miyabi_llm.gguf import Header
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.shards import join
from miyabi_llm.store import Store
from miyabi_llm.store.adopt import hash_file
from miyabi_llm.types import Artifact

_SHARD = re.compile(r"(.+)-00001-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class Source:
    """A model to quantize. `files` maps names to paths, `digests` names to sha256; `first` is what programs open.

    `header` is of all files together, `parts` are those of the single files.
    """

    ref: ModelRef
    artifact: Artifact | None
    files: Mapping[str, Path]
    header: Header
    parts: tuple[tuple[Header, Path], ...] = ()

    @property
    def first(self) -> Path:
        """The file, or the first of its shards; absolute, so that no program takes it for a flag."""
        return self.files[min(self.files)].absolute()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return self.header.size

    def digests(self) -> dict[str, Digest]:
        """The sha256 of each file, of the bytes that are there now. Raises Corrupt when a stored one changed."""
        found = {name: hash_file(path) for name, path in self.files.items()}
        known = {f.name: f.sha256 for f in self.artifact.files} if self.artifact else found
        for name, digest in found.items():
            if known[name] != digest:
                raise Corrupt(
                    f"{name} has sha256 {digest}, expected {known[name]}", hint=f"miyabi-llm verify {self.ref}"
                )
        return found


def open_source(ref: ModelRef, store: Store, user_home: Path) -> Source:
    """The model `ref` means, its header read. Raises ModelMissing, BadUsage when it is no GGUF, Corrupt."""
    if ref.scheme == "file":
        path = Path(ref.name)
        path = user_home / path.relative_to("~") if path.parts[:1] == ("~",) else path
        files, artifact = _shards(path), None
    else:
        artifact = store.find(ref)
        files = {n: p for n, p in store.files(artifact).items() if n.endswith(".gguf") and "mmproj" not in n.lower()}
    if not files:
        raise BadUsage(f"{ref} has no GGUF file", hint="GGUF models and safetensors can be quantized.")
    headers = {}
    for name, path in files.items():
        try:
            with path.open("rb") as f:
                headers[name] = gguf.read(f, path.stat().st_size)
        except Corrupt as e:
            raise Corrupt(f"{name}: {e.message}", hint=e.hint, **e.details) from None
    header = join(headers)
    if not any(len(t.shape) == 2 for t in header.tensors):
        raise BadUsage(f"{ref} has no matrices to quantize", hint="Is it a vocabulary only?")
    return Source(ref, artifact, files, header, tuple((headers[n], files[n]) for n in sorted(files)))


def _shards(path: Path) -> dict[str, Path]:
    if not path.is_file():
        raise ModelMissing(f"{path}: no such file", hint="Name a .gguf file, or a model of `miyabi-llm list`.")
    if path.suffix != ".gguf":
        raise BadUsage(f"{path} is no .gguf file", hint="Name a .gguf file, or a folder of safetensors.")
    if m := _SHARD.fullmatch(path.name):
        return {p.name: p for p in sorted(path.parent.glob(f"*-of-{m[2]}.gguf")) if p.name.startswith(f"{m[1]}-")}
    return {path.name: path}
