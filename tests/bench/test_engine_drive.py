"""Who sends when, how a run ends, and what it says about itself."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest

from miyabi_llm.bench.engine import Engine
from miyabi_llm.bench.engine.health import invalid
from miyabi_llm.bench.values import Call, ClientHealth, Lag, Load, Raw
from tests.bench.wire import ASK, OK, Asker, Wire, answers, serving


def slowly(seconds: float):  # type: ignore[no-untyped-def]
    def handle(wire: Wire) -> None:
        while wire.heard():
            time.sleep(seconds)
            wire.say(OK)

    return handle


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_exactly_so_many_requests(concurrency: int, *, ordered: bool) -> None:
    asker = Asker(ordered=ordered)
    with serving(slowly(0.005)) as target, Engine([target]) as engine:
        run = engine.run(Load(concurrency=concurrency, requests=20), asker)
    assert (run.sent, len(asker.got), run.failed, run.aborted) == (20, 20, 0, "")
    assert set(asker.asked) == set(range(concurrency))
    assert run.begin_ns < run.end_ns


def test_fewer_requests_than_streams() -> None:
    with serving(slowly(0.02)) as target, Engine([target]) as engine:
        run = engine.run(Load(concurrency=8, requests=3), asker := Asker())
    assert (run.sent, len(asker.got), run.health.offered) == (3, 3, 3)


@pytest.mark.alone
def test_an_open_loop_sends_each_arrival_at_its_time_and_never_before() -> None:
    asker = Asker()
    times = [0.0, 0.05, 0.051, 0.2]
    with serving(slowly(0.1)) as target, Engine([target]) as engine:
        run = engine.run(Load(concurrency=None, timeout_s=5), asker, times=iter(times))
    assert (run.sent, len(asker.got), run.failed) == (4, 4, 0)
    calls = sorted(asker.got, key=lambda r: r.intended_ns)
    assert [round((r.intended_ns - run.begin_ns) / 1e9, 3) for r in calls] == times
    assert all(r.sent_ns >= r.intended_ns for r in calls)
    assert asker.asked == [0, 1, 2, 3], "an open loop's streams count the calls"


def test_an_open_loop_ends_with_its_requests_or_its_duration() -> None:
    with serving(answers) as target, Engine([target]) as engine:
        begin = time.monotonic()
        run = engine.run(Load(concurrency=None, rate=200, requests=10, duration_s=30), Asker())
        assert (run.sent, time.monotonic() - begin < 10) == (10, True)
        run = engine.run(Load(concurrency=None, rate=50, arrival="constant", duration_s=0.5), Asker())
        assert run.sent == pytest.approx(25, abs=1)
        assert run.health.offered == pytest.approx(50, rel=0.2)
        assert not [r for r in invalid(run.health) if "achieved" in r]


def test_a_limit_of_places_holds_calls_back_and_says_so() -> None:
    asker = Asker()
    with serving(slowly(0.1)) as target, Engine([target]) as engine:
        run = engine.run(Load(concurrency=1, rate=50, arrival="constant", duration_s=0.5), asker)
        assert run.sent == len(asker.got) < 10
        assert run.unsent > 10
        assert [r for r in invalid(run.health) if "achieved" in r], "less was offered than asked for"
        waited = max(r.sent_ns - r.intended_ns for r in asker.got)
        assert waited > 50_000_000, "the wait counts from when it was meant to be sent"
        assert run.health.send_lag is not None
        assert run.health.send_lag.worst < waited / 1e9, "waiting for a place is no lag of the client"
        few = Asker()
        run = engine.run(Load(concurrency=1, rate=100, requests=6), few)
        assert (run.sent, len(few.got), run.unsent) == (6, 6, 0), (
            "who waits at the end is sent, when a number was asked for"
        )


def test_a_source_that_ends() -> None:
    with serving(answers) as target, Engine([target]) as engine:
        for load in (Load(concurrency=3), Load(concurrency=None, rate=300), Load(concurrency=3, ramp_s=0.2)):
            run = engine.run(load, asker := Asker(most=7))
            assert (run.sent, len(asker.got), run.failed) == (7, 7, 0), load
        assert engine.run(Load(concurrency=2), Asker(most=0)).sent == 0


def test_a_stream_without_more_does_not_end_the_others() -> None:
    class Uneven(Asker):
        def next(self, stream: int) -> Call | None:
            return super().next(stream) if stream and self.asked.count(stream) < 4 else None

    with serving(slowly(0.002)) as target, Engine([target]) as engine:
        run = engine.run(Load(concurrency=3, ramp_s=0.3), asker := Uneven())
    assert Counter(asker.asked) == {1: 4, 2: 4}
    assert run.sent == 8


def test_ordered_tells_each_result_before_the_next_call_of_its_stream() -> None:
    class Talk(Asker):
        def next(self, stream: int) -> Call | None:
            done = sum(r.stream == stream for r in self.got)
            assert self.asked.count(stream) == done
            return super().next(stream)

    with serving(answers) as target, Engine([target]) as engine:
        assert engine.run(Load(concurrency=4, requests=40), Talk(ordered=True)).failed == 0


@pytest.mark.alone
def test_the_ramp_spreads_the_first_sends() -> None:
    with serving(slowly(0.05)) as target, Engine([target]) as engine:
        run = engine.run(Load(concurrency=4, duration_s=0.7, ramp_s=0.4), asker := Asker())
    first = {s: min(r.sent_ns for r in asker.got if r.stream == s) for s in range(4)}
    assert all(abs((first[s] - run.begin_ns) / 1e9 - s * 0.1) < 0.08 for s in range(4))
    assert run.health.achieved > 3, "the ramp is not counted as missing streams"


def test_several_targets() -> None:
    seen: list[Counter[int]] = [Counter(), Counter()]

    def count(which: int):  # type: ignore[no-untyped-def]
        def handle(wire: Wire) -> None:
            while wire.heard():
                seen[which][wire.number] += 1
                wire.say(OK)

        return handle

    with serving(count(0)) as a, serving(count(1)) as b, Engine([a, b]) as engine:
        run = engine.run(Load(concurrency=2, requests=20), Asker(targets=2))
    assert (run.sent, run.failed) == (20, 0)
    assert [c.total() for c in seen] == [10, 10]


def test_a_dead_server_ends_the_run_and_does_not_make_us_spin() -> None:
    with serving(answers) as target:
        pass
    with Engine([target]) as engine:
        begin = time.monotonic()
        run = engine.run(Load(concurrency=2, duration_s=60), asker := Asker())
    assert "no call succeeded" in run.aborted
    assert 4 < time.monotonic() - begin < 20
    assert set(asker.errors) == {"connect"}
    assert run.failed == run.sent < 200


def test_a_server_that_dies_in_the_middle() -> None:
    def handle(wire: Wire) -> None:
        for _ in range(3):
            wire.heard()
            wire.say(OK)
        wire.heard()
        wire.say(OK[:50])

    with serving(handle) as target, Engine([target]) as engine:
        run = engine.run(Load(concurrency=1, requests=8), asker := Asker())
    assert asker.errors == ["cut", "cut"]
    assert (run.failed, len(asker.got)) == (2, 8)


@pytest.mark.alone
def test_stop_ends_it_at_once_and_tells_what_was_in_flight() -> None:
    with serving(slowly(1)) as target, Engine([target]) as engine:
        threading.Timer(0.2, engine.stop, ("enough",)).start()
        begin = time.monotonic()
        run = engine.run(Load(concurrency=2, duration_s=60), asker := Asker())
        assert time.monotonic() - begin < 0.9
        assert (run.aborted, asker.errors) == ("enough", ["cancelled"] * 2)
        engine.stop("nothing runs")


def test_ctrl_c_keeps_what_was_told() -> None:
    asker = Asker()
    with serving(slowly(0.02)) as target, Engine([target]) as engine:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            engine.run(Load(concurrency=2, duration_s=60), asker)
        told = len(asker.got)
        assert told == len(asker.asked) > 4
        assert set(asker.errors) <= {"cancelled"}
        again = Asker()
        assert engine.run(Load(concurrency=1, requests=2), again).failed == 0
        assert (len(asker.got), len(again.got)) == (told, 2), "nothing of the first run goes on"


@pytest.mark.parametrize("where", ["next", "finished"])
def test_a_bug_of_the_source_is_raised(where: str) -> None:
    class Broken(Asker):
        def next(self, stream: int) -> Call | None:
            if where == "next" and len(self.asked) == 3:
                raise ZeroDivisionError("mine")
            return super().next(stream)

        def finished(self, raw: Raw) -> None:
            if where == "finished" and len(self.got) == 2:
                raise ZeroDivisionError("mine")
            super().finished(raw)

    with serving(answers) as target, Engine([target]) as engine:
        with pytest.raises(ZeroDivisionError, match="mine"):
            engine.run(Load(concurrency=2, duration_s=30), Broken())
        assert engine.run(Load(concurrency=1, requests=2), Asker()).failed == 0


def test_begins_at_a_given_time() -> None:
    with serving(answers) as target, Engine([target]) as engine:
        at = time.perf_counter_ns() + 200_000_000
        run = engine.run(Load(concurrency=1, requests=1), Asker(), at_ns=at)
    assert 0 <= run.begin_ns - at < 1_000_000_000


@pytest.mark.alone
def test_what_makes_a_result_invalid() -> None:
    lag = Lag(100, 0.001, 0.002, 0.003)
    fine = ClientHealth(lag, lag, lag, 0.3, 1, 10.0, 9.9, True)
    assert invalid(fine) == ()
    slow = Lag(100, 0.02, 0.2, 0.3)
    for change, word in (
        ({"send_lag": slow}, "left"),
        ({"read_lag": slow}, "read"),
        ({"loop_lag": slow, "kernel_stamps": False}, "loop"),
        ({"cpu": 0.99}, "core"),
        ({"achieved": 9.0}, "achieved"),
        ({"clock_step": -0.5}, "clock"),
    ):
        assert word in "".join(invalid(replace(fine, **change))), change
    assert invalid(fine) == ()


def test_times_may_be_endless() -> None:
    with serving(answers) as target, Engine([target]) as engine:
        run = engine.run(Load(concurrency=None, duration_s=0.2), Asker(), times=itertools.count(0, 0.01))
    assert run.sent == pytest.approx(20, abs=2)
    assert ASK.startswith(b"POST")
