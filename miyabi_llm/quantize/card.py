"""What a quantized model is called, and its card: how it was made, from what, and how good it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from miyabi_llm import catalog
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, ModelMissing
from miyabi_llm.gguf import Header
from miyabi_llm.quantize.evaluation import Evaluation
from miyabi_llm.quantize.quality import RESOLUTION
from miyabi_llm.quantize.source import Source
from miyabi_llm.quantize.values import Limits, Measured, Order, Plan, Planned
from miyabi_llm.refs import SCHEMES, Digest, ModelRef
from miyabi_llm.store import Store
from miyabi_llm.types import Artifact, StoredFile

FULL = "the source at full precision"
UNSTEADY = 0.1  # standard deviation over mean of two runs, from which a speed says little
ROUNDED = "an already quantized source"
_LAYER = re.compile(r"blk\.(\d{1,6})\.(.+?)(?:\.weight)?")


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was found out. `source` maps file names to sha256; `resident` in bytes; `header` is the file's."""

    plan: Plan
    chosen: Measured
    measured: Sequence[Measured]
    source: Mapping[str, Digest]
    text: Evaluation
    argv: tuple[str, ...]
    tool: tuple[str, int | None, str | None]
    limits: Limits
    resident: int | None
    header: Header
    imatrix: Mapping[str, Any] | None = None


def against(plan: Plan) -> str:
    """What a loss is measured against, in words."""
    return FULL if plan.provenance.kind == "full" else ROUNDED


def name(source: Source, order: Order, store: Store, settings: Settings) -> ModelRef:
    """The name in the store: as ordered, or the source's with the type. Raises BadUsage when it is another model's."""
    ref = order.name or default_name(source.ref, order.types[0])
    if ref.scheme != "catalog":
        raise BadUsage(f"{ref} cannot be the name of a local model", hint="Names look like NAME or NAME:TAG.")
    try:
        catalog.load(settings).find(ref)
        raise BadUsage(f"{ref} is a model of the catalog", hint="Choose another name with -o.")
    except ModelMissing:
        pass
    try:
        here = store.manifest(ref)
    except ModelMissing:
        return ref
    if "quantized" not in here.card:
        raise BadUsage(f"{ref} is another model of the store", hint="Choose another name with -o.")
    return ref


def default_name(ref: ModelRef, kind: str) -> ModelRef:
    """NAME:TAG-type, or NAME:type for a source without a tag; in small letters. Pure."""
    last = ref.name.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf").removesuffix("-GGUF")
    # what was converted for quantizing is called NAME:TAG-gguf
    own = re.sub(r"-?gguf$", "", ref.revision or "") if ref.scheme in ("catalog", "ollama") else ""
    tag = f"{own}-{kind}" if own else kind
    return ModelRef.parse(f"{_word(last)}:{_word(tag)}".lower())


def said(ref: ModelRef) -> str:
    """A source's name for the card: of a path only the file's own name, for a card travels."""
    return f"file:{ref.name.rsplit('/', 1)[-1]}" if ref.scheme == "file" else str(ref)


