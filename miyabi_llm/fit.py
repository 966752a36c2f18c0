"""Whether a model fits a machine, judged from its header before a byte of its weights is fetched or loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from miyabi_llm import catalog, gguf, sources
from miyabi_llm.config import Settings
from miyabi_llm.errors import AccessDenied, BadUsage, MiyabiError, ModelMissing, NetworkError
from miyabi_llm.gguf import Header
from miyabi_llm.hardware import Gpu, Hardware
from miyabi_llm.memory import KV_TYPES, MARGIN, MIB, estimate, largest_ctx
from miyabi_llm.refs import ModelRef
from miyabi_llm.shards import join, own
from miyabi_llm.sources import peek
from miyabi_llm.store import Store
from miyabi_llm.tools import installed
from miyabi_llm.types import MemoryEstimate

GPU_MARGIN = 1024 * MIB  # llama.cpp's own --fit leaves this much of a device
CACHE_RAM = 8192  # MiB of earlier prompts llama-server keeps unless told otherwise
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


@dataclass(frozen=True, slots=True)
class Quant:
    """About how much another quantization of the same model would need, in bytes."""

    name: str
    weights: int
    total: int
    fits: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What the header says about the model. `types`: tensor type -> bytes, most first."""

    architecture: str
    parameters: int
    layers: int | None
    context_length: int | None
    vocab_size: int | None
    file_type: str | None
    types: Mapping[str, int]
    chat_template: bool


@dataclass(frozen=True, slots=True)
class Fit:
    """The judgement. `fits` is None when the machine's memory could not be read. Memory in bytes, `ctx` in tokens.

    `available` is what may be used, the margin already taken off. `advice` is in words, best first.
    """

    fits: bool | None
    device: Literal["cpu", "gpu"]
    ctx: int
    kv_type: str
    needed: MemoryEstimate
    total: int
    available: int
    largest_ctx: int | None
    facts: Facts
    advice: tuple[str, ...] = ()
    quants: tuple[Quant, ...] = ()
    notes: tuple[str, ...] = field(default=())


def judge(
    header: Header,
    hardware: Hardware,
    ctx: int | None = None,
    *,
    kv_type: str = "f16",
    parallel: int | None = None,
    amx: bool = True,
) -> Fit:
    """Judge `header` against `hardware` at `ctx` tokens (None: 8192, or what the model was trained for if less).

    `amx` False says that the server was built without AMX though the processor has it. Raises BadUsage on an
    unknown cache type or a context of no tokens.
    """
    if kv_type not in KV_TYPES:
        raise BadUsage(f"{kv_type!r} is no cache type", hint=f"Cache types: {', '.join(KV_TYPES)}.")
    ctx = min(8192, header.context_length or 8192) if ctx is None else ctx
    if ctx < 1:
        raise BadUsage(f"a context of {ctx} tokens")
    flags = hardware.cpu_flags if amx else frozenset(f for f in hardware.cpu_flags if not f.startswith("amx"))
    gpu = _gpu(hardware.gpus)
    on_gpu = estimate(header, ctx, kv_type=kv_type, parallel=parallel)
    if gpu is not None and on_gpu.total + GPU_MARGIN <= (gpu.memory_free or 0):
        device, needed, budget, flags = "gpu", on_gpu, (gpu.memory_free or 0) - GPU_MARGIN, frozenset()
    else:
        needed = estimate(header, ctx, kv_type=kv_type, parallel=parallel, repack=flags)
        device, budget = "cpu", max(0, hardware.ram_available - MARGIN)
    fits = needed.total <= budget if hardware.ram_total or device == "gpu" else None
    most = largest_ctx(header, budget, kv_type=kv_type, parallel=parallel, repack=flags)
    quants = tuple(_quants(header, needed, budget))
    advice = _advise(header, needed, budget, ctx, most) if fits is False else tuple(_tune(needed, budget, device))
    return Fit(
        fits=fits,
        device="gpu" if device == "gpu" else "cpu",
        ctx=ctx,
        kv_type=kv_type,
        needed=needed,
        total=needed.total,
        available=budget,
        largest_ctx=most,
        facts=facts(header),
        advice=advice,
        quants=quants,
        notes=tuple(_notes(header, ctx, gpu, device, fits=fits)),
    )


