"""Which loads to measure: those that were asked for, doubled until the knee, or searched for a promise."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from miyabi_llm.bench import slo, sweep
from miyabi_llm.bench.run import Bench, Stopped
from miyabi_llm.bench.study import KneeOf, Level, Search, best_percentile
from miyabi_llm.bench.values import Load

EXTENSIONS = 2  # how often a trial that cannot be told is measured again


@dataclass(frozen=True, slots=True)
class Found:
    """What the loads gave."""

    levels: tuple[Level, ...]
    knees: tuple[KneeOf, ...] = ()
    searches: tuple[Search, ...] = ()


def label(load: Load) -> str:
    """A load in few words: `c=2`, `0.5/s`, `c=1 d=4096`."""
    said = f"c={load.concurrency}" if load.rate is None else f"{load.rate:g}/s"
    return f"{said} d={load.depth}" if load.depth else said


def fixed(bench: Bench, loads: Sequence[Load]) -> Found:
    """One after the other."""
    levels: list[Level] = []
    with suppress(Stopped):
        for load in loads:
            if not bench.stopped:
                levels.append(bench.measure(load, label(load)))
    return Found(tuple(levels))


def swept(bench: Bench, load: Load, limit_s: float | None = None, most: int = sweep.MOST) -> Found:
    """Concurrency from 1, doubled while it pays for some target. `limit_s`: the first token must not take longer."""
    points: dict[str, list[sweep.Point]] = {t.name: [] for t in bench.targets}
    levels: list[Level] = []
    with suppress(Stopped):
        while not bench.stopped:
            wanted = [n for p in points.values() if (n := sweep.following(p, limit_s, most)) is not None]
            if not wanted:
                break
            now = replace(load, concurrency=wanted[0], rate=None)
            level = bench.measure(now, label(now))
            levels.append(level)
            for name in points:
                points[name].append(point(level, name))
    knees = tuple(KneeOf(name, sweep.knee(found, limit_s)) for name, found in points.items())
    return Found(tuple(levels), knees)


def point(level: Level, target: str) -> sweep.Point:
    """One target's point of a sweep. Pure."""
    measured = next((m for m in level.report.measured if m.name == target), None)
    rate = measured.metric("output_tps") if measured is not None else None
    ttft = best_percentile(measured, "ttft")
    load = float(level.report.load.concurrency or 1)
    if not level.valid or rate is None or ttft is None:
        return sweep.Point(load, 0.0, 0.0, ok=False)
    return sweep.Point(load, rate.mean, ttft)


def searched(bench: Bench, load: Load, promises: Sequence[slo.Promise], start: float | None = None) -> Found:
    """For each target the highest load that keeps the promises: requests per second from `start` on, else streams."""
    levels: list[Level] = []
    searches = []
    whole = start is None
    for index, target in enumerate(bench.targets):
        trials: list[slo.Trial] = []
        with suppress(Stopped):
            while not bench.stopped:
                wanted = slo.following(trials, start or 1.0, whole=whole)
                if wanted is None:
                    break
                now = replace(load, concurrency=round(wanted) if whole else None, rate=None if whole else wanted)
                trial = _Trial(promises, wanted)
                level = bench.measure(now, label(now), (index,), sink=trial.kept, again=trial.open)
                levels.append(level)
                if not bench.stopped:  # half a trial says nothing
                    trials.append(replace(trial.kept.trial(wanted), valid=level.valid))
        unit = "streams" if whole else "requests/s"
        searches.append(Search(target.name, unit, tuple(trials), slo.best(trials)))
    return Found(tuple(levels), (), tuple(searches))


class _Trial:
    """One load of a search: measured again, a few times, while the intervals cannot tell."""

    def __init__(self, promises: Sequence[slo.Promise], load: float) -> None:
        self.kept = slo.Attainment(promises)
        self._load, self._left = load, EXTENSIONS

    def open(self) -> bool:
        """Whether to measure on."""
        self._left -= 1
        return self._left >= 0 and self.kept.trial(self._load).answer == "open"
