"""What every type would give, before any work: exact bytes from the quantizer's own dry run, memory, and disk."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from miyabi_llm.errors import BadUsage, MiyabiError
from miyabi_llm.gguf import Header, TensorInfo
from miyabi_llm.memory import Use, estimate
from miyabi_llm.quantize.choose import OFFERED
from miyabi_llm.quantize.values import Planned
from miyabi_llm.tools.quantize_output import DryRun
from miyabi_llm.tools.quantizing import Window

NEW_KEYS = 96  # bytes: the quantizer writes its version and the label where the source has none
AGREE = 0.011  # MiB by which our sum may differ from the tool's rounded total


def wanted(asked: Sequence[str], known: Mapping[str, str], *, budget: bool) -> tuple[str, ...]:
    """The types to look at, as the tool spells them. Raises BadUsage naming the known ones."""
    if not asked:
        return tuple(k for k in OFFERED if k in known) if budget else ("Q4_K_M",)
    for word in asked:
        if word.upper() not in known:
            names = ", ".join(sorted(set(known.values())))
            raise BadUsage(f"{word!r} is no type of this llama-quantize", hint=f"Known: {names}.")
    return tuple(dict.fromkeys(known[word.upper()] for word in asked))


def planned(header: Header, dry: DryRun, kind: str, ctx: int, flags: Collection[str], budget: int | None) -> Planned:
    """One type's plan from the tool's dry run. Raises MiyabiError when our sum and the tool's total differ."""
    future = after(header, dry)
    if abs(future.weight_bytes / 1048576 - dry.mib) > AGREE:
        raise MiyabiError(f"the sizes of {kind} do not add up: {future.weight_bytes / 1048576:.2f} MiB, said {dry.mib}")
    memory = estimate(future, ctx, Use(repack=frozenset(flags)))
    return Planned(
        type=kind,
        weights=future.weight_bytes,
        size=future.size,
        saved=1 - future.size / header.size,
        bits=8 * future.weight_bytes / max(1, future.parameters),
        tensors=future.histogram,
        fallbacks=dry.fallbacks,
        memory=memory,
        needed=memory.total,
        needs_imatrix=dry.needs_imatrix,
        fits=None if budget is None else memory.total <= budget,
    )


def after(header: Header, dry: DryRun) -> Header:
    """The header as it will be: the source's keys, the planned tensors. Raises MiyabiError on an unknown type."""
    tensors, offset = [], 0
    for t in dry.tensors:
        size = t.nbytes
        if size is None:
            raise MiyabiError(f"{t.name}: the size of the type {t.type} is not known here")
        tensors.append(TensorInfo(t.name, t.shape, t.type, offset, size))
        offset += -(-size // header.alignment) * header.alignment
    extra = 0 if "general.quantization_version" in header.kv and "general.file_type" in header.kv else NEW_KEYS
    return Header(
        header.version,
        header.kv,
        tuple(tensors),
        header.data_offset,
        header.alignment,
        header.data_offset + offset + extra,
    )


def logits_bytes(window: Window, vocab: int, chunks: int | None = None) -> int:
    """Bytes of the file of a base's probabilities: 16 bits for each token of the vocabulary at each scored position.

    The layout is that of tools/perplexity/perplexity.cpp; checked to the byte against files it wrote.
    """
    n = window.chunks if chunks is None else chunks
    scored = window.ctx - 1 - window.ctx // 2
    return 20 + 4 * window.ctx * n + n * scored * 2 * (2 * ((vocab + 1) // 2) + 4)


def chunks_at_most(text_bytes: int, window: Window) -> int:
    """Windows that a text can fill: a token has at least one byte."""
    return max(1, min(window.chunks, text_bytes // window.ctx + 1))
