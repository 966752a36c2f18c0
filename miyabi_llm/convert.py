"""The verb `convert`: a stored GGUF model as safetensors, for programs that read nothing else."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from miyabi_llm import __version__, catalog, engines, gguf, hardware, safetensors
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, Corrupt, DiskFull, Missing, ModelMissing
from miyabi_llm.gguf import Header
from miyabi_llm.refs import SCHEMES, ModelRef
from miyabi_llm.store import Fs, Store
from miyabi_llm.store.fs import nonce
from miyabi_llm.store.locks import take
from miyabi_llm.tools import hf_copy, vllm
from miyabi_llm.types import Artifact, Event, OnEvent, StoredFile, silent

TO = ("safetensors",)
BYTES = 2  # of a parameter in bfloat16
SLACK = 256 << 20  # bytes of disk kept free
NOTE = (
    "The weights were dequantized from {kind}: what the quantization lost is not back. This is no copy of the "
    "publisher's own safetensors."
)
INSTALL_HINT = "Run `miyabi-llm finetune install` (2 GB), or `miyabi-llm backend install vllm`."


def convert(
    artifact: Artifact, store: Store, settings: Settings, on_event: OnEvent = silent, *, name: ModelRef | None = None
) -> Artifact:
    """The GGUF model `artifact` as safetensors in bfloat16, published under `name`; at once when it is there already.

    Raises BadUsage for another format, an architecture that was never verified or a name that is taken, Missing
    without an environment that can read GGUF, DiskFull, Corrupt when the copy is not the model. Nothing is published
    then, and a killed run leaves nothing that the next one does not remove.
    """
    file, path, header = _source(artifact, store)
    hf_copy.vocabulary(header)  # what can be refused, is refused before anything is installed or written
    ref = name or default_name(artifact.ref)
    if (here := _taken(ref, file, store, settings)) is not None:
        on_event(Event("done", str(ref), "already here"))
        return here
    env = engines.get("trl").find(settings) or vllm.environment(settings)
    if env is None:
        raise Missing("no environment here can read GGUF files with transformers", hint=INSTALL_HINT)
    started = time.monotonic()
    with store.lease(artifact), _working(settings.cache / "convert") as folder:
        _check_disk(header, folder, store)
        copied = hf_copy.copy(path, header, folder, env, settings.env, on_event)
        made = folder / "model"
        _check(made, header)
        on_event(Event("phase", "publish", str(ref)))
        files = tuple(_adopt(made / name, store) for name in sorted(p.name for p in made.iterdir()))
        seconds = round(time.monotonic() - started, 1)
        result = Artifact(
            ref=ref,
            format="safetensors",
            files=files,
            trust="local",
            source=f"converted from {artifact.ref}",
            pulled_at=datetime.now(UTC).isoformat(timespec="seconds"),
            license=artifact.license or header.text("general.license"),
            card=_card(artifact, file, header, copied, seconds),
        )
        store.publish(result)
    on_event(Event("done", str(ref), f"in {seconds:.0f} s"))
    return result


def default_name(ref: ModelRef) -> ModelRef:
    """NAME:TAG-safetensors, or NAME:safetensors for a source without a tag; in small letters. Pure."""
    last = ref.name.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf").removesuffix("-GGUF")
    tag = f"{ref.revision}-safetensors" if ref.scheme in ("catalog", "ollama") and ref.revision else "safetensors"
    return ModelRef.parse(f"{_word(last)}:{_word(tag)}".lower())


def _word(text: str) -> str:
    plain = re.sub(r"\.\.+", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", text)).strip("._-")[:100] or "model"
    return f"{plain}-model" if plain.lower() in SCHEMES else plain  # hf:x would be a name at the hub


def _source(artifact: Artifact, store: Store) -> tuple[StoredFile, Path, Header]:
    """The one GGUF file, where it lies, and its header with whole arrays."""
    if artifact.format != "gguf":
        raise BadUsage(f"{artifact.ref} is a {artifact.format} model", hint="Only GGUF models are converted.")
    files = [f for f in artifact.files if f.name.lower().endswith(".gguf")]
    if len(files) != 1:
        raise BadUsage(f"{artifact.ref} has {len(files)} GGUF files", hint="Only a model in one file is converted.")
    path = store.files(artifact)[files[0].name]
    with path.open("rb") as f:
        return files[0], path, gguf.read(f, path.stat().st_size, whole_arrays=True)


def _taken(ref: ModelRef, file: StoredFile, store: Store, settings: Settings) -> Artifact | None:
    """The same copy, when it is there already. Raises BadUsage when `ref` is another model's name, or none."""
    if ref.scheme != "catalog":
        raise BadUsage(f"{ref} cannot be the name of a local model", hint="Names look like NAME or NAME:TAG.")
    try:
        catalog.load(settings).find(ref)
        raise BadUsage(f"{ref} is a model of the catalog", hint="Choose another name with --as.")
    except ModelMissing:
        pass
    try:
        here = store.find(ref)
    except ModelMissing:
        return None
    made = here.card.get("converted")
    if not isinstance(made, Mapping):
        raise BadUsage(f"{ref} is another model of the store", hint="Choose another name with --as.")
    return here if made.get("sha256") == file.sha256 and made.get("by") == f"miyabi-llm {__version__}" else None


