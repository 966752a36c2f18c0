"""Show a stored model to other tools: their folders, their names, our bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from miyabi_llm import catalog, gguf
from miyabi_llm.config import Settings
from miyabi_llm.errors import AccessDenied, BadUsage, MiyabiError, ModelMissing, Unsafe
from miyabi_llm.refs import ModelRef, is_safe_name
from miyabi_llm.store.adopt import folders, hash_file
from miyabi_llm.types import Artifact, StoredFile

OURS = "miyabi"  # our corner of Ollama's names: without one a name means a model of Ollama's own library

Tool = Literal["hf", "ollama", "lm-studio"]
TOOLS: tuple[Tool, ...] = get_args(Tool)

_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_PROJECTOR = re.compile(r"mmproj|^projector\b", re.ASCII)
_TEXTS = re.compile(r"(template|system|params|messages|license)(?:-\d+)?(?:\.json)?", re.ASCII)
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.ollama.image."


@dataclass(frozen=True, slots=True)
class Linked:
    """One model in another tool's folder: `name` is what that tool calls it, `files` path -> how it got there.

    `how` is hardlink, symlink, written (small files of the tool's own), or present (the same bytes were there).
    """

    tool: Tool
    name: str
    files: Mapping[Path, str]
    notes: tuple[str, ...] = ()


def link(
    tool: Tool, artifact: Artifact, blobs: Mapping[str, Path], settings: Settings, *, name: str | None = None
) -> Linked:
    """Put `artifact` into `tool`'s folder without a second copy. `blobs` maps its file names to paths on disk.

    `name` replaces the name the model gets there: ORG/REPO for hf and lm-studio, NAME[:TAG] for ollama. Hard links,
    symlinks across file systems. Raises Unsafe rather than replace different bytes, AccessDenied where we may not
    write, BadUsage when the tool cannot hold such a model.
    """
    paths = {f: blobs[f.name].resolve(strict=True) for f in artifact.files}
    if unsafe := next((f.name for f in artifact.files if not is_safe_name(f.name)), None):
        raise Unsafe(f"file name {unsafe!r} leaves its place")
    make = {"hf": _hf, "ollama": _ollama, "lm-studio": _lm_studio}[tool]
    try:
        return make(artifact, paths, settings, name)
    except PermissionError as e:
        raise AccessDenied(
            f"{e.filename}: {e.strerror}", hint="The folder belongs to another user: run the command as that user."
        ) from e


def _hf(artifact: Artifact, paths: Mapping[StoredFile, Path], settings: Settings, name: str | None) -> Linked:
    """The hub client's cache: blobs/HASH, snapshots/COMMIT/FILE pointing at it, refs/main naming the commit."""
    repo, commit = _repository(artifact, settings, name)
    if repo is None:
        raise BadUsage(f"{artifact.ref} comes from no hub repository", hint="Name one: --as ORG/REPO.")
    # a model that was never at the hub gets a revision made of its bytes: the cache wants 40 hexadecimal digits
    commit = commit or hashlib.sha256("".join(f.sha256 for f in artifact.files).encode()).hexdigest()[:40]
    root = folders(settings).hf / f"models--{repo.replace('/', '--')}"
    done: dict[Path, str] = {}
    for file, source in paths.items():
        blob, snapshot = root / "blobs" / file.sha256, root / "snapshots" / commit / file.name
        done[blob] = place(source, blob, file)
        done[snapshot] = _point(snapshot, blob, file)
    main = root / "refs/main"
    if not main.exists():
        done[main] = _write(main, commit.encode())
    head = main.read_text(encoding="utf-8").strip()
    notes = () if head == commit else (f"{repo} is at {head[:12]} in that cache: ask for revision {commit}.",)
    return Linked("hf", f"{repo}@{commit}", done, notes)


def _ollama(artifact: Artifact, paths: Mapping[StoredFile, Path], settings: Settings, name: str | None) -> Linked:
    """Ollama's store: blobs by digest, a config blob, and a manifest, written last, under the model's name."""
    config, body = ollama_documents(artifact, paths)
    roles = [f for f in artifact.files if ollama_role(f)]
    sha = hashlib.sha256(config).hexdigest()
    space, model, tag = _ollama_name(artifact, name)
    where = folders(settings).ollama
    root = next((p for p in where if p.is_dir()), where[0])
    manifest = root / "manifests/registry.ollama.ai" / space / model / tag
    if manifest.exists() and manifest.read_bytes() != body:
        raise Unsafe(f"{manifest} names another model", hint="Choose another name: --as NAME:TAG.")
    done = {blob: place(paths[f], blob, f) for f in roles for blob in [root / "blobs" / f"sha256-{f.sha256}"]}
    done[root / "blobs" / f"sha256-{sha}"] = _write(root / "blobs" / f"sha256-{sha}", config)
    done[manifest] = _write(manifest, body)
    shown = f"{model}:{tag}" if space == "library" else f"{space}/{model}:{tag}"
    return Linked("ollama", shown, done)


def ollama_documents(artifact: Artifact, paths: Mapping[StoredFile, Path]) -> tuple[bytes, bytes]:
    """The two small files by which Ollama knows a model: its config blob, and the manifest that names all blobs.

    Raises BadUsage when the model is not one GGUF file (and what belongs to it).
    """
    roles = {f: role for f in artifact.files if (role := ollama_role(f))}
    models = [f for f, role in roles.items() if role == "model"]
    if len(models) != 1:
        what = "has no GGUF file" if not models else f"is split over {len(models)} files, which Ollama cannot read"
        raise BadUsage(f"{artifact.ref} {what}", hint="Ollama takes one GGUF file: merge the parts first.")
    config = _json(_ollama_config(paths[models[0]], [f.sha256 for f in roles]))
    sha = hashlib.sha256(config).hexdigest()
    layers = [{"mediaType": _LAYER + role, "digest": f"sha256:{f.sha256}", "size": f.size} for f, role in roles.items()]
    body = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": {"mediaType": _CONFIG, "digest": f"sha256:{sha}", "size": len(config)},
        "layers": layers,
    }
    return config, _json(body)


