"""The verb `finetune compare`: two runs or models on the same rows, paired, with an interval."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from miyabi_llm.errors import BadUsage, InvalidMeasurement, ModelMissing
from miyabi_llm.finetune import evaluate, export, measures, tools
from miyabi_llm.finetune.context import RunContext
from miyabi_llm.finetune.measures import LOWER_IS_BETTER, UNITS, Interval
from miyabi_llm.finetune.server import score, serving
from miyabi_llm.refs import ModelRef
from miyabi_llm.types import Event


@dataclass(frozen=True, slots=True)
class Compared:
    """B against A on `rows` rows: `gain` above 0 means that B is better. `verdict`: better, worse or undecided."""

    a: str
    b: str
    metric: str
    unit: str
    of_a: Interval
    of_b: Interval
    gain: Interval
    verdict: str
    forgot: Interval | None = None


def compare(ctx: RunContext, a: str, b: str, other: RunContext | None = None) -> Compared:
    """Compare two stages of the run `ctx`, a stage of it with one of the run `other`, or with a model of the store.

    A side is the name of a stage (base, adapter, merged, F16, Q8_0, ...) or, for `b`, of a stored model, which is then
    measured on the rows of the run. Raises InvalidMeasurement when the rows are not the same, ModelMissing, BadUsage.
    """
    metric = ctx.recipe.evaluate.metric
    if other is not None and other.recipe.evaluate.metric != metric:
        raise InvalidMeasurement(f"{ctx.run.name} was measured in {metric}, the other in another metric")
    first = _told(ctx, a)
    second = _told(other, b) if other is not None else _stage_or_model(ctx, b)
    draws = ctx.recipe.evaluate.bootstrap
    rows_a, rows_b = measures.rows_of(metric, first), measures.rows_of(metric, second)
    gain = measures.change(rows_a, rows_b, draws, 0)
    gain = measures.negative(gain) if metric in LOWER_IS_BETTER else gain
    verdict = "better" if gain.low > 0 else "worse" if gain.high < 0 else "undecided"
    forgot = None
    if first.get("forget") and second.get("forget"):
        kept = [measures.rows_of("loss", {"rows": side["forget"]}) for side in (first, second)]
        forgot = measures.change(kept[0], kept[1], draws, 0)
    label = f"{other.run.name}:{b}" if other is not None else b
    return Compared(
        f"{ctx.run.name}:{a}", label, metric, UNITS[metric], measures.mean(rows_a, draws, 0),
        measures.mean(rows_b, draws, 0), gain, verdict, forgot,
    )  # fmt: skip


def last(ctx: RunContext) -> str:
    """The stage a run is known by: its first finished type, else the last that was measured."""
    kinds = [*export.finished(ctx), "merged", "adapter", "base"]
    for name in kinds:
        if evaluate.proof(ctx, f"{name}.json").is_file():
            return name
    raise BadUsage(f"nothing was measured in the run {ctx.run.name}", hint=f"`finetune resume {ctx.run.name}`")


def _named(ctx: RunContext, stage: str) -> str:
    """The stage as it is written here: Q8_0 for q8_0."""
    return next((n for n in evaluate.names(ctx) if n.lower() == stage.lower()), stage)


def _told(ctx: RunContext, stage: str) -> Mapping[str, Any]:
    stage = _named(ctx, stage)
    if not evaluate.proof(ctx, f"{stage}.json").is_file():
        there = ", ".join(n for n in evaluate.names(ctx) if evaluate.proof(ctx, f"{n}.json").is_file())
        raise BadUsage(f"the run {ctx.run.name} measured no {stage}", hint=f"There are: {there or 'none yet'}.")
    return evaluate.load(ctx, stage)


def _stage_or_model(ctx: RunContext, name: str) -> Mapping[str, Any]:
    """A stage of the run, or a stored model measured now on its rows through the real server."""
    if evaluate.proof(ctx, f"{_named(ctx, name)}.json").is_file():
        return evaluate.load(ctx, _named(ctx, name))
    try:
        artifact = ctx.store.find(ModelRef.parse(name))
    except ModelMissing as e:
        there = ", ".join(n for n in evaluate.names(ctx) if evaluate.proof(ctx, f"{n}.json").is_file())
        raise BadUsage(f"{name} is no stage of {ctx.run.name} and no stored model", hint=f"Stages: {there}.") from e
    files = {n: p for n, p in ctx.store.files(artifact).items() if n.endswith(".gguf")}
    if len(files) != 1:
        raise BadUsage(f"{name} is not one GGUF file", hint="Only models in one GGUF file are compared.")
    rows = [json.loads(line) for line in evaluate.write_rows(ctx).read_text(encoding="utf-8").splitlines()]
    many, most = evaluate.answered(ctx)
    ctx.on_event(Event("phase", "compare", f"{name} in llama-server"))
    with (
        ctx.store.lease(artifact),
        serving(next(iter(files.values())), tools.kitchen(ctx), evaluate.context(ctx, most)) as server,
    ):
        forget = evaluate.read_rows(ctx.run.forget_rows)
        return score(server, rows, forget, answered=(many, most), on_event=ctx.on_event, name=name)
