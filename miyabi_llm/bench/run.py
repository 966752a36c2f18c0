"""Measure targets under loads: first requests, warm-up, blocks in turns, and what every load gave."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from miyabi_llm.bench import merge
from miyabi_llm.bench.engine import Engine
from miyabi_llm.bench.engine.health import invalid
from miyabi_llm.bench.engine.shards import Shards
from miyabi_llm.bench.live import Live, Trace
from miyabi_llm.bench.report import Machine, Report, asked
from miyabi_llm.bench.report import Questions as Questioned
from miyabi_llm.bench.resources import Meter, Resources
from miyabi_llm.bench.stats import Collector, Measured, metrics
from miyabi_llm.bench.stats.figures import first_ns
from miyabi_llm.bench.study import INTERRUPTED, Curve, First, Level, Used, blank, sum_of
from miyabi_llm.bench.values import Load, Phase, Run, Sample, Source, Target
from miyabi_llm.bench.workload import Questions, Workload
from miyabi_llm.bench.workload.depth import deepened
from miyabi_llm.bench.workload.questions import forget
from miyabi_llm.errors import InvalidMeasurement
from miyabi_llm.types import Event, OnEvent, plain, silent

Sink = Callable[[Sample], None]
CURVE = tuple(i / 100 for i in range(1, 100))  # shares at which a distribution is drawn


class Stopped(Exception):
    """A load was ended before anything of it was measured."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Which of all questions: from `first` on, every `shards`-th; `salt` is one for all parts of a load."""

    salt: str = field(default_factory=lambda: secrets.token_hex(8))
    first: int = 0
    shard: int = 0
    shards: int = 1


@dataclass(frozen=True, slots=True)
class Order:
    """How to measure, whatever the load.

    `warm_up` requests per stream go before the first block of a load. More than `error_limit` of failed requests make
    a load invalid. `goals` are limits of a good answer, by figure. `samples` is a file that gets every sample; with
    several loads or targets each has a file of its own beside it. The measured requests are sent by so many `processes`
    of ours, started in the environment `env`.
    """

    machine: Machine
    workload: Workload
    nonce: bool = True
    prefix_share: float = 0.0
    warm_up: int = 1
    error_limit: float = 0.05
    timeout_s: float = 300.0
    goals: Mapping[str, float] = field(default_factory=dict)
    samples: Path | None = None
    seed: int = 0
    in_blocks: bool = False
    processes: int = 1
    env: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def questions(self) -> Questioned:
        """What is asked, as reports hold it."""
        w = self.workload
        return Questioned(w.name, w.sha256, len(w.items), w.license, self.seed, self.nonce, self.prefix_share)

    def source(self, target: Target, load: Load, phase: Phase, sink: Sink, part: Slice | None = None) -> Source:
        """The questions of one target at one load, all or a `part`. Raises BadUsage where they cannot be asked so."""
        part = part or Slice()
        return Questions(
            deepened(self.workload, load.depth, self.seed),
            (target,),
            seed=self.seed,
            nonce=self.nonce,
            prefix_share=self.prefix_share,
            phase=phase,
            open_loop=load.rate is not None,
            salt=part.salt,
            first=part.first,
            shard=part.shard,
            shards=part.shards,
            sink=sink,
        )


@dataclass(frozen=True, slots=True)
class Share:
    """What one process of several asks: made in that process, so it travels whole. `part.first` counts all of them."""

    order: Order
    target: Target
    load: Load
    part: Slice

    def __call__(self, shard: int, shards: int, sink: Sink) -> Source:
        """Its questions."""
        part = replace(self.part, shard=shard, shards=shards)
        return self.order.source(self.target, self.load, "measure", sink, part)


