"""The whole answer of `fit`: what was found, judged for the backend that would serve it."""

from __future__ import annotations

from dataclasses import replace

from miyabi_llm.calibration import cpu_flags
from miyabi_llm.errors import BadUsage
from miyabi_llm.fit.choices import compare
from miyabi_llm.fit.judge import judge
from miyabi_llm.fit.paged import judge_paged
from miyabi_llm.fit.values import Fit, Found, How
from miyabi_llm.hardware import Hardware
from miyabi_llm.memory import RUNTIME


def report(found: Found, hardware: Hardware, ctx: int | None, how: How) -> Fit:
    """Judge what was found; with every other file of its repository beside it when it has several.

    Raises BadUsage when the backend does not serve this format, on an unknown cache type or a context of no tokens.
    """
    if found.header is None:
        assert found.weights is not None
        if how.backend != "vllm":
            hint = "Make a GGUF file of it first, or leave out --backend: vLLM serves it."
            raise BadUsage(f"{how.backend} serves GGUF files, and this is a model in the hub's layout", hint=hint)
        return judge_paged(found.weights, hardware, ctx, how)
    verdict = judge(found.header, hardware, ctx, how)
    if len(found.variants) < 2:
        return verdict
    flags = cpu_flags(hardware, amx=how.amx)
    return compare(found.header, found.size, found.variants, verdict, flags)


def backend_for(found: Found, asked: str | None) -> str:
    """The backend asked for, or the one that serves what was found. Pure."""
    return asked or ("llama-cpp" if found.header is not None else "vllm")


def machine_of(hardware: Hardware, memory: int) -> Hardware:
    """A machine with this processor, `memory` bytes of memory and no graphics card, with nothing else running. Pure."""
    return replace(hardware, ram_total=memory, ram_available=memory, ram_limit=None, gpus=())


def elsewhere(how: How) -> How:
    """The same on another machine: what was measured here does not count there. Pure."""
    return replace(how, runtime=RUNTIME)
