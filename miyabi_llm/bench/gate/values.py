"""What a gate is made of: rounds of both arms, the judgement of each rule, and of the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from miyabi_llm.bench.values import Run, Sample

Outcome = Literal["pass", "fail", "inconclusive", "invalid"]
Direction = Literal["lower", "higher"]  # which is better
Kind = Literal["relative", "absolute"]
Statistic = float | Literal["mean"]  # a share: 0.5 for the median

LEVEL = 0.99  # of the intervals
RESAMPLES = 4000
LEAST_ROUNDS = 5  # fewer clusters tell nothing about the spread between them


@dataclass(frozen=True, slots=True)
class Series:
    """One metric of both arms, by round. `paired`: `a[r][i]` and `b[r][i]` are the same question.

    `unit` is the metric's; `better` says which direction is; `tolerance` is the share by which B may be worse.
    """

    metric: str
    a: tuple[tuple[float, ...], ...]
    b: tuple[tuple[float, ...], ...]
    better: Direction = "lower"
    tolerance: float = 0.05
    unit: str = "s"
    statistic: Statistic = 0.5
    paired: bool = True


@dataclass(frozen=True, slots=True)
class Compared:
    """One rule, judged. `a` and `b` are the arms' own figures in `unit`; `a` is nan without a first arm.

    Relative: `value` is B over A turned so that above 1 is worse, `low` and `high` its interval, `limit` the tolerance
    as a share; `p` is the one-sided probability that B is not worse than half the tolerance, after Holm over the rules.
    Absolute: `value`, `low` and `high` are B's figure and its interval in `unit`, `limit` the bound in `unit`.
    `rounds` and `n` (pairs, or values) are what it rests on.
    """

    metric: str
    kind: Kind
    outcome: Outcome
    value: float
    low: float
    high: float
    limit: float
    a: float
    b: float
    unit: str
    rounds: int
    n: int
    reason: str
    p: float = 1.0
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """All rules: a failure decides, then what cannot be used, then what cannot be told."""

    outcome: Outcome
    metrics: tuple[Compared, ...]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Round:
    """One round of both arms. `samples[arm]`, whole answers and failed ones; `first` is the arm that began.

    Both were asked the same questions: in turn, or a block each. `seconds[arm]` is the time in which the arm had the
    machine. `trouble` says why the round cannot be used because of the client (it is measured again),
    `broken` why nothing here can be (a server restarted, or died).
    """

    number: int
    samples: tuple[tuple[Sample, ...], tuple[Sample, ...]]
    seconds: tuple[float, float]
    first: int = 0
    runs: tuple[Run, ...] = ()
    trouble: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()


# Measures one round: its number from 0, and the arm that begins where arms take turns by blocks.
Measure = Callable[[int, int], Round]


@dataclass(frozen=True, slots=True)
class Plan:
    """How an A/B comparison is run.

    At `concurrency` 1 a round is `pairs` questions, each asked of both arms in turn; above it a round is a block of
    `block_s` seconds per arm, 2 to 5 s. `warmup` requests per stream and arm are thrown away before the first round.
    Measured are `least_rounds` at least, then more while it cannot be told, up to `rounds` or `budget_s` seconds.
    `error_limit` is the share of failed requests above which the times of the others say nothing; `spare` rounds are
    measured again when the client was disturbed. `seed` fixes every order.
    """

    concurrency: int = 1
    pairs: int = 8
    block_s: float = 2.0
    warmup: int = 2
    least_rounds: int = LEAST_ROUNDS
    rounds: int = 100
    budget_s: float = 600.0
    timeout_s: float = 120.0
    error_limit: float = 0.05
    spare: int = 5
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a gate says, and what it rests on. `names` of the arms (the first may be a baseline's, or empty).

    `requests` and `errors` by arm; `discarded` rounds were measured again; `looks` is how often the rounds were judged.
    """

    outcome: Outcome
    metrics: tuple[Compared, ...]
    reasons: tuple[str, ...]
    names: tuple[str, str]
    rounds: int = 0
    discarded: int = 0
    looks: int = 1
    seconds: float = 0.0
    requests: tuple[int, int] = (0, 0)
    errors: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()
    seed: int = 0


def worst(outcomes: list[Outcome]) -> Outcome:
    """The outcome of several rules: what was shown to fail stays failed, whatever else could not be measured."""
    order: tuple[Outcome, ...] = ("fail", "invalid", "inconclusive", "pass")
    return min(outcomes or ["inconclusive"], key=order.index)
