"""The same held-out rows through every stage of the model: base, adapter, merged, GGUF, quantized GGUF.

What a model scored is kept row by row in `proof/STAGE.json`, so that any two can be compared later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from miyabi_llm.errors import MiyabiError
from miyabi_llm.finetune import export, measures, parity, tools
from miyabi_llm.finetune.context import RunContext, StageResult, digest, made_by, section
from miyabi_llm.finetune.measures import Stage
from miyabi_llm.finetune.rundir import write_json
from miyabi_llm.finetune.server import score, serving
from miyabi_llm.types import Event, plain

ANSWERED = frozenset({"exact", "contains", "overlap"})  # metrics that need answers, not only chances
SHOWN, SHORT = 3, 48  # answers for the report when the metric needs none, and their tokens
PROBES = "trainer.json"


def words(ctx: RunContext) -> str:
    """What of the recipe decides a measurement, for `inputs`."""
    return section(ctx, "evaluate")


def template(ctx: RunContext) -> dict[str, Any]:
    """Further words for the chat template, the same in training, evaluation and serving."""
    return {}


def base(ctx: RunContext) -> dict[str, Any]:
    """The model before: the base itself, not packed, whatever the training did to it."""
    return {"base": str(ctx.base.folder), "precision": ctx.precision}


def trained(ctx: RunContext) -> dict[str, Any]:
    """The model as it was trained: the base as the training saw it, the adapter beside it."""
    method = ctx.recipe.lora.method
    if method == "full":
        return {"base": str(ctx.run.adapter), "precision": ctx.precision}
    return {
        "base": str(ctx.base.folder), "adapter": str(ctx.run.adapter), "nf4": method == "qlora",
        "precision": ctx.precision,
    }  # fmt: skip


def write_rows(ctx: RunContext) -> Path:
    """The held-out rows that are measured, as a file. Judgements of bad answers say nothing of a model's own."""
    place = proof(ctx, "rows.jsonl")
    place.parent.mkdir(parents=True, exist_ok=True)
    kept = [r for r in read_rows(ctx.run.eval_rows) if r.get("label", True)][: ctx.recipe.evaluate.samples]
    place.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept), encoding="utf-8")
    return place


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl; none when it is not there."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def proof(ctx: RunContext, name: str) -> Path:
    """A file of what was measured."""
    return ctx.run.root / "proof" / name


def answered(ctx: RunContext) -> tuple[int, int]:
    """How many rows are answered, and with how many tokens at most."""
    wanted = ctx.recipe.evaluate
    if wanted.metric in ANSWERED:
        return wanted.samples, wanted.max_tokens
    return SHOWN, min(SHORT, wanted.max_tokens)


