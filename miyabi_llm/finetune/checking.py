"""The stage `check`: what `finetune check` looks at, once the base is here and before an hour is spent."""

from __future__ import annotations

from collections.abc import Mapping

from miyabi_llm.errors import BadUsage, MachineLimit
from miyabi_llm.finetune import check as checking
from miyabi_llm.finetune.context import RunContext, StageResult, section
from miyabi_llm.types import Event, plain


def inputs(ctx: RunContext) -> Mapping[str, str]:
    """The base and the whole recipe."""
    sections = ("base", "data", "lora", "train", "evaluate", "gates", "export")
    return {"base": ctx.base.sha256, "recipe": section(ctx, *sections), "engine": ctx.engine.name}


def run(ctx: RunContext) -> StageResult:
    """Look at everything; the tokenizer is really converted to GGUF. Raises BadUsage, MachineLimit for what fails."""
    place = checking.Place(ctx.settings, ctx.store, ctx.machine, ctx.run.work)
    report = checking.check(ctx.loaded, place, ctx.on_event, full=True)
    bad = [f for f in report.findings if f.level == "fail"]
    for one in report.findings:
        if one.level == "warn":
            ctx.on_event(Event("warning", one.name, one.message))
    if bad:
        kind = MachineLimit if {f.name for f in bad} <= {"memory", "disk"} else BadUsage
        fixes = dict.fromkeys(f.fix for f in bad if f.fix)
        raise kind(
            "this run would fail:\n" + "\n".join(f"  {f.name}: {f.message}" for f in bad), hint="\n".join(fixes) or None
        )
    told = report.estimate
    figures = {
        "precision": report.precision,
        "engine": report.engine,
        "findings": plain(report.findings),
        "estimate": plain(told) | {"memory_total": told.memory.total} if told else None,
    }
    size = f", about {told.memory.total / 2**30:.1f} GiB" if told else ""
    time = f" and {checking.spell(told.seconds)}" if told and told.seconds else ""
    return StageResult({"told": f"{report.engine}, {report.precision}{size}{time}", **figures})
