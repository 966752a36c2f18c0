"""Measuring real servers: in turns, with what they took; and what becomes of servers that fail."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from miyabi_llm.bench import loads
from miyabi_llm.bench.report import Machine
from miyabi_llm.bench.run import Bench, Order
from miyabi_llm.bench.slo import parse
from miyabi_llm.bench.study import INTERRUPTED
from miyabi_llm.bench.values import Item, Load, Target
from miyabi_llm.bench.workload import Workload
from miyabi_llm.errors import InvalidMeasurement
from miyabi_llm.types import Endpoint, Event
from tests.bench.failing import Way, failing
from tests.bench.wire import mock

ITEMS = tuple(Item(f"q{i}", ({"role": "user", "content": f"question {i} 日本語"},), max_tokens=8) for i in range(5))
ORDER = Order(Machine("Linux", "test", 2, 1 << 30), Workload("w", ITEMS, "", "0" * 64), timeout_s=20.0)
QUICK = ("--ttft", "0.005", "--itl", "0.002", "--tokens", "5")


@pytest.fixture(scope="module")
def quick() -> Iterator[Target]:
    with mock(*QUICK) as target:
        yield replace(target, name="quick")


def at(url: str, name: str = "t") -> Target:
    return Target(name, Endpoint(url, "m"))


def test_a_load_gives_a_report_with_everything_in_it(quick: Target, tmp_path: Path) -> None:
    seen: list[Event] = []
    order = replace(ORDER, samples=tmp_path / "s.jsonl", goals={"ttft": 10.0})
    with Bench([quick], order, seen.append) as bench:
        (first,) = bench.first({"quick": 1.5})
        level = bench.measure(Load(2, requests=40), "c=2")
    assert (first.load_s, first.error) == (1.5, "")
    assert first.ttft_s is not None
    assert first.ttft_s >= 0.005
    (m,) = level.report.measured
    assert (m.counts.ok, m.counts.failed, level.report.invalid) == (40, 0, ())
    ttft = m.metric("ttft")
    assert ttft is not None
    assert 0.005 <= ttft.percentiles["p50"].value < 0.1
    assert "p99" not in ttft.percentiles  # 40 requests say nothing of it
    assert {c.metric for c in level.curves} == {"ttft", "itl"}
    assert len(level.over_time[0].points) == 40
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 40
    good = m.metric("good_share")
    assert good is not None
    assert good.mean == 1.0
    (used,) = level.used
    assert used.resources is not None
    assert used.resources.memory_peak > 1 << 20
    assert any(e.kind == "phase" and "warm-up" in e.message for e in seen)


def test_several_processes_share_a_load(quick: Target, tmp_path: Path) -> None:
    order = replace(ORDER, processes=2, env=dict(os.environ), samples=tmp_path / "s.jsonl")
    with Bench([quick], order) as bench:
        level = bench.measure(Load(4, requests=40), "c=4")
    (m,) = level.report.measured
    assert (m.counts.ok, m.counts.failed, level.report.health.processes) == (40, 0, 2)
    samples = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert sorted({s["item"] for s in samples}) == list(range(len(ITEMS)))


def test_targets_take_turns_in_one_run(quick: Target) -> None:
    with (
        mock("--ttft", "0.03", "--itl", "0.004", "--tokens", "5") as slow,
        Bench([quick, replace(slow, name="slow")], ORDER) as bench,
    ):
        level = bench.measure(Load(1, requests=20), "c=1")
    a, b = level.report.measured
    assert (a.name, b.name, a.counts.ok, b.counts.ok) == ("quick", "slow", 20, 20)
    of_a, of_b = a.figure("ttft_p50"), b.figure("ttft_p50")
    assert of_a is not None
    assert of_b is not None
    assert of_a.value < of_b.value
    rate = b.metric("output_tps")
    assert rate is not None
    assert rate.low is not None  # five blocks of four
    assert 40 < rate.mean < 5 / 0.04  # of its own blocks only, not of the time when the other one had its turn


def test_each_load_and_target_has_a_file_of_its_own_samples(quick: Target, tmp_path: Path) -> None:
    order = replace(ORDER, samples=tmp_path / "s.jsonl", warm_up=0)
    with Bench([quick, replace(quick, name="again")], order) as bench:
        loads.fixed(bench, [Load(1, requests=4), Load(2, requests=4)])
    assert {p.name for p in tmp_path.iterdir()} == {
        "s.jsonl",
        "s-again-c=1.jsonl",
        "s-quick-c=2.jsonl",
        "s-again-c=2.jsonl",
    }


def invalid(way: Callable[[int], Way], load: Load) -> tuple[str, ...]:
    """The reasons of a measurement of a server that fails so; no number of it is left."""
    with failing(way) as server, Bench([at(server.url)], replace(ORDER, warm_up=0)) as bench:
        level = bench.measure(load, "c")
    assert not level.report.measured[0].metrics
    assert not level.curves
    return level.report.invalid


def test_a_third_of_errors_makes_it_invalid_and_counts_them() -> None:
    reasons = invalid(lambda n: "500" if n % 3 == 0 else "ok", Load(2, requests=30))
    assert any(r.startswith("t: 10 of 30 requests failed (10 http), more than 5%") for r in reasons), reasons


def test_an_error_under_a_200_is_an_error() -> None:
    reasons = invalid(lambda n: "error-200" if n % 2 else "ok", Load(1, requests=8))
    assert any("4 of 8 requests failed (4 refused)" in r for r in reasons), reasons


def test_few_errors_are_counted_beside_the_numbers() -> None:
    def slowly_once(number: int) -> Way:
        if number != 7:
            return "ok"
        time.sleep(0.25)  # a stream whose call fails at once would pause
        return "500"

    with failing(slowly_once) as server, Bench([at(server.url)], ORDER) as bench:
        level = bench.measure(Load(1, requests=40), "c=1")
    (m,) = level.report.measured
    assert level.report.invalid == ()
    assert (m.counts.ok, m.counts.failed, m.counts.errors) == (39, 1, {"http": 1})
    assert "out of memory" in m.counts.examples["http"]


def test_a_server_that_hangs_ends_in_time() -> None:
    begin = time.monotonic()
    load = Load(2, duration_s=0.5, timeout_s=1.0)
    reasons = invalid(lambda n: "hang", load)
    assert time.monotonic() - begin < 10
    assert any("no whole answer to" in r and "timeout" in r for r in reasons), reasons


def test_a_server_that_dies_ends_the_run() -> None:
    begin = time.monotonic()
    with mock(*QUICK) as target:
        url = target.endpoint.base_url
    reasons: tuple[str, ...] = ()
    with Bench([at(url)], replace(ORDER, warm_up=0)) as bench:
        level = bench.measure(Load(4, duration_s=60), "c=4")
        reasons = level.report.invalid
    assert time.monotonic() - begin < 20  # not the minute that was asked for
    assert any("no whole answer" in r and "connect" in r for r in reasons), reasons
    assert any("no call succeeded" in r for r in reasons), reasons


def test_no_answer_to_the_first_request_is_said_at_once() -> None:
    with (
        failing(lambda n: "500") as server,
        Bench([at(server.url)], ORDER) as bench,
        pytest.raises(InvalidMeasurement, match="out of memory"),
    ):
        bench.first({})


def test_stopped_it_keeps_what_there_is(quick: Target) -> None:
    with Bench([quick], ORDER) as bench:
        timer = threading.Timer(1.0, bench.stop)
        timer.start()
        found = loads.fixed(bench, [Load(2, duration_s=60), Load(4, duration_s=60)])
        timer.join()
    (level,) = found.levels
    assert level.report.aborted == INTERRUPTED
    assert level.report.invalid == ()
    assert level.report.measured[0].counts.ok > 10
    assert level.report.measured[0].counts.failed == 0  # what we cancelled is no failure


def test_stopped_in_a_warm_up_it_keeps_the_loads_before(quick: Target) -> None:
    with Bench([quick], ORDER) as bench:
        bench._on_event = lambda e: bench.stop() if e.message == "c=2: warm-up" else None
        found = loads.fixed(bench, [Load(1, requests=4), Load(2, requests=4), Load(4, requests=4)])
        assert [level.label for level in found.levels] == ["c=1"]
        assert loads.swept(bench, Load()).levels == ()


def test_a_sweep_doubles_until_it_pays_no_more() -> None:
    lock = threading.Lock()

    def one_at_a_time(number: int) -> Way:
        with lock:
            time.sleep(0.01)
        return "ok"

    with failing(one_at_a_time) as server, Bench([at(server.url)], ORDER) as bench:
        found = loads.swept(bench, Load(1, requests=32), most=32)
    labels = [level.label for level in found.levels]
    assert labels == [f"c={2**i}" for i in range(len(labels))]
    (knee,) = found.knees
    assert knee.knee is not None
    assert f"c={knee.knee.load:g}" in labels


def test_a_search_finds_the_load_that_keeps_the_promise() -> None:
    lock = threading.Lock()

    def one_at_a_time(number: int) -> Way:
        with lock:
            time.sleep(0.015)
        return "ok"

    with failing(one_at_a_time) as server, Bench([at(server.url)], replace(ORDER, warm_up=0)) as bench:
        found = loads.searched(bench, Load(1, requests=16), parse("ttft_p50 < 100ms"))
    (search,) = found.searches
    assert search.best is not None
    assert 1 <= search.best.load <= 7  # each stream waits for the others: 15 ms a head at least
    assert any(not t.good for t in search.trials)


def test_the_questions_are_made_new_and_warm_up_asks_others() -> None:
    with failing(lambda n: "ok") as server, Bench([at(server.url)], ORDER) as bench:
        bench.measure(Load(1, requests=12), "c=1")
    asked = [json.dumps(body["messages"]) for body in server.asked]
    assert len(set(asked)) == len(asked) == 13  # one to warm up
