"""Whether a model fits a machine, judged from its header before a byte of its weights is fetched or loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from miyabi_llm.calibration import cpu_flags
from miyabi_llm.errors import BadUsage
from miyabi_llm.fit.layers import GPU_MARGIN, gpu_layers
from miyabi_llm.fit.values import Device, Facts, Fit, GpuLayers, How, Quant
from miyabi_llm.gguf import Header
from miyabi_llm.hardware import Gpu, Hardware
from miyabi_llm.memory import KV_TYPES, MARGIN, MIB, RUNTIME, Use, estimate, largest_ctx
from miyabi_llm.types import MemoryEstimate

LAST = "what follows `--` is for llama-server and goes last: `miyabi-llm serve MODEL [options] -- …`"
TIGHT = 0.85  # share of the available memory from which a fit is called tight

# Bits per weight of the whole file, from `llama-quantize --dry-run` on a 1.5B model with its own output matrix;
# an 8B model comes out within 3% of these.
BITS_PER_WEIGHT: dict[str, float] = {
    "Q8_0": 8.50,
    "Q6_K": 6.57,
    "Q5_K_M": 5.76,
    "Q4_K_M": 5.00,
    "IQ4_XS": 4.59,
    "Q3_K_M": 4.14,
    "Q2_K": 3.36,
}

# backend -> (slots when none are asked for, None for llama-server's own four that share the context; MiB of earlier
# prompts it may keep). Ollama: OLLAMA_NUM_PARALLEL is 1, and its llama-server keeps that program's own default.
# The others but the first two are taken to run llama.cpp the way it starts by itself.
PER_BACKEND: Final[dict[str, tuple[int | None, int]]] = {
    "llama-cpp": (None, 512),
    "ollama": (1, 8192),
    "embedded": (1, 0),
    "localai": (1, 8192),
    "lm-studio": (1, 0),
}
UNMEASURED: Final = {"ollama", "localai", "lm-studio"}


def judge(header: Header, hardware: Hardware, ctx: int | None = None, how: How | None = None) -> Fit:
    """Judge `header` against `hardware` at `ctx` tokens (None: 8192, or what the model was trained for if less).

    Raises BadUsage on an unknown cache type, a context of no tokens, or a backend that serves no GGUF files.
    """
    how = how or How()
    ctx = _checked(header, ctx, how)
    flags = cpu_flags(hardware, amx=how.amx)
    slots, prompts = PER_BACKEND[how.backend]
    parallel = slots if how.parallel is None else how.parallel
    on_cpu = Use(how.kv_type, parallel, flags, runtime=how.runtime)
    on_gpu = Use(how.kv_type, parallel, runtime=how.runtime)
    gpu, device, use = best_gpu(hardware.gpus), "cpu", on_cpu
    budget = max(0, hardware.ram_available - MARGIN)
    if gpu is not None and estimate(header, ctx, on_gpu).total + GPU_MARGIN <= (gpu.memory_free or 0):
        device, use, budget = "gpu", on_gpu, (gpu.memory_free or 0) - GPU_MARGIN
    needed = estimate(header, ctx, use)
    fits = needed.total <= budget if hardware.ram_total or device == "gpu" else None
    most = largest_ctx(header, budget, use)
    layers = gpu_layers(header, gpu, ctx, on_gpu) if gpu is not None else None
    advice = _advise(header, needed, budget, ctx, most) if fits is False else tuple(_tune(needed, budget, device, how))
    return Fit(
        fits=fits,
        device=_DEVICE[device],
        ctx=ctx,
        kv_type=how.kv_type,
        needed=needed,
        total=needed.total,
        available=budget,
        largest_ctx=most,
        facts=facts(header),
        advice=advice,
        quants=tuple(_quants(header, needed, budget)),
        notes=tuple(_notes(header, ctx, layers if device == "cpu" else None, how, fits=fits)),
        backend=how.backend,
        prompts=prompts * MIB,
        gpu=layers,
    )


_DEVICE: Final[dict[str, Device]] = {"cpu": "cpu", "gpu": "gpu"}


def _checked(header: Header, ctx: int | None, how: How) -> int:
    if how.backend not in PER_BACKEND:
        hint = f"`--backend` for GGUF files: {', '.join(PER_BACKEND)}."
        raise BadUsage(f"no backend {how.backend!r} serves GGUF files, and this is one", hint=hint)
    if how.kv_type not in KV_TYPES:
        raise BadUsage(f"{how.kv_type!r} is no cache type", hint=f"Cache types: {', '.join(KV_TYPES)}.")
    if how.parallel is not None and how.parallel < 1:
        raise BadUsage(f"{how.parallel} requests at a time")
    ctx = min(8192, header.context_length or 8192) if ctx is None else ctx
    if ctx < 1:
        raise BadUsage(f"a context of {ctx} tokens")
    return ctx


def facts(header: Header) -> Facts:
    """What a person wants to know of a model, out of its header."""
    return Facts(
        architecture=header.architecture,
        parameters=header.parameters,
        layers=header.layers,
        context_length=header.context_length,
        vocab_size=header.vocab_size,
        file_type=header.file_type,
        types={kind: size for kind, (_, size) in header.histogram.items()},
        chat_template=header.chat_template is not None,
    )


def best_gpu(gpus: Iterable[Gpu]) -> Gpu | None:
    """The card with the most free memory of its own; shared memory counts as the machine's."""
    own = [g for g in gpus if g.kind != "metal" and g.memory_free]
    return max(own, key=lambda g: g.memory_free or 0, default=None)


