"""Samples of known figures, for the tests of what is made of them."""

from dataclasses import replace

from miyabi_llm.bench.values import ClientHealth, Provenance, Run, Sample

MS = 1_000_000
S = 1_000_000_000
BEGIN = 1_000 * S


def sample(
    pieces: tuple[int, ...] = (100, 120, 140, 160),
    *,
    sent: int = 0,
    tokens: int | None = 4,
    provenance: Provenance = "server timings",
    **fields: object,
) -> Sample:
    """An answer sent `sent` ms after the begin, whose pieces came so many ms after that."""
    at = BEGIN + sent * MS
    times = tuple(at + p * MS for p in pieces)
    made = Sample(0, 0, 0, 0, intended_ns=at, sent_ns=at, end_ns=times[-1] + MS if times else at + MS)
    made = replace(
        made,
        first_ns=times[0] if times else 0,
        last_ns=times[-1] if times else 0,
        times_ns=times,
        text="x" * len(times),
        finish="length",
        output_tokens=tokens,
        provenance=provenance,
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def lost(error: str = "cut", **fields: object) -> Sample:
    """One without an answer."""
    return replace(Sample(0, 0, 0, 0, BEGIN, BEGIN, BEGIN + MS), error=error, detail="why", **fields)  # type: ignore[arg-type]


def run(seconds: float = 1.0, begin: float = 0.0) -> Run:
    """A time of sending, so many seconds after the begin."""
    health = ClientHealth(None, None, None, 0.1, 1, 1.0, 1.0, kernel_stamps=True)
    start = BEGIN + round(begin * S)
    return Run(start, start + round(seconds * S), 1, 0, health)
