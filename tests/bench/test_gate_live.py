"""The gate on real connections: two servers of known timing, side by side and in turn; each of its four answers."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from miyabi_llm.bench.gate.ab import AB
from miyabi_llm.bench.gate.calibrate import calibrate
from miyabi_llm.bench.gate.expr import parse_all
from miyabi_llm.bench.gate.measure import InTurn, Prompts, Together
from miyabi_llm.bench.gate.values import Judgement, Plan
from miyabi_llm.bench.values import Target
from miyabi_llm.bench.workload import load_workload
from miyabi_llm.types import Endpoint, Event
from tests.bench.wire import mock

pytestmark = pytest.mark.alone  # it measures time
PLAN = Plan(pairs=3, warmup=1, rounds=12, budget_s=30, block_s=0.15)
RULES = parse_all(["ttft_p50 > +60%", "tpot_p50 > +60%", "error_rate > +1%"])
QUICK, SLOW = (
    ("--ttft", "0.01", "--itl", "0.002", "--tokens", "6"),
    ("--ttft", "0.03", "--itl", "0.006", "--tokens", "6"),
)


def prompts() -> Prompts:
    return Prompts(load_workload("batch"))


def judged(a: Target, b: Target, plan: Plan = PLAN) -> Judgement:
    with Together((a, b), prompts(), plan) as measure:
        return AB(measure, RULES, plan).run()


@pytest.fixture(scope="module")
def quick() -> Iterator[Target]:
    with mock(*QUICK) as target:
        yield target


@pytest.fixture(scope="module")
def slow() -> Iterator[Target]:
    with mock(*SLOW) as target:
        yield target


@pytest.mark.parametrize("concurrency", [1, 4])
def test_pass_and_fail(quick: Target, slow: Target, concurrency: int) -> None:
    plan = replace(PLAN, concurrency=concurrency)
    same = judged(quick, quick, plan)
    assert same.outcome == "pass", same.reasons
    assert same.requests[0] >= 15
    worse = judged(quick, slow, plan)
    assert worse.outcome == "fail", worse.reasons
    assert {c.metric for c in worse.metrics if c.outcome == "fail"} <= {"ttft_p50", "tpot_p50"}
    if concurrency == 1:
        assert judged(slow, quick, plan).outcome == "pass"


def test_inconclusive(quick: Target, slow: Target) -> None:
    few = judged(quick, slow, replace(PLAN, rounds=2))
    assert few.outcome == "inconclusive"
    assert "2 of at least 5 rounds" in few.reasons[0]


def test_nobody_answers(quick: Target) -> None:
    nobody = Target("B", Endpoint("http://127.0.0.1:9", "mock"))
    found = judged(quick, nobody)
    assert found.outcome == "invalid"
    assert "B gave no whole answer" in found.reasons[0]
    assert not found.metrics


def test_a_server_that_dies_meanwhile(quick: Target) -> None:
    with ExitStack() as stack:
        b = stack.enter_context(mock(*QUICK))
        rounds: list[Event] = []

        with Together((quick, b), prompts(), PLAN) as measure:

            def dying(number: int, first: int):  # type: ignore[no-untyped-def]
                if number == 2:
                    stack.close()
                return measure(number, first)

            found = AB(dying, RULES, replace(PLAN, timeout_s=2)).run(rounds.append)
    assert found.outcome == "invalid"
    assert "B gave no whole answer in round 3" in found.reasons[0]


def test_a_server_that_restarts_meanwhile(quick: Target) -> None:
    seen = []

    def identify(arm: int) -> str:
        seen.append(arm)
        return f"pid {arm}" if len(seen) < 6 or arm == 0 else "another pid"

    with Together((quick, quick), prompts(), PLAN, identify=identify) as measure:
        found = AB(measure, RULES, PLAN).run()
    assert (found.outcome, found.reasons) == ("invalid", ("arm B: another process answers now",))


def test_it_can_be_stopped(quick: Target) -> None:
    with Together((quick, quick), prompts(), replace(PLAN, pairs=1000)) as measure:
        timer = threading.Timer(1.0, measure.stop, ("interrupted",))
        timer.start()
        found = AB(measure, RULES, PLAN).run()
        timer.join()
    assert (found.outcome, found.reasons[0]) == ("invalid", "interrupted")


def test_one_server_at_a_time() -> None:
    """Every round starts each arm once, in the order that chance gives."""
    started: list[int] = []

    @contextmanager
    def start(arm: int) -> Iterator[Target]:
        started.append(arm)
        with mock(*(SLOW if arm else QUICK)) as target:
            yield target

    found = AB(InTurn(start, prompts(), PLAN), RULES, PLAN).run()
    assert found.outcome == "fail", found.reasons
    assert found.rounds >= 5
    assert sorted(started) == [0] * found.rounds + [1] * found.rounds


def test_calibration_of_a_server(quick: Target) -> None:
    with Together((quick, quick), prompts(), PLAN) as measure:
        floors = calibrate(measure, RULES, 6)
    assert set(floors) == {"ttft_p50", "tpot_p50"}
    assert all(f.paired > 0 for f in floors.values())


def test_the_machine_is_left_as_it_was(quick: Target) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    judged(quick, quick, replace(PLAN, rounds=1))
    assert not before or len(os.listdir("/proc/self/fd")) <= before
