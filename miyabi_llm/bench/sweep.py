"""Double the concurrency until the server gives no more: where its knee is. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

GAIN = 0.10  # doubled load that brings less throughput than this is past the knee
MOST = 1024  # streams: past this a sweep ends in any case


@dataclass(frozen=True, slots=True)
class Point:
    """One load of a sweep. `load` is streams or requests per second, `throughput` output tokens per second, `ttft`
    seconds at the percentile that n allows; `ok` False when the point was invalid.
    """

    load: float
    throughput: float
    ttft: float
    ok: bool = True


@dataclass(frozen=True, slots=True)
class Knee:
    """The load past which more of it brings little: its point, and why the sweep ended there."""

    load: float
    throughput: float
    reason: str


def following(points: Sequence[Point], limit_s: float | None = None, most: int = MOST) -> int | None:
    """The next concurrency to try, doubled from the last; None when the sweep is over."""
    if not points:
        return 1
    if _end(points, limit_s) is not None:
        return None
    doubled = round(points[-1].load * 2)
    return doubled if doubled <= most else None


def knee(points: Sequence[Point], limit_s: float | None = None) -> Knee | None:
    """The last load that paid; None when there is no valid point within the limit."""
    good = [p for p in points if p.ok and (limit_s is None or p.ttft <= limit_s)]
    if not good:
        return None
    for before, after in itertools.pairwise(good):
        if _gain(before, after) < GAIN:
            return Knee(before.load, before.throughput, f"twice the load brought {_gain(before, after):+.0%} only")
    return Knee(good[-1].load, good[-1].throughput, _end(points, limit_s) or "the sweep ended there")


def _end(points: Sequence[Point], limit_s: float | None) -> str | None:
    last = points[-1]
    if not last.ok:
        return f"the measurement at {last.load:g} is not valid"
    if limit_s is not None and last.ttft > limit_s:
        return f"the first token took {last.ttft * 1e3:.0f} ms at {last.load:g}"
    if len(points) > 1 and _gain(points[-2], last) < GAIN:
        return f"twice the load brought {_gain(points[-2], last):+.0%} only"
    return None


def _gain(before: Point, after: Point) -> float:
    return after.throughput / before.throughput - 1 if before.throughput > 0 else float("inf")
