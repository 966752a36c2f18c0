"""What the numbers of a measurement are made of: quantiles with intervals, metrics with definitions, counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Better = Literal["lower", "higher", "neither"]
LEVEL = 0.95  # of every interval of a report


@dataclass(frozen=True, slots=True)
class Quantile:
    """A percentile with its interval at `LEVEL`; the interval is None where the values are not independent."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of one target, in `unit`.

    A distribution has `n` values, their `mean` with its interval, `sd`, `least`, `most`, and `percentiles` ("p50",
    "p99.9") where n allows them. A single figure (a rate, a share) has its value in `mean` and no percentiles.
    `error` is the relative error of the percentiles (0: exact). `definition` says in words what it is, `source` where
    its parts come from, `note` what to mind.
    """

    name: str
    unit: str
    n: int
    mean: float
    low: float | None = None
    high: float | None = None
    sd: float | None = None
    least: float | None = None
    most: float | None = None
    percentiles: Mapping[str, Quantile] = field(default_factory=dict)
    better: Better = "lower"
    definition: str = ""
    source: str = ""
    note: str = ""
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted for one target.

    `failed` does not hold the `cancelled`, which nobody waited for. `errors` by class, `examples` a server's words for
    each. `finish`: why the answers ended ("length" reached the limit, others were shorter). `provenance`: where the
    token counts came from. Tokens are sums over whole answers; `cached_of` are the prompt tokens of those answers
    whose server tells how many it had cached, `uncounted` the answers without a token count.
    """

    requests: int = 0
    ok: int = 0
    failed: int = 0
    cancelled: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)
    finish: Mapping[str, int] = field(default_factory=dict)
    provenance: Mapping[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cached_of: int = 0
    uncounted: int = 0
    chunks: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """All that was measured of one target."""

    name: str
    metrics: tuple[Metric, ...]
    counts: Counts
    warnings: tuple[str, ...] = ()

    def metric(self, name: str) -> Metric | None:
        """The metric of that name, None when nothing was measured for it."""
        return next((m for m in self.metrics if m.name == name), None)

    def figure(self, name: str) -> Quantile | None:
        """One figure: `ttft_p50`, `ttft_p99.9`, `ttft_mean`, or a metric's name alone for its mean or value."""
        base, _, last = name.rpartition("_")
        if base and (found := self.metric(base)) is not None and (last == "mean" or last in found.percentiles):
            return found.percentiles.get(last) or Quantile(found.mean, found.low, found.high)
        found = self.metric(name)
        return None if found is None else Quantile(found.mean, found.low, found.high)