class Bench:
    """Measures `targets` as `order` says; connections and counters stay open while it is entered."""

    def __init__(self, targets: Sequence[Target], order: Order, on_event: OnEvent = silent) -> None:
        self.targets = tuple(targets)
        self._order, self._on_event = order, on_event
        self._stack = ExitStack()
        self._running: Engine | Shards | None = None
        self._random = random.Random(order.seed)
        self._files: set[Path] = set()
        self.stopped = False

    def __enter__(self) -> Bench:
        self._engines = [self._stack.enter_context(Engine((t,))) for t in self.targets]
        if (count := self._order.processes) > 1:
            shards = (Shards((t,), count, self._order.env) for t in self.targets)
            self._shards = [self._stack.enter_context(s) for s in shards]
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def stop(self, why: str = INTERRUPTED) -> None:
        """End what runs, and start nothing more; for signal handlers."""
        self.stopped = True
        if self._running is not None:
            self._running.stop(why)

    def first(self, loads_s: Mapping[str, float]) -> tuple[First, ...]:
        """One request to each target before it is warm. `loads_s`: seconds from start to ready, of those we started.

        Raises InvalidMeasurement when no target answers at all: nothing of what follows could be measured.
        """
        found = [self._first(i, loads_s.get(t.name)) for i, t in enumerate(self.targets) if not self.stopped]
        if found and all(f.error for f in found) and not self.stopped:
            words = "; ".join(f"{f.target}: {f.error}" for f in found)
            raise InvalidMeasurement(f"no answer to the first request: {words}")
        return tuple(found)

    def _first(self, index: int, load_s: float | None) -> First:
        samples: list[Sample] = []
        name = self.targets[index].name
        self._on_event(Event("phase", name, "first request"))
        self._warm(index, Load(concurrency=1, requests=1, timeout_s=self._order.timeout_s), samples.append)
        if not samples:
            return First(name, load_s, None, "no answer")
        s = samples[0]
        if not s.ok:
            return First(name, load_s, None, f"{s.error} {s.detail}".strip())
        return First(name, load_s, (first_ns(s) - s.sent_ns) / 1e9 if first_ns(s) else None)

    def measure(
        self,
        load: Load,
        label: str,
        which: Sequence[int] | None = None,
        *,
        sink: Sink | None = None,
        again: Callable[[], bool] | None = None,
    ) -> Level:
        """One load on the targets numbered `which` (all): in turns, block by block, in an order drawn anew each round.

        `sink` is told every sample too; while `again` says so, the blocks are repeated. Raises Stopped when it was
        stopped before the first block.
        """
        chosen = range(len(self.targets)) if which is None else which
        with ExitStack() as stack:
            parts = [stack.enter_context(_Part(self, i, label)) for i in chosen]
            begun = datetime.now(UTC).isoformat(timespec="seconds")
            warm = self._order.warm_up * (load.concurrency or 1)
            for part in parts:
                part.prepare(load, sink)
                if warm and not self.stopped:
                    self._on_event(Event("phase", part.target.name, f"{label}: warm-up"))
                    self._warm(part.index, _warm(load, warm), forget)
            while not self.stopped:
                for block in merge.blocks(load, one=len(parts) == 1 and not self._order.in_blocks):
                    for part in self._random.sample(parts, len(parts)):
                        if not self.stopped and not part.hopeless:
                            part.measure(block)
                if again is None or not again() or any(p.hopeless for p in parts):
                    break
        return self._level(load, label, begun, parts)

    def _warm(self, index: int, load: Load, sink: Sink) -> None:
        self.drive(index, load, self._order.source(self.targets[index], load, "warm-up", sink))

    def drive(self, index: int, load: Load, source: Source, on_event: OnEvent = silent) -> Run:
        """Run one load on one target."""
        self._running = self._engines[index]
        try:
            return self._running.run(load, source, on_event)
        finally:
            self._running = None

    def share(self, index: int, load: Load, share: Share, sink: Sink, on_event: OnEvent) -> Run:
        """Run one load on one target from several processes."""
        self._running = self._shards[index]
        try:
            return self._shards[index].run(load, share, sink, on_event)
        finally:
            self._running = None

    def sample_file(self, target: str, label: str) -> Path | None:
        """Where the samples of one target at one load go: the file itself for the first, one beside it for others."""
        path = self._order.samples
        if path is not None and path in self._files:
            name = "".join(c if c.isalnum() or c in "=._-" else "-" for c in f"{target}-{label}")
            path = path.with_stem(f"{path.stem}-{name}")
        if path is not None:
            self._files.add(path)
        return path

    def _level(self, load: Load, label: str, begun: str, parts: Sequence[_Part]) -> Level:
        seen = [p for p in parts if p.runs]
        if not seen:
            raise Stopped
        healths = [merge.health(p.runs) for p in seen]
        health = merge.together(healths)
        measured = tuple(m for p in seen for m in metrics(p.collector, p.runs))
        aborted = "; ".join(dict.fromkeys(r.aborted for p in seen for r in p.runs if r.aborted))
        reasons = [] if self.stopped else [r for h in healths for r in invalid(h)]
        reasons += [f"{p.target.name}: {p.hopeless}" for p in seen if p.hopeless]
        reasons += [r for m in measured if (r := failures(m, self._order.error_limit))]
        report = Report(
            begun=begun,
            seconds=sum((r.end_ns - r.begin_ns) / 1e9 for p in seen for r in p.runs),
            targets=tuple(asked(p.target) for p in seen),
            questions=self._order.questions,
            load=load,
            health=health,
            machine=self._order.machine,
            measured=measured,
            invalid=tuple(dict.fromkeys(reasons)),
            aborted=aborted,
        )
        valid = not report.invalid
        return Level(
            label,
            blank(report),
            tuple(p.used() for p in seen),
            tuple(c for p in seen for c in p.curves()) if valid else (),
            tuple(p.over_time() for p in seen) if valid else (),
        )

    @property
    def order(self) -> Order:
        """How it measures."""
        return self._order

    @property
    def on_event(self) -> OnEvent:
        """Who is told of progress."""
        return self._on_event


