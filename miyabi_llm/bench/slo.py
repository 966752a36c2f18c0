"""The highest load that keeps a promise: doubling, then bisection, each trial judged by Wilson's interval. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from miyabi_llm.bench.gate import expr
from miyabi_llm.bench.stats.figures import PER_REQUEST, figures
from miyabi_llm.bench.stats.intervals import wilson
from miyabi_llm.bench.values import Sample
from miyabi_llm.errors import BadUsage

Answer = Literal["met", "missed", "open"]
CLOSE: Final = 0.05  # rates: the search ends when its bounds are this near


@dataclass(frozen=True, slots=True)
class Promise:
    """`ttft_p95 < 500ms`: of all requests at least `share` must be below `limit_s` seconds. A failed one is a miss."""

    metric: str
    share: float
    limit_s: float
    text: str

    def kept(self, found: Mapping[str, float]) -> bool:
        """Whether one request was as promised, by its figures."""
        return found.get(self.metric, math.inf) < self.limit_s


def parse(text: str) -> tuple[Promise, ...]:
    """`'ttft_p95<500ms'`, or several with commas between. Raises BadUsage."""
    promises = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        rule = expr.parse(part, objective=True)
        timed = rule.metric in PER_REQUEST and rule.unit == "s"
        if not timed or not isinstance(rule.statistic, float):
            raise BadUsage(f"--slo {part!r} is no promise about each request", hint="Like 'ttft_p95<500ms'.")
        promises.append(Promise(rule.metric, rule.statistic, rule.bound, part))
    if not promises:
        raise BadUsage("--slo is empty", hint="Like 'ttft_p95<500ms'.")
    return tuple(promises)


class Attainment:
    """How many requests of a trial kept each promise: a sink of samples."""

    def __init__(self, promises: Sequence[Promise]) -> None:
        self._promises = tuple(promises)
        self._hits = [0] * len(self._promises)
        self.n = 0

    def __call__(self, sample: Sample) -> None:
        """One request; one that we cancelled ourselves says nothing."""
        if sample.error == "cancelled":
            return
        self.n += 1
        found = figures(sample)
        for i, promise in enumerate(self._promises):
            self._hits[i] += promise.kept(found)

    def trial(self, load: float) -> Trial:
        """How the trial stands, by its worst promise."""
        kept = [
            Kept(p.text, p.share, hits, self.n, *wilson(hits, self.n))
            for p, hits in zip(self._promises, self._hits, strict=True)
        ]
        return Trial(load, tuple(kept))


@dataclass(frozen=True, slots=True)
class Kept:
    """How often one promise was kept: `hits` of `n`, with the interval of the share."""

    promise: str
    share: float
    hits: int
    n: int
    low: float
    high: float

    @property
    def answer(self) -> Answer:
        """Met or missed where the interval is clear of the share that was promised."""
        return "met" if self.low >= self.share else "missed" if self.high < self.share else "open"

    @property
    def likely(self) -> bool:
        """What the share itself says."""
        return self.n > 0 and self.hits / self.n >= self.share


@dataclass(frozen=True, slots=True)
class Trial:
    """One load that was tried; `valid` False where the client could not keep up, or the server gave nothing."""

    load: float
    kept: tuple[Kept, ...]
    valid: bool = True

    @property
    def answer(self) -> Answer:
        """Missed when one promise is; met when all are."""
        answers = {k.answer for k in self.kept}
        return "missed" if "missed" in answers else "open" if "open" in answers else "met"

    @property
    def good(self) -> bool:
        """Whether the search goes up from here: where no interval is clear, by the shares themselves."""
        return self.valid and (self.answer == "met" or (self.answer == "open" and all(k.likely for k in self.kept)))


def following(trials: Sequence[Trial], start: float, *, whole: bool, most: float = 1024) -> float | None:
    """The next load to try; None when the answer is known. `whole` loads are streams, others requests per second."""
    if not trials:
        return start
    good = max((t.load for t in trials if t.good), default=0.0)
    bad = min((t.load for t in trials if not t.good and t.load > good), default=math.inf)
    if math.isinf(bad):
        return good * 2 if good * 2 <= most else None
    if whole:
        middle = (good + bad) // 2
        return None if bad - good <= 1 or middle < 1 else float(middle)
    if good == 0.0 and bad < start / 32:
        return None  # nothing this slow can be kept
    return None if good and bad / good - 1 <= CLOSE else (good + bad) / 2


def best(trials: Sequence[Trial]) -> Trial | None:
    """The highest load whose promises were kept, with every lower one that was tried kept too; None without one."""
    bad = min((t.load for t in trials if not t.good), default=math.inf)
    return max((t for t in trials if t.good and t.load < bad), key=lambda t: t.load, default=None)
