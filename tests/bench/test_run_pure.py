"""Where a sweep and a search go next, how a load is cut into blocks, costs, energy, and the health of several."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.bench import cost, merge, slo, sweep
from miyabi_llm.bench.resources import packages, read_energy, spent
from miyabi_llm.bench.values import ClientHealth, Lag, Load, Run
from miyabi_llm.errors import BadUsage
from tests.bench.making import lost, sample

T = TypeVar("T")


def known(value: T | None) -> T:
    assert value is not None
    return value


def points(*pairs: tuple[float, float, float]) -> list[sweep.Point]:
    return [sweep.Point(*p) for p in pairs]


def test_a_sweep_ends_at_the_knee() -> None:
    assert sweep.following([]) == 1
    rising = points((1, 10, 0.1), (2, 19, 0.1), (4, 30, 0.2))
    assert sweep.following(rising) == 8
    flat = [*rising, sweep.Point(8, 31, 0.5)]
    assert sweep.following(flat) is None
    knee = sweep.knee(flat)
    assert knee is not None
    assert (knee.load, knee.throughput) == (4, 30)
    assert "+3%" in knee.reason


def test_a_sweep_ends_past_the_limit_of_the_first_token_and_at_an_invalid_point() -> None:
    slow = points((1, 10, 0.1), (2, 20, 0.9))
    assert sweep.following(slow, limit_s=0.5) is None
    assert known(sweep.knee(slow, 0.5)).load == 1
    broken = [*points((1, 10, 0.1)), sweep.Point(2, 0, 0, ok=False)]
    assert sweep.following(broken) is None
    assert "not valid" in known(sweep.knee(broken)).reason
    assert sweep.knee([sweep.Point(1, 0, 0, ok=False)]) is None


@given(st.integers(1, 700))
def test_a_search_over_streams_finds_the_border(border: int) -> None:
    trials: list[slo.Trial] = []
    while (load := slo.following(trials, 1.0, whole=True)) is not None:
        hits = 100 if load <= border else 0
        trials.append(slo.Trial(load, (slo.Kept("p", 0.9, hits, 100, hits / 100, hits / 100),)))
        assert len(trials) < 30
    assert known(slo.best(trials)).load == min(border, 1024)


@given(st.floats(0.05, 400))
def test_a_search_over_rates_ends_near_the_border(border: float) -> None:
    trials: list[slo.Trial] = []
    while (load := slo.following(trials, 1.0, whole=False)) is not None:
        hits = 100 if load <= border else 0
        trials.append(slo.Trial(load, (slo.Kept("p", 0.9, hits, 100, hits / 100, hits / 100),)))
        assert len(trials) < 40
    assert border / known(slo.best(trials)).load < 1 + slo.CLOSE + 1e-9


def test_nothing_keeps_an_impossible_promise() -> None:
    trials = [slo.Trial(1.0, (slo.Kept("p", 0.9, 0, 50, 0.0, 0.07),))]
    assert slo.following(trials, 1.0, whole=True) is None
    assert slo.best(trials) is None


def test_a_promise_is_met_missed_or_open_by_its_interval() -> None:
    (promise,) = slo.parse("ttft_p95<500ms")
    assert (promise.metric, promise.share, promise.limit_s) == ("ttft", 0.95, 0.5)
    sink = slo.Attainment([promise])
    assert sink.trial(1).answer == "open"
    for _ in range(30):
        sink(sample((100, 120)))
    assert sink.trial(1).answer == "open"  # 30 of 30 leave room below 95%
    assert sink.trial(1).good
    for _ in range(70):
        sink(sample((100, 120)))
    assert sink.trial(1).answer == "met"
    for _ in range(30):
        sink(lost())  # a failed request is a miss
    assert sink.trial(1).answer == "missed"
    sink(lost("cancelled"))
    assert sink.n == 130


@pytest.mark.parametrize("text", ["", "ttft<500ms", "output_tps>5", "ttft_p95>500ms", "ttft_p95<+5%", "ttft_mean<1s"])
def test_what_is_no_promise_is_refused(text: str) -> None:
    with pytest.raises(BadUsage):
        slo.parse(text)


@given(st.integers(1, 64), st.integers(1, 5000))
def test_blocks_ask_as_much_as_was_asked_for(streams: int, requests: int) -> None:
    parts = merge.blocks(Load(streams, requests=requests), one=False)
    assert sum(p.requests or 0 for p in parts) == requests
    assert all(p.requests for p in parts)
    assert merge.blocks(Load(streams, requests=requests), one=True) == (Load(streams, requests=requests),)


def test_blocks_of_time_add_up_and_differ_in_seed() -> None:
    parts = merge.blocks(Load(2, duration_s=30.0, seed=7), one=False)
    assert sum(p.duration_s or 0 for p in parts) == pytest.approx(30)
    assert len({p.seed for p in parts}) == len(parts) == 6


def test_the_health_of_several_runs_is_the_worst() -> None:
    good = ClientHealth(None, Lag(10, 0.001, 0.002, 0.003), None, 0.1, 1, 4.0, 4.0, kernel_stamps=True)
    bad = replace(good, read_lag=Lag(30, 0.005, 0.020, 0.1), cpu=0.9, achieved=2.0, kernel_stamps=False)
    found = merge.health([Run(0, 10**9, 1, 0, good), Run(0, 3 * 10**9, 1, 0, bad)])
    assert found.read_lag == Lag(40, 0.004, 0.020, 0.1)
    assert (found.cpu, found.achieved, found.kernel_stamps) == (0.9, 2.5, False)
    assert merge.together([good, bad]).achieved == 2.0


def test_costs_come_from_the_prices_one_gives(tmp_path: Path) -> None:
    found = cost.at(cost.Price("x", 3.0, 15.0), 1e6, 1e6)
    assert found is not None
    assert (found.total, found.per_million) == (18.0, 9.0)
    assert cost.at(cost.Price("x", 3.0, 15.0), 0, 0) is None
    assert known(cost.electricity(3.6e6, 0.3, 2e6)).per_million == pytest.approx(0.15)
    assert cost.electricity(None, 0.3, 10) is None
    table = tmp_path / "p.toml"
    table.write_text('date = 2026-11-01\ncurrency = "USD"\n[models.a]\ninput = 1\noutput = 2.5\n')
    assert cost.read_prices(table) == (cost.Price("a", 1.0, 2.5, "USD", "2026-11-01"),)


@pytest.mark.parametrize(
    "text", ["", "not toml", "[models.a]\ninput=1\noutput=1", "date=2026-11-01\n[models.a]\ninput=1", 'date=""']
)
def test_a_price_table_without_date_or_price_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(BadUsage, match="--prices"):
        cost.read_prices(path)


def test_energy_counters_are_read_and_may_wrap(tmp_path: Path) -> None:
    for name, kind, now in (
        ("intel-rapl:0", "package-0", 900),
        ("intel-rapl:0:0", "core", 5),
        ("intel-rapl:1", "psys", 1),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for file, text in (("name", kind), ("energy_uj", str(now)), ("max_energy_range_uj", "1000")):
            (folder / file).write_text(f"{text}\n")
    counters = packages(tmp_path)
    assert [p.parent.name for p in counters] == ["intel-rapl:0"]
    before = read_energy(counters)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100\n")
    assert spent(before, read_energy(counters), counters) == pytest.approx(200e-6)
    assert packages(tmp_path / "none") == {}
    assert read_energy({}) is None
