"""Start what has to run, measure it, and stop it; Ctrl-C ends the measurement with what there is."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from miyabi_llm.cli import bench_live
from miyabi_llm.cli import bench_targets as aims

if TYPE_CHECKING:
    from miyabi_llm.bench.loads import Found
    from miyabi_llm.bench.run import Bench, Order
    from miyabi_llm.bench.study import Study
    from miyabi_llm.cli.bench_parse import Plan, Tariff
    from miyabi_llm.config import Settings

INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Face:
    """What belongs to the person who asks, not to the measurement."""

    settings: Settings
    name: str
    tariff: Tariff
    as_json: bool


def measure(aim: aims.Aim, plan: Plan, order: Order, face: Face) -> Study:
    """Everything that was asked for. Raises InvalidMeasurement when nothing answers at all."""
    from miyabi_llm.bench.run import Bench
    from miyabi_llm.bench.study import Study, priced

    with (
        bench_live.shown(as_json=face.as_json) as on_event,
        aims.opened(aim, face.settings, on_event) as opened,
        Bench(opened.targets, order, on_event) as bench,
        interruptible(bench),
    ):
        firsts = bench.first(opened.loads_s)
        found = _loads(bench, plan)
        incomplete = bench.stopped
    levels = tuple(priced(level, face.tariff.prices, face.tariff.price_kwh) for level in found.levels)
    return Study(
        face.name or order.workload.name,
        levels,
        firsts,
        found.knees,
        found.searches,
        incomplete=incomplete,
        command=("miyabi-llm", *sys.argv[1:]),
    )


def _loads(bench: Bench, plan: Plan) -> Found:
    from miyabi_llm.bench import loads

    if plan.sweep:
        limit = min((p.limit_s for p in plan.promises if p.metric == "ttft"), default=None)
        return loads.swept(bench, plan.loads[0], limit)
    if plan.promises:
        return loads.searched(bench, plan.loads[0], plan.promises, plan.start)
    return loads.fixed(bench, plan.loads)


class Stoppable(Protocol):
    """A measurement that can be ended from a signal handler."""

    def stop(self, why: str) -> None:
        """End it."""


@contextmanager
def interruptible(measurement: Stoppable) -> Iterator[list[int]]:
    """While the block runs, the first Ctrl-C or SIGTERM ends the measurement, the second one the command.

    Gives the signals heard.
    """
    heard: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        measurement.stop(INTERRUPTED)
        if len(heard) > 1:
            raise KeyboardInterrupt

    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield heard
    finally:
        for n, old in before.items():
            signal.signal(n, old)
