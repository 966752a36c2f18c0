"""Whether vLLM can serve a model here: what it needs, and what it takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from miyabi_llm import paged
from miyabi_llm.errors import BadUsage
from miyabi_llm.fit.judge import best_gpu
from miyabi_llm.fit.values import Facts, Fit, How
from miyabi_llm.hardware import Gpu, Hardware
from miyabi_llm.memory import MARGIN, MIB, RUNTIME
from miyabi_llm.paged import Weights

UTILIZATION: Final = 0.92  # `--gpu-memory-utilization` of vLLM 0.32: the share of a card it takes, whatever it needs
CPU_PARALLEL: Final = 4  # requests at a time that our plans give the CPU build room for
# Measured with the CPU build of 0.32 and a small model: its processes beside weights and cache (resident, shared pages
# once). Not measured on cards.
PROGRAM: Final = 1536 * MIB


def judge_paged(weights: Weights, hardware: Hardware, ctx: int | None, how: How) -> Fit:
    """Judge a model in the hub's layout against `hardware` for vLLM at `ctx` tokens.

    Raises BadUsage on an unknown cache type or a context of no tokens.
    """
    if how.kv_type not in paged.CACHE_BYTES:
        raise BadUsage(f"{how.kv_type!r} is no cache type of vLLM", hint=f"It has: {', '.join(paged.CACHE_BYTES)}.")
    trained = weights.context_length
    ctx = min(8192, trained or 8192) if ctx is None else ctx
    if ctx < 1:
        raise BadUsage(f"a context of {ctx} tokens")
    gpu = best_gpu(g for g in hardware.gpus if g.kind in ("cuda", "rocm"))
    parallel = how.parallel or (1 if gpu is not None else CPU_PARALLEL)
    runtime = PROGRAM if how.runtime == RUNTIME else how.runtime
    needed = paged.estimate(weights, ctx, how.kv_type, parallel, runtime)
    if gpu is not None:
        budget = min(int(UTILIZATION * (gpu.memory_total or 0)), gpu.memory_free or 0)
    else:
        budget = max(0, hardware.ram_available - MARGIN)
    known = bool(hardware.ram_total or gpu is not None)
    most = paged.largest_ctx(weights, budget, how.kv_type, parallel, runtime)
    fits = needed.total <= budget if known else None
    return Fit(
        fits=fits,
        device="cpu" if gpu is None else "gpu",
        ctx=ctx,
        kv_type=how.kv_type,
        needed=needed,
        total=needed.total,
        available=budget,
        largest_ctx=most,
        facts=_facts(weights),
        advice=tuple(_advice(weights, ctx, most, how)) if fits is False else (),
        notes=tuple(_notes(weights, ctx, budget - needed.total, gpu, parallel)),
        backend="vllm",
    )


def _facts(w: Weights) -> Facts:
    layers, words = w.number("num_hidden_layers") or None, w.number("vocab_size") or None
    return Facts(w.architecture, w.parameters, layers, w.context_length, words, None, w.types, w.template)


def _advice(weights: Weights, ctx: int, most: int | None, how: How) -> Iterable[str]:
    if most is not None and most < min(ctx, weights.context_length or ctx):
        yield f"serve it with a context of {most} tokens (`--ctx {most}`)"
    if how.kv_type in ("f16", "bf16"):
        yield "keep the cache in 8 bits (`--kv fp8`), where your vLLM and card can"
    yield "take a GGUF file of the model and `--backend llama-cpp`: its weights need a third"


def _notes(weights: Weights, ctx: int, left: int, gpu: Gpu | None, parallel: int) -> Iterable[str]:
    if weights.context_length and ctx > weights.context_length:
        yield f"the model was trained for {weights.context_length} tokens"
    if gpu is not None:
        per_request = paged.cache_bytes(weights, ctx, "f16", 2) - paged.cache_bytes(weights, ctx, "f16", 1)
        more = max(0, left) // max(1, per_request)
        share = f"{UTILIZATION:.0%} of {gpu.name}"
        yield f"vLLM takes {share}, whatever it needs; the rest is cache for {more} more requests"
    else:
        yield f"on the processor, with room for {parallel} requests of {ctx} tokens at a time (`--parallel`)"
    yield "vLLM's working memory is estimated, not measured"
    if weights.number("num_experts") or weights.number("num_local_experts"):
        yield "a mixture of experts: all experts are loaded; its working memory is estimated, not measured"
