"""The whole A/B loop in simulated time, on recorded noise and on rounds that must not be used."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from miyabi_llm.bench.gate.ab import AB, looks
from miyabi_llm.bench.gate.calibrate import calibrate
from miyabi_llm.bench.gate.expr import parse_all
from miyabi_llm.bench.gate.outcome import as_json, enforce
from miyabi_llm.bench.gate.values import Judgement, Plan, Round
from miyabi_llm.bench.values import Sample
from miyabi_llm.errors import BadUsage, GateFailed, Inconclusive, InvalidMeasurement, MiyabiError
from miyabi_llm.types import Event
from tests.bench.replay import Replay, recorded

NOISE = recorded()


def run(
    plan: Plan, slower: float, rules: tuple[str, ...] = (), change: Callable[[Round], Round] | None = None
) -> Judgement:
    replay = Replay(NOISE, plan, slower, plan.seed)

    def measure(number: int, first: int) -> Round:
        r = replay(number, first)
        return change(r) if change else r

    return AB(measure, parse_all(rules) if rules else (), plan, clock=replay.clock).run()


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize(("slower", "wanted"), [(0.0, "pass"), (0.10, "fail"), (0.20, "fail")])
def test_on_recorded_noise(concurrency: int, slower: float, wanted: str) -> None:
    """A few trials of what benchmarks/gate.py does by the hundred."""
    trials = 4 if concurrency == 1 else 1
    found = Counter(run(Plan(concurrency=concurrency, seed=seed), slower).outcome for seed in range(trials))
    wrong = "fail" if wanted == "pass" else "pass"
    assert found[wrong] == 0, found  # type: ignore[index]
    assert found[wanted] >= trials // 2, found  # type: ignore[index]


def test_it_stops_when_it_is_decided_and_looks_seldom() -> None:
    quick = run(Plan(seed=1), 0.5)
    assert (quick.outcome, quick.rounds, quick.looks) == ("fail", 5, 1)
    assert looks(Plan(least_rounds=5, rounds=60)) == (5, 6, 7, 8, 10, 12, 15, 18, 22, 27, 33, 41, 51, 60)
    assert looks(Plan(least_rounds=5, rounds=3)) == (3,)


def test_a_budget_too_small_is_inconclusive() -> None:
    few = run(Plan(rounds=3), 0.0)
    assert (few.outcome, few.rounds) == ("inconclusive", 3)
    short = run(Plan(budget_s=12), 0.0)
    assert short.outcome == "inconclusive"
    assert short.seconds < 20


def test_the_order_depends_on_the_seed_alone() -> None:
    def orders(seed: int) -> list[int]:
        seen = []
        replay = Replay(NOISE, Plan(seed=seed), 0.0, 0)

        def measure(number: int, first: int) -> Round:
            seen.append(first)
            return replay(number, first)

        AB(measure, (), Plan(seed=seed, rounds=20, least_rounds=20), clock=replay.clock).run()
        return seen

    assert orders(1) == orders(1) != orders(2)
    assert 3 < sum(orders(1)) < 17


def failing(arm: int, share: float, error: str = "http") -> Callable[[Round], Round]:
    """Some answers of an arm replaced by errors."""
    chance = random.Random(3)

    def change(r: Round) -> Round:
        lost = [replace(s, error=error, detail="500: no") if chance.random() < share else s for s in r.samples[arm]]
        both = [r.samples[0], r.samples[1]]
        both[arm] = tuple(lost)
        return replace(r, samples=(both[0], both[1]))

    return change


def without_tokens(r: Round) -> Round:
    return replace(r, samples=(r.samples[0], tuple(replace(s, output_tokens=None) for s in r.samples[1])))


def disturbed(r: Round) -> Round:
    return replace(r, trouble=("the client used 99% of a core",))


def restarted(r: Round) -> Round:
    return replace(r, broken=("arm B: another process answers now",)) if r.number == 2 else r


@pytest.mark.parametrize(
    ("change", "outcome", "words"),
    [
        (failing(1, 0.3), "fail", "error_rate: worse"),
        (failing(0, 0.3), "invalid", "requests to A failed"),
        (failing(1, 1.0), "invalid", "B gave no whole answer in round 1: http (500: no)"),
        (without_tokens, "invalid", "without a token"),
        (disturbed, "invalid", "99% of a core"),
        (restarted, "invalid", "another process"),
    ],
)
def test_what_must_not_be_used(change: Callable[[Round], Round], outcome: str, words: str) -> None:
    found = run(Plan(), 0.0, change=change)
    assert found.outcome == outcome
    assert words in "; ".join(found.reasons)
    assert outcome == "fail" or not found.metrics, "no figure of an invalid measurement is handed on"


def test_a_disturbed_round_is_measured_again() -> None:
    count = iter(range(1000))
    found = run(Plan(), 0.2, change=lambda r: disturbed(r) if next(count) in (1, 3) else r)
    assert (found.outcome, found.discarded) == ("fail", 2)


def test_one_lost_answer_does_not_spoil_it() -> None:
    def change(r: Round) -> Round:
        first: Sample = replace(r.samples[1][0], error="timeout")
        return replace(r, samples=(r.samples[0], (first, *r.samples[1][1:]))) if r.number == 0 else r

    assert run(Plan(seed=2), 0.2, change=change).outcome == "fail"


@pytest.mark.parametrize(
    ("rules", "slower", "outcome"),
    [
        (("ttft_p50 > 10s", "error_rate > 1%"), 0.0, "pass"),
        (("ttft_p50 > 1ms",), 0.0, "fail"),
        (("output_tps < 1000",), 0.0, "fail"),
        (("ttft_p95 > 10s",), 0.0, "pass"),
        (("tpot_p50 > +30%",), 0.10, "pass"),
        (("e2e_mean > +5%",), 0.20, "fail"),
        (("gap_p50 > +5%",), 0.30, "fail"),
    ],
)
def test_rules_of_ones_own(rules: tuple[str, ...], slower: float, outcome: str) -> None:
    found = run(Plan(seed=3), slower, rules)
    assert found.outcome == outcome, found.reasons


def test_p95_extends_until_there_are_72_values() -> None:
    found = run(Plan(seed=3, pairs=4), 0.0, ("ttft_p95 > 10s",))
    assert found.outcome == "pass"
    assert found.requests[1] >= 72


def test_a_figure_that_rounds_do_not_tell_is_refused() -> None:
    with pytest.raises(BadUsage, match="goodput"):
        run(Plan(), 0.0, ("goodput < -5%",))


@pytest.mark.parametrize(
    ("slower", "plan", "error"),
    [
        (0.2, Plan(), GateFailed),
        (0.0, Plan(rounds=2), Inconclusive),
        (0.0, Plan(spare=-1), InvalidMeasurement),
    ],
)
def test_the_error_carries_the_judgement(slower: float, plan: Plan, error: type[MiyabiError]) -> None:
    found = run(plan, slower, change=disturbed if plan.spare < 0 else None)
    with pytest.raises(error) as caught:
        enforce(found)
    assert caught.value.details["judgement"]["outcome"] == found.outcome
    assert caught.value.hint
    assert "NaN" not in as_json(found)
    enforce(replace(found, outcome="pass"))


def test_calibration_finds_the_noise_and_tells_each_round() -> None:
    events: list[Event] = []
    replay = Replay(NOISE, Plan(pairs=4), 0.0, 5)
    floors = calibrate(replay, parse_all(), 20, events.append)
    assert sorted(floors) == ["output_tps", "tpot_p50", "ttft_p50"]
    for floor in floors.values():
        assert 0 < floor.paired < 0.05
        assert floor.paired < floor.round
        assert floor.drift < 0.5
    assert len(events) == 20
    with pytest.raises(InvalidMeasurement, match="undisturbed"):
        calibrate(lambda n, first: disturbed(replay(n, first)), parse_all(), 3)
    with pytest.raises(InvalidMeasurement, match="without a token"):
        calibrate(lambda n, first: without_tokens(replay(n, first)), parse_all(), 3)


def test_a_wide_noise_floor_widens_the_tolerance_and_says_so() -> None:
    plan = Plan(seed=1, rounds=20)
    replay = Replay(NOISE, plan, 0.10, 1)
    noise = {"ttft_p50": 0.15, "tpot_p50": 0.15, "output_tps": 0.15}
    found = AB(replay, (), plan, noise=noise, clock=replay.clock).run()
    assert found.outcome == "pass"
    assert any("widened from 5.0% to 30.0%" in note for note in found.notes)
