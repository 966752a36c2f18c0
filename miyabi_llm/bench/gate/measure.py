"""Rounds from real servers: both up and taking turns, or one at a time, each started anew for its part of a round."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType

from miyabi_llm.bench.engine import Engine
from miyabi_llm.bench.engine.health import invalid
from miyabi_llm.bench.gate.values import Plan, Round
from miyabi_llm.bench.values import ClientHealth, Load, Phase, Run, Sample, Target
from miyabi_llm.bench.workload import Paired, Workload
from miyabi_llm.types import OnEvent, silent

_ROOM = 1_000_000  # numbers of questions that one round may use: no prompt comes twice
Samples = list[Sample]


@dataclass(frozen=True, slots=True)
class Prompts:
    """The questions of each round: the same for both arms, each prompt new to its server unless `nonce` is off.

    `salt` keeps a second run from finding the first one's prompts in a cache.
    """

    workload: Workload
    seed: int = 0
    nonce: bool = True
    prefix_share: float = 0.0
    salt: str = field(default_factory=lambda: secrets.token_hex(8))

    def source(self, targets: Sequence[Target], number: int, phase: Phase, sink: Callable[[Sample], None]) -> Paired:
        """Round `number`'s questions, each to all of `targets` in an order drawn anew. Raises BadUsage."""
        return Paired(
            self.workload,
            targets,
            first=number * _ROOM,
            per_round=_ROOM,
            rounds=1,
            seed=self.seed,
            salt=self.salt,
            nonce=self.nonce,
            prefix_share=self.prefix_share,
            phase=phase,
            sink=sink,
        )


class Together:
    """Both servers are up. A `Measure` and a context manager, which keeps the connections open.

    `identify` tells which process answers for an arm (its pid and start, say): when that changes, a server restarted.
    The arms may be the same server: then it gets different prompts of equal length.
    """

    def __init__(
        self,
        targets: tuple[Target, Target],
        prompts: Prompts,
        plan: Plan,
        *,
        identify: Callable[[int], str] | None = None,
        on_event: OnEvent = silent,
    ) -> None:
        self._targets, self._prompts, self._plan = targets, prompts, plan
        self._identify, self._on_event = identify, on_event
        self._who: tuple[str, str] | None = None
        self._open = ExitStack()
        self._engines: tuple[Engine, ...] = ()
        self._stopped = ""

    def __enter__(self) -> Together:
        sets = [self._targets] if self._plan.concurrency == 1 else [(t,) for t in self._targets]
        self._engines = tuple(self._open.enter_context(Engine(targets)) for targets in sets)
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._open.close()

    def stop(self, why: str = "interrupted") -> None:
        """End the measurement, from a signal handler or another thread; it is invalid then."""
        self._stopped = why
        for engine in self._engines:
            engine.stop(why)

    def __call__(self, number: int, first: int) -> Round:
        """Measure one round; warm both arms up before the first."""
        if self._who is None:
            self._who = self._look()
            for i, engine in enumerate(self._engines):
                targets = self._targets if len(self._engines) == 1 else (self._targets[i],)
                _warm_up(engine, targets, self._prompts, number, self._plan)
        parts = self._pairs(number) if self._plan.concurrency == 1 else _blocks(first, self._block, number)
        now = self._look()
        broken = [self._stopped] if self._stopped else []
        broken += [f"arm {'AB'[i]}: another process answers now" for i in (0, 1) if now[i] != self._who[i]]
        return _round(number, first, parts, tuple(broken))

    def _look(self) -> tuple[str, str]:
        return ("", "") if self._identify is None else (self._identify(0), self._identify(1))

    def _pairs(self, number: int) -> _Parts:
        samples: tuple[Samples, Samples] = ([], [])
        source = self._prompts.source(self._targets, number, "measure", lambda s: samples[s.target].append(s))
        run = self._engines[0].run(_load(self._plan, requests=2 * self._plan.pairs), source, self._on_event)
        a, b = (sum(s.end_ns - s.sent_ns for s in arm if s.ok) / 1e9 for arm in samples)
        return samples, (a, b), (run,)

    def _block(self, arm: int, number: int) -> _Part:
        prompts = self._prompts
        if arm and self._targets[0].endpoint.base_url == self._targets[1].endpoint.base_url:
            prompts = Prompts(prompts.workload, prompts.seed, prompts.nonce, prompts.prefix_share, f"{prompts.salt}b")
        return _block(self._engines[arm], self._targets[arm], prompts, number, self._plan)


class InTurn:
    """A `Measure` for servers that do not fit side by side: each round starts, warms, measures and stops each arm.

    `start(arm)` starts it and gives its target, leaving stops it. A fresh server's memory lies elsewhere each time:
    that is noise between rounds, and is measured as such; hence the rounds are the restarts.
    """

    def __init__(self, start: Callable[[int], AbstractContextManager[Target]], prompts: Prompts, plan: Plan) -> None:
        self._start, self._prompts, self._plan = start, prompts, plan

    def __call__(self, number: int, first: int) -> Round:
        """Measure one round. Raises what `start` does."""
        return _round(number, first, _blocks(first, self._part, number))

    def _part(self, arm: int, number: int) -> _Part:
        with self._start(arm) as target, Engine([target]) as engine:
            _warm_up(engine, [target], self._prompts, number, self._plan)
            return _block(engine, target, self._prompts, number, self._plan)


_Part = tuple[Samples, float, Run]
_Parts = tuple[tuple[Samples, Samples], tuple[float, float], tuple[Run, ...]]


def _blocks(first: int, block: Callable[[int, int], _Part], number: int) -> _Parts:
    parts = {arm: block(arm, number) for arm in (first, 1 - first)}
    (a, a_s, a_run), (b, b_s, b_run) = parts[0], parts[1]
    return (a, b), (a_s, b_s), (a_run, b_run)


def _block(engine: Engine, target: Target, prompts: Prompts, number: int, plan: Plan) -> _Part:
    samples: Samples = []
    load = _load(plan, requests=plan.pairs) if plan.concurrency == 1 else _load(plan, duration_s=plan.block_s)
    run = engine.run(load, prompts.source([target], number, "measure", samples.append))
    # the time after the last request was sent counts, as its tokens do
    end = max((s.end_ns for s in samples), default=run.end_ns)
    return samples, (end - run.begin_ns) / 1e9, run


def _warm_up(engine: Engine, targets: Sequence[Target], prompts: Prompts, number: int, plan: Plan) -> None:
    if plan.warmup:
        load = _load(plan, requests=plan.warmup * plan.concurrency * len(targets))
        engine.run(load, prompts.source(targets, number, "warm-up", lambda sample: None))


def _load(plan: Plan, *, requests: int | None = None, duration_s: float | None = None) -> Load:
    return Load(
        concurrency=plan.concurrency,
        requests=requests,
        duration_s=duration_s,
        seed=plan.seed,
        timeout_s=plan.timeout_s,
    )


def _round(number: int, first: int, parts: _Parts, broken: tuple[str, ...] = ()) -> Round:
    samples, seconds, runs = parts
    trouble = tuple(why for run in runs for why in invalid(_judged(run.health)))
    return Round(number, (tuple(samples[0]), tuple(samples[1])), seconds, first, runs, trouble, broken)


def _judged(health: ClientHealth) -> ClientHealth:
    """One stream that pauses between two requests lowers no figure of its pairs, however short they are."""
    return replace(health, offered=0.0) if health.offered == 1 else health
