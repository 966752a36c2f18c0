"""Which file of a repository to take: all of its quantizations, judged from the header of one of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from miyabi_llm.fit.values import Choice, Fit
from miyabi_llm.gguf import Header, TensorInfo
from miyabi_llm.memory import Use, estimate, largest_ctx, repack_bytes
from miyabi_llm.sources.hf_files import Variant

_BASE: Final = re.compile(r"(?:UD-)?(I?Q\d_(?:K|NL|XS|\d)|MXFP4|BF16|F16)")


def compare(header: Header, own: int, variants: Sequence[Variant], verdict: Fit, flags: frozenset[str]) -> Fit:
    """The verdict with every file of the repository beside it, largest first, the largest that fits marked.

    `own` is the size of the file whose header was read. Sizes are exact; what each needs is about: the cache and the
    working memory are the same for all, the second copies for this processor go by the name of the quantization.
    """
    spare = own - header.weight_bytes  # a header is about as long in each of them
    rest = verdict.needed.kv + verdict.needed.compute + verdict.needed.runtime
    use = Use(verdict.kv_type, None, runtime=verdict.needed.runtime)
    plain = estimate(header, verdict.ctx, use).total - header.weight_bytes
    rows = []
    for variant in variants:
        size = sum(f.size or 0 for f in variant.files)
        weights = max(0, size - spare)
        copies = _copies(header, "" if size == own else variant.quant, weights, flags)
        copies = copies if verdict.device == "cpu" else 0
        total = weights + copies + rest
        beyond = total - plain - header.weight_bytes  # what it needs more than a file like this without copies
        most = largest_ctx(header, verdict.available - beyond, use)
        fits = bool(verdict.available) and total <= verdict.available
        rows.append(Choice(variant.quant, variant.files[0].name, size, total, fits, most if weights else None))
    rows.sort(key=lambda row: -row.size)
    best = next((row for row in rows if row.fits), None)
    return replace(verdict, choices=tuple(replace(row, best=row is best) for row in rows))


def _copies(header: Header, quant: str, weights: int, flags: frozenset[str]) -> int:
    """About the bytes of second copies: those of all its matrices, where this processor copies that type at all.

    `quant` empty: the very file whose header was read.
    """
    if not quant:
        return repack_bytes(header, flags)
    match = _BASE.match(quant)
    base = match[1] if match else ""
    matrices = [t for t in header.tensors if len(t.shape) in (2, 3) and t.name.startswith("blk.")]
    share = sum(t.nbytes for t in matrices) / max(1, header.weight_bytes)
    sample = TensorInfo("blk.0.ffn_up.weight", (256, 256), base, 0, 1 << 20)
    probe = replace(header, tensors=(sample, TensorInfo("output.weight", (256, 1), "F32", 0, 0)))
    return int(weights * share) if repack_bytes(probe, flags) else 0
