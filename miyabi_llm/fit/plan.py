"""What a launch plan of llama-server will take, by its own words on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Final

from miyabi_llm import calibration
from miyabi_llm.config import Settings
from miyabi_llm.errors import MiyabiError
from miyabi_llm.fit.find import read_header
from miyabi_llm.fit.judge import judge
from miyabi_llm.fit.values import How
from miyabi_llm.gguf import Header
from miyabi_llm.hardware import Hardware
from miyabi_llm.memory import KV_TYPES, UBATCH, Use, estimate
from miyabi_llm.types import Expect, LaunchPlan, MemoryEstimate

_PARALLEL: Final = frozenset(("-np", "--parallel"))
_KV: Final = frozenset(("-ctk", "--cache-type-k"))
_UBATCH: Final = frozenset(("-ub", "--ubatch-size"))
_NO_REPACK: Final = frozenset(("-nr", "--no-repack"))


def how_here(settings: Settings, backend: str = "llama-cpp", kv_type: str | None = None) -> How:
    """How a model is served by what is installed here, with what was measured here."""
    amx = calibration.server_uses_amx(settings)
    return How(backend, kv_type or "f16", amx=amx, runtime=calibration.runtime(settings, backend))


def expected(plan: LaunchPlan, files: Mapping[str, Path], machine: Hardware, settings: Settings) -> LaunchPlan:
    """The plan with its memory estimate (llama-cpp only) and with what a person may count on."""
    try:
        header = read_header(files)
    except MiyabiError:
        header = None  # no GGUF, or one we cannot read: nothing is estimated, the backend says what is wrong
    template = None if header is None else header.chat_template is not None
    expect = Expect(len(machine.gpus), machine.usable_cores or None, template)
    memory = None
    if header is not None and plan.backend == "llama-cpp" and plan.argv is not None and plan.ctx:
        memory = _estimate(plan, header, machine, settings)
    smaller = plan.smaller and expected(plan.smaller, files, machine, settings)
    return replace(plan, memory=memory, expect=expect, smaller=smaller)


def _estimate(plan: LaunchPlan, header: Header, machine: Hardware, settings: Settings) -> MemoryEstimate:
    assert plan.argv is not None
    how = how_here(settings, plan.backend)
    amx = calibration.server_uses_amx(settings, Path(plan.argv[0]))
    use = used(plan.argv, calibration.cpu_flags(machine, amx=amx))
    if judge(header, machine, plan.ctx, replace(how, kv_type=use.kv_type)).device == "gpu":
        use = replace(use, repack=frozenset())
    return estimate(header, plan.ctx or 0, replace(use, runtime=how.runtime))


def used(argv: tuple[str, ...], flags: frozenset[str]) -> Use:
    """How that command line uses a model; the last word on each option wins, as it does in llama-server. Pure."""
    kv_type, parallel, ubatch = "f16", None, UBATCH
    for option, value in pairwise(argv):
        if option in _KV and value in KV_TYPES:
            kv_type = value
        elif option in _PARALLEL and value.lstrip("-").isdigit():
            parallel = int(value) if int(value) > 0 else None
        elif option in _UBATCH and value.isdigit():
            ubatch = max(1, int(value))
    return Use(kv_type, parallel, frozenset() if _NO_REPACK & set(argv) else flags, ubatch)
