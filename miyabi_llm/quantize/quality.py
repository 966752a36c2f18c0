"""How much a quantized file differs from its source, as an interval and a judgement: pure statistics."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

from miyabi_llm.errors import InvalidMeasurement
from miyabi_llm.quantize.values import Limits, Order, Quality
from miyabi_llm.tools.quantize_output import Divergence, Row
from miyabi_llm.tools.quantizing import Window

EARLY_CHUNKS = 2  # before so many windows nothing is given up
EARLY_SIGMAS = 3.0
# Where --max-kld is given alone, the other two limits follow from it. In the tables that were measured (docs,
# "What quantizing costs") the 99.9% divergence was 8 to 23 times the mean, and the share of tokens that changed
# 0.3 to 0.7 times the square root of the mean, 1.1 times with random weights: the limits catch what is extraordinary.
TAIL = 50.0
CHANGED = 2.0
RESOLUTION = 6e-4  # nats: 16-bit probabilities cannot show less; f16 against itself gives 0.00055 in llama.cpp's table
# 97.5% quantiles of Student's t for 1, 2, ... degrees of freedom: windows are few, and one is not like the other
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def scored(window: Window, chunks: int) -> int:
    """Tokens that are compared: the second half of each window but its last."""
    return chunks * (window.ctx - 1 - window.ctx // 2)


def interval(rows: tuple[Row, ...], mean: float, error: float) -> tuple[float, float]:
    """A 95% interval of the mean divergence; the wider of two.

    The tool's standard error takes tokens for independent, which those of one text are not. The spread of the
    windows' own means does not, but there are few of them: Student's t.
    """
    half = 1.96 * error
    if len(rows) >= 3:
        totals = [0.0, *(r.chunk * r.mean for r in rows)]
        means = [b - a for a, b in pairwise(totals)]
        middle = sum(means) / len(means)
        spread = math.sqrt(sum((m - middle) ** 2 for m in means) / (len(means) - 1) / len(means))
        half = max(half, _T[min(len(means) - 2, len(_T) - 1)] * spread)
    return mean - half, mean + half


def limits(order: Order) -> Limits:
    """The gate that was ordered: what was not said follows from the mean's limit. Pure."""
    kld = order.max_kld
    p999 = TAIL * kld if order.max_p999 is None and kld is not None else order.max_p999
    top = max(0.0, 100 * (1 - CHANGED * math.sqrt(kld))) if order.min_top is None and kld is not None else order.min_top
    return Limits(kld, p999, top)


def hopeless(row: Row, limits: Limits) -> bool:
    """Whether this far into the text the mean, or the share of tokens that stayed, is surely beyond its limit. Pure.

    The 99.9% divergence is not judged early: of a few hundred tokens it is the largest.
    """
    if row.chunk < EARLY_CHUNKS:
        return False
    lost = limits.kld is not None and row.mean - EARLY_SIGMAS * row.error > limits.kld
    return lost or (limits.top is not None and row.same_top + EARLY_SIGMAS * row.same_top_error < limits.top)


def judged(found: Divergence, window: Window, against: str) -> Quality:
    """The measured loss as a value. Raises InvalidMeasurement on a figure that is no number."""
    figures = [getattr(found, f.name) for f in dataclasses.fields(found) if f.name != "rows"]
    if not all(math.isfinite(x) for x in figures):
        raise InvalidMeasurement(
            "the comparison gave figures that are no numbers", hint="The file is damaged, or the source is."
        )
    low, high = interval(found.rows, found.mean, found.mean_error)
    return Quality(
        kld=found.mean, kld_error=found.mean_error, low=low, high=high, same_top=found.same_top,
        chunks=len(found.rows), tokens=scored(window, len(found.rows)), against=against,
        same_top_low=found.same_top - 1.96 * found.same_top_error, p999=found.p999, maximum=found.maximum,
        ppl=found.ppl, ppl_error=found.ppl_error, base_ppl=found.base_ppl,
        ppl_ratio=found.ppl_ratio, ppl_ratio_error=found.ppl_ratio_error,
    )  # fmt: skip


def early(row: Row, rows: tuple[Row, ...], window: Window, against: str) -> Quality:
    """What is known of a comparison that was given up after `row`."""
    low, high = interval(rows, row.mean, row.error)
    tokens = scored(window, row.chunk)
    return Quality(row.mean, row.error, low, high, row.same_top, row.chunk, tokens, against, stopped=True)


def failures(quality: Quality, limits: Limits) -> tuple[str, ...]:
    """What is beyond the limits, in words. Pure."""
    q, found = quality, []
    if q.stopped:
        found.append(f"given up after {q.chunks} windows")
    if limits.kld is not None and q.high > limits.kld:
        found.append(f"mean KL divergence {q.kld:.6f}, up to {q.high:.6f}; at most {limits.kld:g} is allowed")
    if limits.p999 is not None and q.p999 is not None and q.p999 > limits.p999:
        found.append(f"one token in a thousand differs by {q.p999:.3f} and more; at most {limits.p999:g} is allowed")
    low = q.same_top if q.same_top_low is None else q.same_top_low
    if limits.top is not None and low < limits.top:
        found.append(f"the likeliest token stayed the same for {low:.1f}% or more; at least {limits.top:g}% must")
    return tuple(found)


def passes(quality: Quality, limits: Limits) -> bool | None:
    """Whether the file is within all limits, by the worse ends of its intervals; None without any."""
    return None if limits == Limits() else not failures(quality, limits)
