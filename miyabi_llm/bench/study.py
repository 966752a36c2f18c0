"""All that one call of `bench` found: a report for each load, and what belongs to several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from miyabi_llm.bench.cost import Cost, Price, at, electricity
from miyabi_llm.bench.report import Report
from miyabi_llm.bench.resources import Resources
from miyabi_llm.bench.slo import Trial
from miyabi_llm.bench.stats import Measured
from miyabi_llm.bench.sweep import Knee

INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class First:
    """A target before it was warm: seconds from its start until it was proven ready, and its first request here.

    `load_s` is None for a server that ran already: its first request was perhaps not the first it ever had.
    """

    target: str
    load_s: float | None = None
    ttft_s: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Used:
    """What a target took and cost at one load; `resources` None where its processes are not to be seen."""

    target: str
    resources: Resources | None = None
    tokens_per_joule: float | None = None
    costs: tuple[Cost, ...] = ()


@dataclass(frozen=True, slots=True)
class Curve:
    """A distribution as a curve: (seconds, share of the values that are at most that)."""

    target: str
    metric: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Level:
    """One load: its report, what it took, its distributions, and first tokens over time (seconds, seconds)."""

    label: str
    report: Report
    used: tuple[Used, ...] = ()
    curves: tuple[Curve, ...] = ()
    over_time: tuple[Curve, ...] = ()

    @property
    def valid(self) -> bool:
        """Whether its numbers may be used."""
        return not self.report.invalid


@dataclass(frozen=True, slots=True)
class KneeOf:
    """The knee of one target's sweep; None when no load was within the limits."""

    target: str
    knee: Knee | None


@dataclass(frozen=True, slots=True)
class Search:
    """The search for the highest load of one target that keeps the promises: its trials, and the best of them."""

    target: str
    unit: str
    trials: tuple[Trial, ...]
    best: Trial | None


@dataclass(frozen=True, slots=True)
class Study:
    """Everything. `incomplete`: it was interrupted, and what is here was measured until then."""

    name: str
    levels: tuple[Level, ...]
    firsts: tuple[First, ...] = ()
    knees: tuple[KneeOf, ...] = ()
    searches: tuple[Search, ...] = ()
    incomplete: bool = False
    command: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def invalid(self) -> tuple[str, ...]:
        """Why numbers must not be used, load by load."""
        return tuple(f"{level.label}: {reason}" for level in self.levels for reason in level.report.invalid)

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of those that were measured."""
        return tuple(dict.fromkeys(t.name for level in self.levels for t in level.report.targets))


def blank(report: Report) -> Report:
    """An invalid report without its numbers: what was counted stays, so that one can see what went wrong. Pure."""
    if not report.invalid:
        return report
    return replace(report, measured=tuple(Measured(m.name, (), m.counts, m.warnings) for m in report.measured))


def best_percentile(measured: Measured | None, metric: str, wanted: Sequence[str] = ("p95", "p50")) -> float | None:
    """The first of the wanted percentiles that n allows, else the mean; None when it was not measured. Pure."""
    found = measured.metric(metric) if measured is not None else None
    if found is None:
        return None
    return next((found.percentiles[p].value for p in wanted if p in found.percentiles), found.mean)


def priced(level: Level, prices: Sequence[Price], price_kwh: float | None = None) -> Level:
    """The level with what its tokens would cost at each price, and what the measured energy costs. Pure."""
    found = []
    for used in level.used:
        counts = level.report.of(used.target).counts
        costs = [at(price, counts.prompt_tokens, counts.output_tokens) for price in prices]
        r = used.resources
        joules = None if r is None or (r.energy_j is None and r.gpu_energy_j is None) else sum_of(r)
        costs.append(electricity(joules, price_kwh, counts.prompt_tokens + counts.output_tokens))
        found.append(replace(used, costs=tuple(c for c in costs if c is not None) if level.valid else ()))
    return replace(level, used=tuple(found))


def sum_of(r: Resources) -> float:
    """Joules of processor packages and cards together. Pure."""
    return (r.energy_j or 0.0) + (r.gpu_energy_j or 0.0)