class _Part:
    """One target at one load: its sinks, its runs, its meter."""

    def __init__(self, bench: Bench, index: int, label: str) -> None:
        self.index, self.target = index, bench.targets[index]
        self._bench, self._label = bench, label
        self._live, self._trace = Live(self.target.name, label), Trace()
        self._meter = Meter(self.target.endpoint)
        self._whole = Slice()  # its salt is one for all processes and blocks
        self.runs: list[Run] = []

    def __enter__(self) -> _Part:
        order = self._bench.order
        path = self._bench.sample_file(self.target.name, self._label)
        self.collector = Collector([self.target.name], goals=order.goals, samples=path)
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.collector.close()

    @property
    def hopeless(self) -> str:
        """Why no further block makes sense, empty when it does."""
        return next((r.aborted for r in self.runs if r.aborted and r.aborted != INTERRUPTED), "")

    def prepare(self, load: Load, sink: Sink | None) -> None:
        """Make its questions: blocks go on where the last one ended."""
        sinks: list[Sink] = [self.collector, self._live, self._trace, *([sink] if sink else [])]

        def told(sample: Sample) -> None:
            for each in sinks:
                each(sample)

        self._told = told
        self._source = self._bench.order.source(self.target, load, "measure", told)

    def measure(self, block: Load) -> None:
        """One block."""
        bench, order = self._bench, self._bench.order
        with self._meter:
            if order.processes == 1:
                self.runs.append(bench.drive(self.index, block, self._source, self._progress))
                return
            part = replace(self._whole, first=sum(r.sent for r in self.runs))
            share = Share(order, self.target, block, part)
            self.runs.append(bench.share(self.index, block, share, self._told, self._progress))

    def _progress(self, e: Event) -> None:
        seen = self._live.snapshot(time.perf_counter_ns())
        name = f"{self.target.name} {self._label}"
        self._bench.on_event(Event("progress", name, seen.words, seen.done, None, "requests", plain(seen)))

    def used(self) -> Used:
        """What the server took."""
        found = self._meter.result()
        return Used(self.target.name, found, tokens_per_joule(found, self.collector.tallies[0].counts().output_tokens))

    def curves(self) -> list[Curve]:
        """Its distributions, as far as there are values enough to draw."""
        tally = self.collector.tallies[0]
        tally.flush()
        ttft = tally.columns["ttft"].sketch()
        itl = tally.itl if tally.itl.n else tally.gaps
        found = [("ttft", ttft), ("itl" if tally.itl.n else "gap", itl)]
        return [
            Curve(self.target.name, name, tuple(zip(sketch.quantiles(CURVE), CURVE, strict=True)))
            for name, sketch in found
            if sketch.n >= 5
        ]

    def over_time(self) -> Curve:
        """The time to the first token of each answer, by when it was asked for."""
        return Curve(self.target.name, "ttft", self._trace.points(self.runs[0].begin_ns))


def failures(measured: Measured, limit: float) -> str:
    """Why one target's numbers say nothing: no whole answer, or too many that failed; empty when they do. Pure."""
    counts = measured.counts
    everything = counts.ok + counts.failed
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.errors.items(), key=lambda e: -e[1]))
    if not counts.ok:
        return f"{measured.name}: no whole answer to {everything} requests" + (f" ({kinds})" if kinds else "")
    if counts.failed > limit * everything:
        share = f"{counts.failed} of {everything} requests failed ({kinds})"
        return f"{measured.name}: {share}, more than {limit:.0%}: the others had another load"
    return ""


def tokens_per_joule(found: Resources | None, tokens: int) -> float | None:
    """Output tokens for each joule of processor packages and cards; None where no energy was read. Pure."""
    joules = 0.0 if found is None else sum_of(found)
    return tokens / joules if joules > 0 else None


def _warm(load: Load, requests: int) -> Load:
    return replace(load, rate=None, concurrency=load.concurrency or 1, requests=requests, duration_s=None, ramp_s=0.0)
