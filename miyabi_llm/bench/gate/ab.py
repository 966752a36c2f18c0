"""The interleaved A/B loop: measure a round of both arms, judge, and go on while it cannot be told."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence

from miyabi_llm.bench.gate import judge as judging
from miyabi_llm.bench.gate import validity
from miyabi_llm.bench.gate.expr import Rule, parse_all
from miyabi_llm.bench.gate.metrics import can_judge, failed, judge_rule
from miyabi_llm.bench.gate.values import Compared, Judgement, Measure, Plan, Round, Verdict
from miyabi_llm.errors import BadUsage
from miyabi_llm.types import Event, OnEvent, silent

GROWTH = 1.25  # rounds from one look to the next


def looks(plan: Plan) -> tuple[int, ...]:
    """After how many rounds it is judged: each look is a chance to err, so they are few. Pure."""
    found = [min(plan.least_rounds, plan.rounds)]
    while found[-1] < plan.rounds:
        found.append(min(plan.rounds, max(found[-1] + 1, int(found[-1] * GROWTH))))
    return tuple(found)


class AB:
    """One comparison of arm B with arm A by `rules`; `measure` gives the rounds.

    `names` are the arms'; `noise` the A/A floors by metric; `clock` gives seconds. Use `run`.
    """

    def __init__(
        self,
        measure: Measure,
        rules: Sequence[Rule] = (),
        plan: Plan | None = None,
        *,
        names: tuple[str, str] = ("A", "B"),
        noise: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules = tuple(rules) or parse_all()
        check(self._rules)
        self._measure, self._plan, self._names, self._clock = measure, plan or Plan(), names, clock
        self._noise = dict(noise or {})
        self._looks = looks(self._plan)
        self._order = random.Random(self._plan.seed)
        self.rounds: list[Round] = []
        self._discarded = self._looked = 0
        self._begin = 0.0
        self._last: Verdict | None = None

    def run(self, on_event: OnEvent = silent) -> Judgement:
        """Measure until it is decided, or the budget is used up. The rounds stay in `rounds`."""
        self._begin = self._clock()
        while True:
            began = self._clock()
            r = self._measure(len(self.rounds), self._order.randrange(2))
            if reasons := validity.broken(r, self._names):
                return self._invalid(reasons)
            if r.trouble:
                self._discarded += 1
                on_event(Event("warning", "round", f"measured again: {'; '.join(r.trouble)}"))
                if self._discarded > self._plan.spare:
                    return self._invalid(r.trouble)
                continue
            self.rounds.append(r)
            final = self._final(self._clock() - began)
            if len(self.rounds) in self._looks or final:
                found = self._look(on_event)
                if final or found.outcome != "inconclusive":
                    return found

    def _final(self, seconds: float) -> bool:
        """Whether no further round of so many seconds fits."""
        spent = self._clock() - self._begin
        return len(self.rounds) >= self._plan.rounds or spent + seconds > self._plan.budget_s

    def _look(self, on_event: OnEvent) -> Judgement:
        self._looked += 1
        # the budget's end may add one to the looks that were planned
        number = len(self._looks) + 1
        seed = self._plan.seed
        judged: list[Compared] = [
            judge_rule(r, self.rounds, seed=seed + i, noise=self._noise.get(r.name, 0.0), looks=number)
            for i, r in enumerate(self._rules)
        ]
        self._last = judging.verdict(judged)
        if reasons := validity.unusable(self.rounds, self._plan, self._names, self._last.metrics):
            return self._invalid(reasons)
        words = "; ".join(f"{c.metric} {c.reason}" for c in self._last.metrics)
        done = Event("progress", "rounds", words, len(self.rounds), self._plan.rounds, "rounds")
        on_event(done)
        return self._judgement(self._last)

    def _invalid(self, reasons: Sequence[str]) -> Judgement:
        return self._judgement(Verdict("invalid", (), tuple(dict.fromkeys(reasons))))

    def _judgement(self, verdict: Verdict) -> Judgement:
        a, b = (failed(self.rounds, arm) for arm in (0, 1))
        notes = validity.remarks(self.rounds, self._names)
        notes += [
            f"{r.name}: tolerance widened from {r.tolerance:.1%} to {2 * floor:.1%}, twice the noise floor"
            for r in self._rules
            if r.kind == "relative" and 2 * (floor := self._noise.get(r.name, 0.0)) > r.tolerance
        ]
        return Judgement(
            outcome=verdict.outcome,
            metrics=verdict.metrics,
            reasons=verdict.reasons,
            names=self._names,
            rounds=len(self.rounds),
            discarded=self._discarded,
            looks=self._looked,
            seconds=self._clock() - self._begin,
            requests=(a[1], b[1]),
            errors=(a[0], b[0]),
            notes=tuple(notes),
            seed=self._plan.seed,
        )


def check(rules: Sequence[Rule]) -> None:
    """Raises BadUsage for a rule that rounds of two arms cannot tell."""
    for rule in rules:
        if not can_judge(rule):
            raise BadUsage(
                f"{rule.text!r}: {rule.name} is not measured by rounds of two servers",
                hint="gate it in a run of one server: miyabi-llm bench --fail-on ...",
            )