def _lm_studio(artifact: Artifact, paths: Mapping[StoredFile, Path], settings: Settings, name: str | None) -> Linked:
    """LM Studio's folder: PUBLISHER/REPO/FILE."""
    repo, _ = _repository(artifact, settings, name)
    tag = artifact.ref.revision or artifact.ref.quant
    repo = repo or f"miyabi-llm/{_slug(artifact)}" + (f"-{_plain(tag)}" if tag else "")
    where = folders(settings).lm_studio
    root = next((p for p in where if p.is_dir()), where[0]) / repo
    done = {root / f.name: place(source, root / f.name, f) for f, source in paths.items()}
    return Linked("lm-studio", repo, done)


def place(source: Path, target: Path, file: StoredFile) -> str:
    """Give `source` the second name `target`: hardlink, else symlink; `present` when the same bytes are there.

    Raises Unsafe when `target` holds anything else; a symlink to nothing is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() and not target.exists():
        target.unlink()
    try:
        try:
            os.link(source, target)
        except FileExistsError:
            raise
        except OSError:  # another file system, another owner, or links are not known there
            target.symlink_to(source)
            return "symlink"
    except FileExistsError:
        _same(target, file)
        return "present"
    return "hardlink"


def _point(snapshot: Path, blob: Path, file: StoredFile) -> str:
    """The hub's snapshot entry: a relative symlink to the blob; a hard link where symlinks are not allowed."""
    snapshot.parent.mkdir(parents=True, exist_ok=True)
    try:
        snapshot.symlink_to(os.path.relpath(blob, snapshot.parent))
    except FileExistsError:
        _same(snapshot, file)
        return "present"
    except OSError:
        return place(blob.resolve(), snapshot, file)
    return "symlink"