def server_uses_amx(settings: Settings) -> bool:
    """False when the llama.cpp we built here leaves AMX out (compilers that get it wrong on this processor)."""
    newest = next(iter(installed.all_of(settings)), None)
    flags = newest.source.get("flags", ()) if newest is not None else ()
    return not any("-mno-amx" in str(flag) for flag in flags)


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


def read_header(paths: Mapping[str, Path]) -> Header:
    """The header of a model's GGUF file on disk, or of all its shards as one.

    Raises BadUsage without one, Corrupt, ModelMissing when a file is gone.
    """
    headers = {}
    for name in sorted(n for n in paths if n.lower().endswith(".gguf")):
        try:
            with paths[name].open("rb") as f:
                headers[name] = gguf.read(f, paths[name].stat().st_size)
        except FileNotFoundError:
            raise ModelMissing(f"{paths[name]} is not there", hint="Pull the model again.") from None
    return _whole(headers, "this model")


def _whole(headers: Mapping[str, Header], what: str) -> Header:
    if not (mine := own(headers)):
        raise BadUsage(f"no GGUF file in {what}", hint="Memory is estimated from GGUF headers only.")
    return join(mine)


def find_header(ref: ModelRef, store: Store, settings: Settings) -> tuple[Header, str]:
    """The header behind a name and where it was read: from the store, a file, or the first bytes at a source.

    Raises ModelMissing, BadUsage, Corrupt, NetworkError.
    """
    if ref.scheme == "file":
        listing = sources.open("file", settings).list(ref)
        return read_header({f.name: f.path for f in listing.files if f.path is not None}), str(ref)
    known = catalog.load(settings)
    name = known.canonical(ref)
    try:
        return read_header(store.files(store.find(name))), "the store"
    except ModelMissing:
        pass
    failed: list[MiyabiError] = []
    for origin in known.find(ref).sources if ref.scheme == "catalog" else (ref,):
        try:
            if isinstance(origin, ModelRef):
                return _whole(peek.headers(origin, settings), str(origin)), str(origin)
            file = known.find(ref).remote(origin)
            return peek.of_file(peek.in_order(origin.scheme, settings), file), str(origin)
        except (NetworkError, ModelMissing, AccessDenied) as e:
            failed.append(e)
    if len(failed) == 1:
        raise failed[0]
    reasons = "; ".join(e.message for e in failed)
    raise type(failed[0])(f"no source of {ref} gave its header: {reasons}", hint=failed[0].hint)


def _gpu(gpus: Iterable[Gpu]) -> Gpu | None:
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
            advice.append(f"keep the cache in {kv_type} (`-- --cache-type-k {kv_type} --cache-type-v {kv_type}`)")
            break
    smaller = next((q for q in _quants(header, needed, budget) if q.fits), None)
    if smaller is not None:
        advice.append(f"take a smaller file of the model: {smaller.name} needs about {smaller.total // MIB} MiB")
    if any("`-- " in line for line in advice):
        advice.append(LAST)
    return tuple(advice) or ("take a smaller model",)


def _tune(needed: MemoryEstimate, budget: int, device: str) -> Iterable[str]:
    left = (budget - needed.total) // MIB
    if device != "cpu":
        return
    roomy = left >= CACHE_RAM
    if not roomy:
        yield f"leave earlier prompts {max(0, left)} MiB at most (`-- --cache-ram {max(0, left)}`)"
    tight = needed.repack > 0 and needed.total > TIGHT * budget
    if tight:
        saved = min(needed.repack, needed.weights) // MIB
        yield f"`-- --load-mode none` saves {saved} MiB: the weights are then in memory once, not twice"
    if tight or not roomy:
        yield LAST


def _notes(header: Header, ctx: int, gpu: Gpu | None, device: str, *, fits: bool | None) -> Iterable[str]:
    if fits is not False and header.context_length and ctx > header.context_length:
        yield f"the model was trained for {header.context_length} tokens"
    if gpu is not None and device == "cpu":
        free = (gpu.memory_free or 0) // MIB
        yield f"{gpu.name} has {free} MiB free: too little for all of it; it can take some layers"
    if header.number("{arch}.expert_count"):
        yield "a mixture of experts: its working memory is estimated, not measured"
    if header.number("{arch}.ssm.inner_size") or header.number("{arch}.shortconv.l_cache"):
        yield "layers with a recurrent state: its memory is estimated, not measured"
    if not header.layers:
        yield "the header does not say how many layers there are: the cache is not counted"