def _word(text: str) -> str:
    plain = re.sub(r"\.\.+", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", text)).strip("._-")[:100] or "model"
    return f"{plain}-model" if plain.lower() in SCHEMES else plain  # hf:x would be a name at the hub


def artifact(source: Source, order: Order, ref: ModelRef, found: Evidence) -> Artifact:
    """The model as the store will have it, with its card."""
    chosen = found.chosen
    file = f"{_word(str(ref).replace(':', '-'))}.gguf"
    return Artifact(
        ref=ref,
        format="gguf",
        files=(StoredFile(file, Digest(chosen.sha256), chosen.size),),
        trust="local",
        source=f"quantized from {said(source.ref)}",
        pulled_at=datetime.now(UTC).isoformat(timespec="seconds"),
        license=(source.artifact.license if source.artifact else None) or source.header.text("general.license"),
        card=_card(source, order, file, found),
    )


def _card(source: Source, order: Order, file: str, found: Evidence) -> dict[str, Any]:
    chosen, planned = found.chosen, next(p for p in found.plan.types if p.type == found.chosen.type)
    before = source.artifact.card.get("lineage") if source.artifact else None
    line = {"ref": said(source.ref), "sha256": dict(found.source), "size": source.size}
    step = {"step": "quantize", "from": said(source.ref), "sha256": sorted(found.source.values())}
    names = {str(source.first): source.first.name}
    return {
        "quantized": {
            "type": chosen.type,
            "tool": "llama.cpp",
            "version": found.tool[0],
            "build": found.tool[1],
            "commit": found.tool[2],
            "argv": [names.get(word, file if word.endswith(".part") else word) for word in found.argv],
            "seconds": chosen.seconds,
        },
        "tensors": {kind: {"count": n, "bytes": size} for kind, (n, size) in planned.tensors.items()},
        "tensor_types": by_name(found.header),
        "fallbacks": planned.fallbacks,
        "imatrix": dict(found.imatrix) if found.imatrix is not None else None,
        "base": line | asdict(found.plan.provenance),
        "memory": {"ctx": found.plan.ctx, "bytes": planned.needed, "resident": found.resident},
        "quality": {k: v for k, v in asdict(chosen.quality).items() if v is not None},
        "gate": asdict(found.limits) | {"passed": chosen.passed} if found.limits != Limits() else None,
        "evaluation": {
            "text": order.text.name if order.text else "shipped with miyabi-llm",
            "sha256": found.text.sha256,
            "conversations": found.text.conversations,
            "tokens_read_otherwise": found.text.differ,
            "ctx": order.window.ctx,
            "batch": order.window.batch,
            "chunks": chosen.quality.chunks,
            "seed": 0,
        },
        "speed": asdict(chosen.speed) if chosen.speed else None,
        "others": [_other(m) for m in found.measured if m.type != chosen.type],
        "lineage": [*(before if isinstance(before, list) else []), step],
    }


def by_name(header: Header) -> dict[str, dict[str, str]]:
    """Each tensor's type: the tensor's name without its layer -> type -> the layers, as in 0-3,7; "" outside layers."""
    found: dict[str, dict[str, list[int]]] = {}
    for tensor in header.tensors:
        match = _LAYER.fullmatch(tensor.name)
        layers = found.setdefault(match[2] if match else tensor.name, {}).setdefault(tensor.type, [])
        if match:
            layers.append(int(match[1]))
    return {name: {kind: _ranges(layers) for kind, layers in kinds.items()} for name, kinds in found.items()}


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _other(m: Measured) -> dict[str, Any]:
    q = m.quality
    loss = {"kld": q.kld, "low": q.low, "high": q.high, "p999": q.p999, "same_top": q.same_top}
    speed = m.speed.speed if m.speed else None
    return {"type": m.type, "size": m.size, **loss, "speed": speed, "passed": m.passed, "why": list(m.why)}


def notes(chosen: Measured, planned: Planned, text: Evaluation) -> Iterator[str]:
    """What the person should know about the figures."""
    quality, speed = chosen.quality, chosen.speed
    if text.differ:
        yield f"{text.differ} tokens of the text were read otherwise than a server reads them"
    if quality.against == ROUNDED:
        yield "the loss is against an already quantized source; against the original model it is another, and unknown"
    if quality.kld < RESOLUTION:
        yield f"a divergence below {RESOLUTION} is below what the measurement can resolve"
    if (
        speed
        and min(speed.speed, speed.prompt_speed) > 0
        and max(speed.spread / speed.speed, speed.prompt_spread / speed.prompt_speed) > UNSTEADY
    ):
        yield "the speed was unsteady: another program used the processor"
    if planned.fallbacks:
        kinds = ", ".join(planned.tensors)
        yield f"{planned.fallbacks} tensors could not have the type {planned.type} gives them; the file holds {kinds}"