def _same(target: Path, file: StoredFile) -> None:
    if not target.is_file() or target.stat().st_size != file.size or hash_file(target) != file.sha256:
        raise Unsafe(f"{target} is there and holds other bytes", hint="Move it away, or choose another name with --as.")


def _write(target: Path, data: bytes) -> str:
    """A small file, whole or not at all, never over different bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        _publish(draft, target)
    except FileExistsError:
        if target.read_bytes() != data:
            raise Unsafe(f"{target} is there and holds other bytes", hint="Choose another name with --as.") from None
        return "present"
    finally:
        draft.unlink(missing_ok=True)
    return "written"


def _publish(draft: Path, target: Path) -> None:
    """`draft` under its real name, atomically; FileExistsError when that is taken."""
    try:
        os.link(draft, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(str(target)) from None
        draft.rename(target)


def _repository(artifact: Artifact, settings: Settings, name: str | None) -> tuple[str | None, str | None]:
    """(ORG/REPO, commit) as asked, as pulled, or as the catalog knows it; None where nothing says it."""
    if name is not None:
        ref = ModelRef.parse(f"hf:{name}")
        if ref.quant or ref.file:
            raise BadUsage(f"{name!r} is no repository", hint="The form is ORG/REPO.")
        return ref.name, ref.revision if _COMMIT.fullmatch(ref.revision or "") else None
    hub = [ref for ref in _origins(artifact, settings) if ref.scheme == "hf"]
    fixed = [ref for ref in hub if _COMMIT.fullmatch(ref.revision or "")]
    return (fixed[0].name, fixed[0].revision) if fixed else (hub[0].name, None) if hub else (None, None)


def _origins(artifact: Artifact, settings: Settings) -> Iterator[ModelRef]:
    """Every name under which these bytes are known, the one they came by first."""
    for text in (str(artifact.card.get("resolved", "")), artifact.source, str(artifact.ref)):
        # the source of an imported file may be a path or free text
        with contextlib.suppress(MiyabiError):
            yield ModelRef.parse(text)
    if artifact.ref.scheme == "catalog":
        with contextlib.suppress(ModelMissing):
            entry = catalog.load(settings).find(artifact.ref)
            if [f.sha256 for f in artifact.files] == [entry.sha256]:
                yield from (s for s in entry.sources if isinstance(s, ModelRef))


def _slug(artifact: Artifact) -> str:
    """The artifact's own name as one path segment."""
    text = artifact.ref.name.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")
    return _plain(text) or "model"


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")


def _ollama_name(artifact: Artifact, name: str | None) -> tuple[str, str, str]:
    """(namespace, name, tag) as Ollama spells them, in lower case."""
    ref = artifact.ref
    if name is not None:
        ref = ModelRef.parse(f"ollama:{name}")
    if ref.scheme in ("ollama", "catalog"):
        space, _, model = ref.name.rpartition("/")
        usual = "library" if ref.scheme == "ollama" else OURS
        return (space or usual).lower(), model.lower(), (ref.revision or "latest").lower()
    return OURS, _slug(artifact).lower(), (ref.quant or "latest").lower()


def ollama_role(file: StoredFile) -> str | None:
    """The layer an artifact's file becomes in Ollama, or None for what Ollama does not read."""
    name = file.name.lower().rsplit("/", 1)[-1]
    if name.endswith(".gguf"):
        return "adapter" if name == "adapter.gguf" else "projector" if _PROJECTOR.search(name) else "model"
    known = _TEXTS.fullmatch(name)
    return known[1] if known else None


def _ollama_config(path: Path, digests: list[str]) -> dict[str, object]:
    with path.open("rb") as f:
        header = gguf.read(f, path.stat().st_size)
    return {
        "model_format": "gguf",
        "model_family": header.architecture,
        "model_families": [header.architecture],
        "model_type": header.text("general.size_label") or f"{header.parameters / 1e9:.1f}B",
        "file_type": header.file_type or "unknown",
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{d}" for d in digests]},
    }


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