def _check_disk(header: Header, folder: Path, store: Store) -> None:
    need = header.parameters * BYTES + SLACK
    same = folder.stat().st_dev == store.root.stat().st_dev
    for place in (folder,) if same else (folder, store.root):
        free = hardware.disk_free(place)
        if free is not None and free < need:
            raise DiskFull(
                f"{place}: {need >> 20:,} MiB are needed, {free >> 20:,} are free",
                hint="Free some space; `miyabi-llm prune` helps.",
                needed=need,
                free=free,
            )


def _check(folder: Path, header: Header) -> None:
    """Raise Corrupt unless the folder holds the file's parameters, once each, in bfloat16, and no code."""
    count = 0
    names = {p.name for p in folder.iterdir()}
    for name in sorted(n for n in names if n.endswith(".safetensors")):
        path = folder / name
        with path.open("rb") as f:
            found = safetensors.read(f, path.stat().st_size)
        if kinds := set(found.histogram) - {"BF16"}:
            raise Corrupt(f"{name} holds {', '.join(sorted(kinds))}, not only BF16", hint="Nothing was published.")
        count += sum(t.nbytes for t in found.tensors) // BYTES
    if count != header.parameters:
        raise Corrupt(f"{count:,} parameters were written, {header.parameters:,} are in the file")
    if odd := {n for n in names if not n.endswith((".safetensors", ".json", ".jinja", ".txt"))}:
        raise Corrupt(f"unexpected files in the copy: {', '.join(sorted(odd))}")


def _adopt(path: Path, store: Store) -> StoredFile:
    path.chmod(0o444)  # a hard link keeps the mode
    sha256, size, _ = store.adopt(path)
    return StoredFile(path.name, sha256, size)


def _card(
    artifact: Artifact, file: StoredFile, header: Header, copied: hf_copy.Copied, seconds: float
) -> dict[str, Any]:
    before = artifact.card.get("lineage")
    kind = header.file_type or "an unnamed type"
    return {
        "converted": {
            "from": str(artifact.ref),
            "sha256": file.sha256,
            "quantization": kind,
            "to": "bfloat16 safetensors",
            "by": f"miyabi-llm {__version__}",
            "tools": dict(copied.versions),
            "seconds": seconds,
            "note": NOTE.format(kind=kind),
        },
        "checked": {
            "vocabulary": f"all {header.vocab_size} tokens against the file's header",
            "parameters": header.parameters,
            "greedy": dict(copied.greedy),
            "probes": {text: list(ids) for text, ids in copied.probes.items()},
        },
        "lineage": [
            *(before if isinstance(before, list) else []),
            {"step": "convert", "from": str(artifact.ref), "sha256": [file.sha256]},
        ],
    }


@contextmanager
def _working(root: Path) -> Iterator[Path]:
    """A private folder; what killed runs left is removed first, and this one at its end."""
    root.mkdir(parents=True, exist_ok=True)
    fs = Fs()
    gate = take(fs, root / ".lock", exclusive=True)
    assert gate is not None  # without a timeout it waits
    try:
        for left in (p for p in root.iterdir() if p.is_dir()):
            if (dead := take(fs, left / "lock", exclusive=True, timeout=0)) is not None:
                shutil.rmtree(left, ignore_errors=True)
                dead.release()
        folder = root / nonce()
        folder.mkdir(mode=0o700)
        mine = take(fs, folder / "lock", exclusive=True)
        assert mine is not None
    finally:
        gate.release()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        mine.release()