def order(ctx: RunContext, rows: Path, models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The order for the child's `score`."""
    many, most = answered(ctx)
    return {
        "stages": [{"name": name, **spec} for name, spec in models.items()], "rows": str(rows),
        "forget": str(ctx.run.forget_rows) if ctx.run.forget_rows.is_file() else None,
        "answers": many, "most": most, "template": template(ctx),
    }  # fmt: skip


def base_inputs(ctx: RunContext) -> Mapping[str, str]:
    """The base and the rows."""
    return {**made_by(ctx, "data"), "base": ctx.base.sha256, "evaluate": words(ctx)}


def run_base(ctx: RunContext) -> StageResult:
    """Measure the base."""
    rows = write_rows(ctx)
    told = ctx.job("score", order(ctx, rows, {"base": base(ctx)}))["stages"]["base"]
    return result(ctx, "base", told, rows)


def adapter_inputs(ctx: RunContext) -> Mapping[str, str]:
    """The adapter and the rows."""
    return {**made_by(ctx, "train", "data"), "base": ctx.base.sha256, "evaluate": words(ctx)}


def run_adapter(ctx: RunContext) -> StageResult:
    """Measure the adapter on its base, and write down what the trainer says to the probes of the parity gate."""
    rows = write_rows(ctx)
    asked = parity.probes(read_rows(rows))
    probes = {
        "kind": "logprobs", "model": trained(ctx), "probes": asked, "tokens": parity.TOKENS, "top": parity.TOP,
        "template": template(ctx),
    }  # fmt: skip
    jobs = [{"kind": "score", **order(ctx, rows, {"adapter": trained(ctx)})}, probes]
    scored, told = ctx.job("prove", {"jobs": jobs})["answers"]
    write_json(proof(ctx, PROBES), {**told, "asked": asked})
    return result(ctx, "adapter", scored["stages"]["adapter"], rows, proof(ctx, PROBES))


def merged_inputs(ctx: RunContext) -> Mapping[str, str]:
    """The merged folder."""
    return {**made_by(ctx, "merge"), "evaluate": words(ctx)}


def run_merged(ctx: RunContext) -> StageResult:
    """What `merge` measured of the merged folder, judged against the base."""
    return result(ctx, "merged", load(ctx, "merged"))


def gguf_inputs(ctx: RunContext) -> Mapping[str, str]:
    """The files and the rows."""
    return {**made_by(ctx, "gguf", "quantize", "data"), "evaluate": words(ctx)}


def run_gguf(ctx: RunContext) -> StageResult:
    """Measure every finished file, and the 16-bit one they come from, through the real server."""
    rows, forget = read_rows(write_rows(ctx)), read_rows(ctx.run.forget_rows)
    many, most = answered(ctx)
    figures: dict[str, Any] = {}
    kept: list[Path] = []
    for kind, path in ({export.FULL: export.full_file(ctx)} | export.finished(ctx)).items():
        ctx.on_event(Event("phase", "evaluate", f"{kind} in llama-server"))
        with serving(path, tools.kitchen(ctx), context(ctx, most), template(ctx)) as server:
            told = score(server, rows, forget, answered=(many, most), on_event=ctx.on_event, name=kind)
        kept.append(keep(ctx, kind, told))
        figures[kind] = plain(judged(ctx, kind, told))
    summary = "; ".join(f"{kind} {brief(ctx, figures[kind])}" for kind in figures)
    return StageResult({"told": summary, "stages": figures}, tuple(kept))


def context(ctx: RunContext, most: int) -> int:
    """Tokens of context that a row and its answer need."""
    return max(2048, ctx.recipe.data.max_length + most + 64)


def result(ctx: RunContext, name: str, told: Mapping[str, Any], *more: Path) -> StageResult:
    """Keep the rows, give the sums."""
    kept = keep(ctx, name, told)
    figures = plain(judged(ctx, name, told))
    return StageResult({"told": brief(ctx, figures), **figures}, (kept, *more))


def brief(ctx: RunContext, figures: Mapping[str, Any]) -> str:
    """One model in a few words."""
    words = f"{ctx.recipe.evaluate.metric} {figures['metric']['value']:.4f}"
    gain = figures["gain"]
    return words + (f", gain {gain['value']:.4f} ({gain['low']:.4f} to {gain['high']:.4f})" if gain else "")


def judged(ctx: RunContext, name: str, told: Mapping[str, Any]) -> Stage:
    """The sums of one model, against the base's."""
    wanted = ctx.recipe.evaluate
    before = load(ctx, "base") if name != "base" else None
    return measures.stage(name, wanted.metric, told, before, wanted.bootstrap)


def keep(ctx: RunContext, name: str, told: Mapping[str, Any]) -> Path:
    """Write down what a model scored, row by row."""
    place = proof(ctx, f"{name}.json")
    write_json(place, dict(told))
    return place


def load(ctx: RunContext, name: str) -> dict[str, Any]:
    """What a model scored. Raises MiyabiError when it was not measured."""
    try:
        told: dict[str, Any] = json.loads(proof(ctx, f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise MiyabiError(f"{name} was not measured in the run {ctx.run.name}: {e}") from e
    return told


def names(ctx: RunContext) -> Sequence[str]:
    """Every stage that is measured, in order."""
    return ("base", "adapter", "merged", *dict.fromkeys((export.FULL, *export.finished(ctx))))


def asked(ctx: RunContext) -> str:
    """The hash of the rows that are measured, for the card."""
    return digest(read_rows(proof(ctx, "rows.jsonl")))
