"""What goes to llama-quantize as the person says it: types for single tensors, and how a result is cut into files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from miyabi_llm import gguf
from miyabi_llm.errors import BadUsage, Corrupt
from miyabi_llm.quantize.source import Source
from miyabi_llm.quantize.work import Work
from miyabi_llm.shards import join
from miyabi_llm.store.adopt import hash_file
from miyabi_llm.tools.quantizing import Tools
from miyabi_llm.types import Artifact, StoredFile


@dataclass(frozen=True, slots=True)
class Passing:
    """Flags of llama-quantize. `tensor_types` are REGEX=TYPE; `keep_split`: as many files as the source has."""

    pure: bool = False
    tensor_types: tuple[str, ...] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    keep_split: bool = False

    def words(self) -> tuple[str, ...]:
        """The words for the command line; cutting into files is done afterwards. Raises BadUsage."""
        for text in self.tensor_types:
            pattern, _, kind = text.partition("=")
            if not pattern or not kind:
                raise BadUsage(f"--tensor-type {text!r} is not REGEX=TYPE", hint="Such as attn_v=q8_0.")
        words = ["--pure"] if self.pure else []
        for flag, value in (
            ("--output-tensor-type", self.output_type),
            ("--token-embedding-type", self.embedding_type),
        ):
            words += [flag, value] if value else []
        for text in self.tensor_types:
            words += ["--tensor-type", text]
        return tuple(words)


def place(artifact: Artifact, file: Path, source: Source, tools: Tools, work: Work, *, keep_split: bool) -> Artifact:
    """Put the file into the store, as one or cut like the source; the artifact with the files it has there.

    Raises BadUsage when a source of one file is to be kept in several, Corrupt when the pieces are not the whole.
    """
    store = work.store
    if not keep_split:
        store.publish_blob(file, artifact.files[0].sha256)
        return artifact
    if len(source.parts) < 2:
        raise BadUsage(f"{source.ref} is one file: there is no split to keep", hint="Leave out --keep-split.")
    with file.open("rb") as f:
        whole = gguf.read(f, file.stat().st_size)
    prefix = work.target()
    tools.split(file, prefix, max(len(header.tensors) for header, _ in source.parts))
    made = sorted(prefix.parent.glob(f"{prefix.name}-*-of-*.gguf"))
    headers = {}
    for path in made:
        with path.open("rb") as f:
            headers[path.name] = gguf.read(f, path.stat().st_size)
    if not made or {(t.name, t.type, t.shape) for t in join(headers).tensors} != {
        (t.name, t.type, t.shape) for t in whole.tensors
    }:
        raise Corrupt("the pieces are not the whole file", hint="Nothing was published. Leave out --keep-split.")
    stem, files = artifact.files[0].name.removesuffix(".gguf"), []
    for path in made:
        sha256, size = hash_file(path), path.stat().st_size
        files.append(StoredFile(f"{stem}{path.name.removeprefix(prefix.name)}", sha256, size))
        store.publish_blob(path, sha256)
    file.unlink(missing_ok=True)
    return replace(artifact, files=tuple(files))
