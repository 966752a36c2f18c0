"""After the start: the estimate against the real memory, and the alarms. It never ends a server that works."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from miyabi_llm import backends, calibration, hardware
from miyabi_llm.backends.base import ModelState
from miyabi_llm.config import Settings
from miyabi_llm.errors import MiyabiError
from miyabi_llm.proc import Child
from miyabi_llm.proc.resident import resident
from miyabi_llm.serve.alarms import Said, Seen, alarms, read_llama, read_vllm
from miyabi_llm.serve.measured import MIB, Comparison, buffers, compare
from miyabi_llm.types import Event, Finding, LaunchPlan, OnEvent

LLAMA: Final = ("llama-cpp",)  # whose logs are llama-server's
TOLD: Final = ("ollama",)  # whose handover raises the alarms about card and context by itself
REPEAT_S: Final = 5.0  # seconds for the prompt that is sent twice: a machine slower than that is not kept waiting
# About 30 tokens in every vocabulary: less than llama.cpp keeps of a sliding window it would have to compute again.
REPEATED: Final = "one two three four five six seven eight nine ten " * 3


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found: the comparison as a plain mapping for the state file, and the alarms in words."""

    fit: Mapping[str, Any] | None = None
    alarms: tuple[str, ...] = ()


def check(plan: LaunchPlan, child: Child, settings: Settings, on_event: OnEvent, *, asks: bool) -> Checked:
    """Compare, remember, and raise the alarms of a server of ours that is ready.

    `asks` allows a short prompt, sent twice, to see whether the prompt cache works.
    """
    pids = child.pids()
    log = child.beginning()
    told = buffers(log) if plan.backend in LLAMA else None
    seen = resident(pids)
    found = compare(plan.memory, told, seen) if plan.memory is not None else None
    if found is not None:
        text = f"estimated {_size(found.estimated)}, measured {_size(found.measured)} ({found.error:+.1%})"
        on_event(Event("phase" if asks else "log", "memory", text, data=_plain(found) or {}))
        if found.program is not None and told is not None and not told.gpu:
            calibration.remember(settings, plan.backend, found.program)
    said = read_llama(log) if plan.backend in LLAMA else read_vllm(log) if plan.backend == "vllm" else Said()
    state = _state(plan)
    facts = Seen(
        backend=plan.backend,
        gpus=plan.expect.gpus,
        offloaded=said.offloaded,
        layers=said.layers,
        on_cpu=said.on_cpu,
        gpu_bytes=state.gpu_memory if state else None,
        bytes=state.memory if state else None,
        asked_ctx=plan.ctx,
        ctx=state.ctx if state else None,
        cache_off=said.cache_off,
        threads=said.threads,
        cores=plan.expect.cores,
        swapped=seen.swapped,
        free=hardware.available(),
        template=plan.expect.chat_template if asks else None,
    )
    if plan.backend in LLAMA:
        facts = _ask(plan, facts, asks=asks)
    findings = alarms(facts)
    _raise(findings, on_event)
    return Checked(_plain(found), tuple(f"{f.name}: {f.message}" for f in findings))


def check_running(plan: LaunchPlan, on_event: OnEvent) -> None:
    """Raise the alarms of a server that is not ours, as far as it tells how its model stands."""
    state = _state(plan)
    if state is None:
        return
    facts = Seen(
        backend=plan.backend,
        gpus=plan.expect.gpus,
        gpu_bytes=state.gpu_memory,
        bytes=state.memory,
        asked_ctx=plan.ctx,
        ctx=state.ctx,
    )
    _raise(alarms(facts), on_event)


def _raise(findings: Iterable[Finding], on_event: OnEvent) -> None:
    for f in findings:
        on_event(Event("warning", f.name, f"{f.message}\nfix: {f.fix}" if f.fix else f.message))


def _plain(found: Comparison | None) -> Mapping[str, Any] | None:
    if found is None:
        return None
    return {
        "estimated": found.estimated,
        "measured": found.measured,
        "error": round(found.error, 4),
        "resident": found.resident,
        "allocated": found.allocated,
        "program": found.program,
    }


def _state(plan: LaunchPlan) -> ModelState | None:
    """How the server says the model stands; None when it cannot be asked, does not say, or was asked already."""
    if plan.handover is not None and plan.backend in TOLD:
        return None
    try:
        with backends.get(plan.backend).control(plan.endpoint) as control:
            models = control.models()
    except MiyabiError:
        return None
    return next((m for m in models if m.name == plan.endpoint.model), None)


def _ask(plan: LaunchPlan, facts: Seen, *, asks: bool) -> Seen:
    """The slots of a llama-server, and how much of a repeated prompt it took from its cache."""
    from miyabi_llm.serve.probe import Probe

    with Probe(plan) as probe:
        slots = probe.contexts()
        if slots:
            facts = replace(facts, ctx=min(slots), slots=len(slots) if _split(slots, facts.asked_ctx) else 1)
        if asks:
            begin = time.monotonic()
            if probe.repeated(REPEATED, REPEAT_S) is not None and time.monotonic() - begin < REPEAT_S:
                again = probe.repeated(REPEATED, REPEAT_S)
                if again is not None:
                    facts = replace(facts, reused=again[0], repeated=sum(again))
    return facts


def _split(slots: list[int], asked: int | None) -> bool:
    """Whether the slots have a part of the context each, not all of it together."""
    return asked is not None and len(slots) > 1 and max(slots) < asked


def _size(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB" if size >= 1 << 30 else f"{size / MIB:.0f} MiB"
