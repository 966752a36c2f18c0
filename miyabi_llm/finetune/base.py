"""The stage `base`: the model a run starts from as a folder of safetensors, whatever name the recipe gives it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from miyabi_llm.engines import checkpoints, tiny
from miyabi_llm.errors import BadUsage
from miyabi_llm.finetune.context import RunContext, StageResult, digest
from miyabi_llm.types import Artifact, Event

# What of a folder is the model: weights, configuration, tokenizer, template.
KEPT = (".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken")


def inputs(ctx: RunContext) -> Mapping[str, str]:
    """The name in the recipe; of a folder of the person's also what its files look like."""
    base = ctx.loaded.resolved()["base"]
    found = {"base": digest(base)}
    folder = local(ctx)
    if folder is not None and folder.is_dir():
        found["folder"] = digest([(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files(folder)])
    return found


def run(ctx: RunContext) -> StageResult:
    """Find or make the folder. Raises BadUsage, ModelMissing and what pulling and converting raise."""
    base = ctx.recipe.base
    if base.tiny is not None:
        return _tiny(ctx)
    folder = local(ctx)
    if folder is not None:
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise BadUsage(f"{folder} is no model folder", hint="config.json and *.safetensors have to be there.")
        ctx.on_event(Event("phase", "base", f"hashing {folder.name}"))
        return _result(folder, folder.name, digest({p.name: checkpoints.sha256(p) for p in files(folder)}), None)
    name = f"{base.model}@{base.revision}" if base.revision else str(base.model)  # as hf:ORG/REPO@REVISION is spelled
    found = ctx.verbs.bring(name, ctx.on_event)
    copy = found if found.format == "safetensors" else ctx.verbs.convert(found, ctx.on_event)
    if copy.format != "safetensors":
        raise BadUsage(f"{found.ref} is a {found.format} model: it cannot be trained", hint="Name a model's weights.")
    return _result(_folder(ctx, copy), str(base.model), _sha256(copy), str(found.ref) if copy is not found else None)


def local(ctx: RunContext) -> Path | None:
    """The folder that `base.model` means, when it is a path and no name."""
    model = ctx.recipe.base.model
    if model is None:
        return None
    if model.startswith(("/", "~", "./", "../", "file:")) or ctx.loaded.file(model).is_dir():
        return ctx.loaded.file(model.removeprefix("file:"))
    return None


def files(folder: Path) -> list[Path]:
    """The files of a folder that are the model."""
    return sorted(p for p in folder.iterdir() if p.is_file() and p.name.endswith(KEPT))


def _tiny(ctx: RunContext) -> StageResult:
    wanted = ctx.recipe.base.tiny
    assert wanted is not None
    found = ctx.verbs.bring(wanted.from_, ctx.on_event)
    named = [f for f in found.files if f.name.lower().endswith(".gguf")]
    if len(named) != 1:
        raise BadUsage(f"{wanted.from_} is not one GGUF file", hint="Its tokenizer is read from its GGUF file.")
    size = tiny.Tiny(wanted.hidden, wanted.layers, wanted.seed)
    path = ctx.store.files(found)[named[0].name]
    folder = tiny.make(path, named[0].sha256, size, ctx.engine, ctx.settings, ctx.on_event)
    label = f"tiny-qwen-{size.hidden}x{size.layers}-{size.seed}"
    return _result(folder, label, digest({p.name: checkpoints.sha256(p) for p in files(folder)}), None)


def _result(folder: Path, label: str, sha256: str, gguf: str | None) -> StageResult:
    told = {"folder": str(folder), "label": label, "sha256": sha256, "gguf": gguf}
    return StageResult(told | {"bytes": sum(p.stat().st_size for p in files(folder))})


def _folder(ctx: RunContext, artifact: Artifact) -> Path:
    """The folder where a stored model's files have their own names."""
    return ctx.store.files(artifact)["config.json"].parent


def _sha256(artifact: Artifact) -> str:
    return digest({f.name: f.sha256 for f in artifact.files})
