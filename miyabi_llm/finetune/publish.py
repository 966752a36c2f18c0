"""What passed every gate gets a name: in the store, with its card, and in the Ollama that runs here if wanted."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from miyabi_llm import catalog
from miyabi_llm.errors import BadUsage, ModelMissing
from miyabi_llm.finetune import card, export, modelfile, parity, tools
from miyabi_llm.finetune.context import RunContext, StageResult, made_by
from miyabi_llm.finetune.rundir import write_text
from miyabi_llm.quantize import original, to_ollama
from miyabi_llm.refs import ModelRef
from miyabi_llm.types import Artifact, Event, StoredFile, plain

OLLAMA_CTX = 4096  # tokens: what Ollama gives a model when nobody says a number


def inputs(ctx: RunContext) -> Mapping[str, str]:
    """The finished files and their name."""
    return {**made_by(ctx, "gguf", "quantize", "gates", "parity"), "name": export.word(ctx)}


def refs(ctx: RunContext) -> dict[str, ModelRef]:
    """The name of every type: NAME:type, and NAME alone for the first of the recipe. Pure."""
    name = export.word(ctx).lower()
    kinds = list(export.finished(ctx))
    return {kind: ModelRef.parse(f"{name}:{kind.lower()}") for kind in kinds}


def plain_ref(ctx: RunContext) -> ModelRef:
    """NAME alone: the first type of the recipe."""
    return ModelRef.parse(export.word(ctx).lower())


def refuse_taken(ctx: RunContext) -> None:
    """Raise BadUsage when a name is another model's. Told before the training, and again before publishing."""
    for ref in (*refs(ctx).values(), plain_ref(ctx)):
        try:
            catalog.load(ctx.settings).find(ref)
            raise BadUsage(f"{ref} is a model of the catalog", hint="Give it another name: `export.name`.")
        except ModelMissing:
            pass
        try:
            here = ctx.store.manifest(ref)
        except ModelMissing:
            continue
        if "finetuned" not in here.card:
            raise BadUsage(f"{ref} is another model of the store", hint="Give it another name: `export.name`.")


def foresee(ctx: RunContext) -> StageResult:
    """What would stop the publishing after hours of training: a name that is taken, an Ollama that does not answer."""
    refuse_taken(ctx)
    if ctx.recipe.export.ollama:
        to_ollama.running(ctx.settings)
    return StageResult({"told": ", ".join(str(r) for r in (plain_ref(ctx), *refs(ctx).values()))})


def foresee_inputs(ctx: RunContext) -> Mapping[str, str]:
    """The names."""
    return {"name": export.word(ctx), "export": export.wanted(ctx)}


def run(ctx: RunContext) -> StageResult:
    """Publish every finished file. Raises BadUsage for a name that is taken, Corrupt."""
    refuse_taken(ctx)
    body = card.body(ctx)
    told: dict[str, Any] = {}
    for kind, path in export.finished(ctx).items():
        path.chmod(0o444)  # a hard link keeps the mode
        sha256, size, how = ctx.store.adopt(path)
        file = StoredFile(path.name, sha256, size)
        for ref in (refs(ctx)[kind], *([plain_ref(ctx)] if not told else [])):
            ctx.store.publish(_artifact(ctx, ref, file, kind, body))
        told[kind] = {"ref": str(refs(ctx)[kind]), "sha256": sha256, "size": size, "shared": how}
        ctx.on_event(Event("done", "publish", str(refs(ctx)[kind])))
    words = ", ".join(str(one["ref"]) for one in told.values())
    text = ctx.run.gguf / "Modelfile"
    first = next(iter(export.finished(ctx).values()))
    promise = original.read_promise({p.name: p for p in ctx.run.merged.iterdir()})
    write_text(text, modelfile.modelfile(first.name, parity.header_of(first), promise.ends, OLLAMA_CTX))
    return StageResult({"told": words, "published": told, "name": str(plain_ref(ctx))}, (text,))


def _artifact(ctx: RunContext, ref: ModelRef, file: StoredFile, kind: str, body: Mapping[str, Any]) -> Artifact:
    """The model as the store has it, with its card."""
    short = {k: v for k, v in body.items() if k != "stages"} | {
        "type": kind, "gates": body["stages"].get("gates", {}).get("figures", {}),
        "parity": body["stages"].get("parity", {}).get("figures", {}).get("tables", {}).get(kind),
        "measured": {
            **{n: body["stages"].get(f"evaluate-{n}", {}).get("figures") for n in ("base", "adapter", "merged")},
            kind: body["stages"].get("evaluate-gguf", {}).get("figures", {}).get("stages", {}).get(kind),
        },
        "outputs": {n: s["outputs"] for n, s in body["stages"].items()},
    }  # fmt: skip
    source = _base(ctx)
    earlier = source.card.get("lineage") if source is not None else None
    step = {"step": "finetune", "from": ctx.base.label, "sha256": [ctx.base.sha256], "recipe": body["recipe"]["sha256"]}
    return Artifact(
        ref, "gguf", (file,), "local", f"fine-tuned from {ctx.base.label}",
        datetime.now(UTC).isoformat(timespec="seconds"), source.license if source is not None else None,
        {"finetuned": plain(short), "lineage": [*(earlier if isinstance(earlier, list) else []), step]},
    )  # fmt: skip


def _base(ctx: RunContext) -> Artifact | None:
    """The base as a model of the store, when it is one: its licence holds for what was made of it."""
    name = ctx.base.gguf or ctx.recipe.base.model
    try:
        return ctx.store.manifest(ModelRef.parse(name)) if name else None
    except (BadUsage, ModelMissing):
        return None


def ollama_left_out(ctx: RunContext) -> str:
    """Why there is nothing to hand over."""
    return "" if ctx.recipe.export.ollama else "export.ollama is not set"


def ollama_inputs(ctx: RunContext) -> Mapping[str, str]:
    """What was published, and the name there."""
    return {**made_by(ctx, "gguf", "quantize"), "ollama": str(ctx.recipe.export.ollama)}


def to_running_ollama(ctx: RunContext) -> StageResult:
    """Give the first type to the Ollama that runs here; kept there only if its prompts are the model's own.

    Raises NetworkError when none runs, GateFailed when it renders prompts otherwise.
    """
    name = to_ollama.parse(f"ollama:{ctx.recipe.export.ollama}")
    kind, path = next(iter(export.finished(ctx).items()))
    artifact = ctx.store.find(refs(ctx)[kind])
    with ctx.store.lease(artifact):
        wanted = to_ollama.Wanted(name, OLLAMA_CTX, parity.header_of(path), ctx.settings)
        handed = to_ollama.hand(artifact, ctx.store.files(artifact), wanted, tools.kitchen(ctx), ctx.on_event)
    return StageResult({"name": handed.name, "url": handed.url, "probes": handed.probes})
