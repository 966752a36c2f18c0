"""Which types to try, in which order, and what the measured intervals allow to say: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from miyabi_llm.quantize.values import Measured, Planned, Quality

# Best first, by the mean KL divergence that llama.cpp's tools/perplexity/README gives for an 8B model. A prior: it
# decides what is tried first, never what is said about a file.
BEST_FIRST = (
    "F32", "BF16", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "IQ4_NL",
    "IQ4_XS", "Q4_1", "Q4_0", "Q3_K_L", "Q3_K_M", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "IQ2_M", "Q2_K",
    "Q2_K_S", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
)  # fmt: skip
# What is offered when no type is named: nothing that needs an importance matrix, nothing that is larger and worse.
OFFERED = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
)  # fmt: skip
MOST_TRIES = 2  # files made for one budget: the largest that fits, and one more when that fails the gate


def rank(kind: str) -> int:
    """The place of a type among all by expected quality, 0 the best; unknown ones come last."""
    return BEST_FIRST.index(kind) if kind in BEST_FIRST else len(BEST_FIRST)


def mark_dominated(planned: Sequence[Planned]) -> tuple[Planned, ...]:
    """Name, for each type, one that is expected to be better and is not larger, and fits, if there is any."""

    def over(p: Planned) -> str | None:
        better = [q for q in planned if rank(q.type) < rank(p.type) and q.size <= p.size and q.fits is not False]
        return min(better, key=lambda q: rank(q.type)).type if better else None

    return tuple(replace(p, dominated=over(p)) for p in planned)


def order(planned: Sequence[Planned], *, named: bool) -> tuple[str, ...]:
    """The types to make, largest first. With a budget those that fit, and at most two; a type that is dominated is
    left out unless it was `named` and there is no budget, one that saves nothing unless it was `named`."""
    ordered = sorted((p for p in planned if not p.needs_imatrix), key=lambda p: (-p.size, rank(p.type)))
    budget = any(p.fits is not None for p in planned)
    if budget:
        return tuple(p.type for p in ordered if p.fits and not p.dominated and (named or p.saved > 0))[:MOST_TRIES]
    return tuple(p.type for p in ordered if named or not p.dominated)


def indistinguishable(a: Quality, b: Quality) -> bool:
    """Whether the 95% intervals of two files overlap: what was measured does not tell which is better."""
    return a.low <= b.high and b.low <= a.high


def mark_front(measured: Sequence[Measured]) -> tuple[Measured, ...]:
    """Mark the files that no other beats in both size and mean divergence."""

    def beaten(m: Measured) -> bool:
        return any(
            o.size <= m.size and o.quality.kld <= m.quality.kld and (o.size, o.quality.kld) != (m.size, m.quality.kld)
            for o in measured
        )

    return tuple(replace(m, best=not m.quality.stopped and not beaten(m)) for m in measured)


def notes(measured: Sequence[Measured], chosen: str) -> tuple[str, ...]:
    """What the person should know about the choice."""
    pick = next(m for m in measured if m.type == chosen)
    said = []
    for other in measured:
        if other.type != chosen and not other.quality.stopped and indistinguishable(pick.quality, other.quality):
            less = pick.size - other.size
            how = f"{abs(less) / 1048576:.1f} MiB {'smaller' if less >= 0 else 'larger'}"
            said.append(f"{other.type} is {how} and indistinguishable from {chosen} on this text")
    return tuple(said)