def _quants(header: Header, needed: MemoryEstimate, budget: int) -> Iterable[Quant]:
    """Smaller files of the same model; the second copies are left out, for `--load-mode none` avoids them."""
    rest = needed.kv + needed.compute + needed.runtime
    for name, bits in BITS_PER_WEIGHT.items():
        weights = int(header.parameters * bits / 8)
        if weights < header.weight_bytes * 0.97:
            yield Quant(name, weights, weights + rest, weights + rest <= budget)


def _advise(header: Header, needed: MemoryEstimate, budget: int, ctx: int, most: int | None) -> tuple[str, ...]:
    """What to change so that it fits, the least loss first."""
    advice = []
    trained = header.context_length
    if trained and ctx > trained:
        advice.append(f"stay within the {trained} tokens the model was trained for (`--ctx {trained}`)")
    if needed.repack and needed.total - min(needed.repack, needed.weights) <= budget:
        advice.append("serve it with `-- --load-mode none`: the weights are then in memory once, not twice")
    if most is not None and most < min(ctx, trained or ctx):
        advice.append(f"serve it with a context of {most} tokens (`--ctx {most}`)")
    for kv_type in ("q8_0", "q4_0"):
        elements, size = KV_TYPES[kv_type]
        if needed.total - needed.kv + needed.kv * size // (2 * elements) <= budget:
            advice.append(f"keep the cache in {kv_type} (`--kv {kv_type}`)")
            break
    smaller = next((q for q in _quants(header, needed, budget) if q.fits), None)
    if smaller is not None:
        advice.append(f"take a smaller file of the model: {smaller.name} needs about {smaller.total // MIB} MiB")
    if any("`-- " in line for line in advice):
        advice.append(LAST)
    return tuple(advice) or ("take a smaller model",)


def _tune(needed: MemoryEstimate, budget: int, device: str, how: How) -> Iterable[str]:
    left = (budget - needed.total) // MIB
    if device != "cpu" or how.backend != "llama-cpp":
        return
    roomy = left >= PER_BACKEND[how.backend][1]
    if not roomy:
        yield f"leave earlier prompts {max(0, left)} MiB at most (`-- --cache-ram {max(0, left)}`)"
    tight = needed.repack > 0 and needed.total > TIGHT * budget
    if tight:
        saved = min(needed.repack, needed.weights) // MIB
        yield f"`-- --load-mode none` saves {saved} MiB: the weights are then in memory once, not twice"
    if tight or not roomy:
        yield LAST


def _notes(header: Header, ctx: int, layers: GpuLayers | None, how: How, *, fits: bool | None) -> Iterable[str]:
    if fits is not False and header.context_length and ctx > header.context_length:
        yield f"the model was trained for {header.context_length} tokens"
    if layers is not None:
        yield (
            f"{layers.card} has too little room for all of it: {layers.layers} of {layers.of} layers fit "
            f"(`-- --gpu-layers {layers.layers}`); llama.cpp finds that out by itself"
        )
    if how.backend in UNMEASURED:
        yield f"{how.backend} is estimated as the llama.cpp it runs; its own server is not counted, nothing measured"
    if how.runtime != RUNTIME:
        yield f"the program itself is counted as {how.runtime // MIB} MiB, as measured on this machine"
    if header.number("{arch}.expert_count"):
        yield "a mixture of experts: its working memory is estimated, not measured"
    if header.number("{arch}.ssm.inner_size") or header.number("{arch}.shortconv.l_cache"):
        yield "layers with a recurrent state: its memory is estimated, not measured"
    if not header.layers:
        yield "the header does not say how many layers there are: the cache is not counted"
