"""The stage `gates`: nothing gets a name that is not better than what it came from, or not surely so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from miyabi_llm.errors import GateFailed, Inconclusive
from miyabi_llm.finetune import evaluate, export, measures
from miyabi_llm.finetune.context import RunContext, StageResult, made_by, section
from miyabi_llm.finetune.measures import UNITS, Verdict
from miyabi_llm.types import Event, plain


def inputs(ctx: RunContext) -> Mapping[str, str]:
    """What was measured, and the limits."""
    stages = ("evaluate-base", "evaluate-adapter", "evaluate-gguf", "parity")
    return {**made_by(ctx, *stages), "gates": section(ctx, "gates", "evaluate")}


def run(ctx: RunContext) -> StageResult:
    """Judge every finished file. Raises GateFailed when one is surely below, Inconclusive when that is not sure."""
    found = verdicts(ctx)
    for v in found:
        told = f"{v.stage}: {v.outcome}: {v.words}"
        ctx.on_event(Event("phase" if v.outcome == "pass" else "warning", v.gate, told))
    raise_for(found)
    words = ", ".join(f"{v.gate} {v.outcome} for {v.stage}" for v in found) or "no gate is set"
    return StageResult({"told": words, "verdicts": plain([asdict(v) for v in found])})


def verdicts(ctx: RunContext) -> tuple[Verdict, ...]:
    """Every gate of the recipe on every finished file."""
    gates, wanted = ctx.recipe.gates, ctx.recipe.evaluate
    unit, found = UNITS[wanted.metric], list[Verdict]()
    adapter = evaluate.load(ctx, "adapter")
    for kind in export.finished(ctx):
        told = evaluate.load(ctx, kind)
        stage = evaluate.judged(ctx, kind, told)
        if gates.min_gain is not None and stage.gain is not None:
            found.append(measures.at_least("min_gain", kind, stage.gain, gates.min_gain, unit))
        if gates.max_forgetting is not None and stage.forgot is not None:
            found.append(measures.at_most("max_forgetting", kind, stage.forgot, gates.max_forgetting, "nats per token"))
        if gates.max_loss_in_gguf is not None:
            lost = measures.stage(kind, wanted.metric, told, adapter, wanted.bootstrap).gain
            assert lost is not None  # there is a model to compare with
            limit = gates.max_loss_in_gguf
            found.append(measures.at_most("max_loss_in_gguf", kind, measures.negative(lost), limit, unit))
    return tuple(found)


def raise_for(found: Sequence[Verdict]) -> None:
    """Raise GateFailed (exit code 5) for a gate that failed, Inconclusive (6) for one that is not decided."""
    failed = [v for v in found if v.outcome == "fail"]
    open_ = [v for v in found if v.outcome == "inconclusive"]
    if failed:
        raise GateFailed(
            f"{failed[0].gate}: {failed[0].stage}: {failed[0].words}" + _more(failed),
            hint="Nothing was published. The models are in the run's folder; the report shows every stage.",
            verdicts=plain([asdict(v) for v in found]),
        )
    if open_:
        raise Inconclusive(
            f"{open_[0].gate}: {open_[0].stage}: {open_[0].words}" + _more(open_),
            hint="Nothing was published. More held-out rows (evaluate.samples, data.eval) make the interval narrower.",
            verdicts=plain([asdict(v) for v in found]),
        )


def _more(found: Sequence[Verdict]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""
