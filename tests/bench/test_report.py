"""Reports: what is written is read again, what is damaged is refused with its place."""

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm import hardware
from miyabi_llm.bench.report import (
    Asked,
    Machine,
    Questions,
    Report,
    amount,
    as_csv,
    as_json,
    asked,
    machine,
    parse_report,
    read_report,
    tables,
    write_report,
)
from miyabi_llm.bench.stats import Collector, Counts, Measured, Metric, Quantile, metrics
from miyabi_llm.bench.values import ClientHealth, Lag, Load, Target
from miyabi_llm.errors import BadUsage, Corrupt, Missing
from miyabi_llm.types import Endpoint, Secret, plain
from tests.bench.making import BEGIN, lost, run, sample

HEALTH = ClientHealth(None, Lag(9, 1e-5, 1e-4, 1e-3), None, 0.2, 1, 4.0, 3.9, kernel_stamps=True)


def report(**fields: object) -> Report:
    collector = Collector(["a", "b"], goals={"ttft": 0.2}, origin_ns=BEGIN)
    for i in range(80):
        collector(
            sample((100 + i, 120 + i, 140 + i), tokens=3, sent=i, prompt_tokens=50, cached_tokens=1, target=i % 2)
        )
    collector(lost("http"))
    made = Report(
        begun="2025-01-02T03:04:05+00:00",
        seconds=1.0,
        targets=(Asked("a", "http://a:1", "m", "vllm", "openai-chat"), Asked("b", "http://b:1", "m", "", "ollama")),
        questions=Questions("chat", "ab" * 32, 24, "CC0-1.0"),
        load=Load(concurrency=4, requests=80),
        health=HEALTH,
        machine=Machine("Linux x86_64", "cpu", 2, 8 << 30, ("gpu",), "f" * 16),
        measured=metrics(collector, run()),
        notes=("日本",),
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = report(invalid=("too late",), aborted="gone")
    write_report(made, tmp_path / "r.json")
    assert read_report(tmp_path / "r.json") == made
    assert list(tmp_path.iterdir()) == [tmp_path / "r.json"]


WHOLE = report()
finite = st.floats(allow_nan=False, allow_infinity=False)
metric = st.builds(
    Metric,
    name=st.text(max_size=5),
    unit=st.text(max_size=3),
    n=st.integers(0),
    mean=finite,
    low=st.none() | finite,
    percentiles=st.dictionaries(st.sampled_from(["p50", "p99.9"]), st.builds(Quantile, finite, st.none() | finite)),
    better=st.sampled_from(["lower", "higher", "neither"]),
    note=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=10),
)


@given(st.lists(metric, max_size=3), st.dictionaries(st.text(max_size=4), st.integers()), finite)
def test_any_numbers_survive(found: list[Metric], errors: dict[str, int], seconds: float) -> None:
    made = replace(WHOLE, seconds=seconds, measured=(Measured("t", tuple(found), Counts(errors=errors)),))
    assert parse_report(as_json(made)) == made


TEXT = as_json(WHOLE)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*at, key)
        yield from places(part, (*at, key))


# a metric of each kind is enough to damage
SMALL = as_json(replace(WHOLE, measured=(replace(WHOLE.measured[0], metrics=WHOLE.measured[0].metrics[::6]),)))
PLACES = list(places(json.loads(SMALL)))


@given(
    st.sampled_from(PLACES), st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just([]) | st.just({})
)
def test_a_changed_report_is_read_or_refused(place: tuple[Any, ...], value: object) -> None:
    damaged = json.loads(SMALL)
    inner = damaged
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        assert isinstance(parse_report(json.dumps(damaged)), Report)
    except Corrupt:
        return


@given(st.integers(0, len(TEXT) - 3))
def test_a_cut_report_is_refused(end: int) -> None:
    with pytest.raises(Corrupt, match="is not a report"):
        parse_report(TEXT[:end])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seconds": "1"}, "seconds should be a number, not '1'"),
        ({"seconds": math.nan}, "NaN is no number"),
        ({"seconds": 10**400}, "seconds should be a number"),
        ({"schema": 2}, "has schema 2; this version reads 1"),
        ({"schema": None}, "has schema None"),
        ({"load": None}, "load should be an object"),
        ({"load": {"arrival": "random"}}, "load.arrival should be constant or poisson, not 'random'"),
        ({"measured": [{"name": "a"}]}, r"measured\[0\].metrics is missing"),
        ({"targets": {}}, "targets should be a list"),
    ],
)
def test_damage_is_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(Corrupt, match=said):
        parse_report(json.dumps(json.loads(TEXT) | change))


def test_the_report_in_a_measurement_of_one_load() -> None:
    level = {"label": "c1", "report": json.loads(TEXT)}
    assert parse_report(json.dumps({"name": "x", "levels": [level]})) == WHOLE
    with pytest.raises(BadUsage, match=r"holds 2 loads \(c1, c1\)"):
        parse_report(json.dumps({"name": "x", "levels": [level, level]}))
    for levels in ([], [1], {}, [{}]):
        with pytest.raises(Corrupt, match="is not a report"):
            parse_report(json.dumps({"levels": levels}))


def test_a_number_past_all_floats() -> None:
    with pytest.raises(Corrupt, match="seconds should be a number, not 'inf'"):
        parse_report(TEXT.replace('"seconds": 1.0', '"seconds": 1e999'))


def test_no_file_and_no_place(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no report at"):
        read_report(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\x00")
    with pytest.raises(Corrupt, match="not UTF-8"):
        read_report(tmp_path / "binary")
    with pytest.raises(BadUsage, match="No such file"):
        write_report(report(), tmp_path / "no" / "r.json")
    with pytest.raises(BadUsage, match="directory"):
        read_report(tmp_path)


def test_no_secret_in_a_report() -> None:
    secret = Endpoint("http://user:word@h:1/x?key=word", "m", key=Secret("word"))
    found = asked(Target("t", secret))
    assert found.url == "http://h:1/x"
    assert "word" not in json.dumps(plain(found))


def test_machines_that_may_be_compared() -> None:
    here = hardware.look()
    assert machine(here) == machine(here)
    assert (
        machine(here).fingerprint
        == machine(replace(here, ram_available=1, ram_total=here.ram_total + 4096)).fingerprint
    )
    for other in (replace(here, cpu="x"), replace(here, usable_cores=99), replace(here, ram_total=1 << 50)):
        assert machine(here).fingerprint != machine(other).fingerprint


def test_figures_by_name_and_target() -> None:
    made = report()
    assert made.figure("ttft_p50") == made.of("a").metric("ttft").percentiles["p50"]  # type: ignore[union-attr]
    assert made.figure("ttft_p99", "b") is None
    assert "first byte sent" in made.definitions["ttft"]
    with pytest.raises(BadUsage, match="no target c"):
        made.of("c")


def test_csv_has_a_line_for_each_metric() -> None:
    made = report(invalid=("=late",))
    rows = list(csv.DictReader(io.StringIO(as_csv(made))))
    assert len(rows) == sum(len(t.metrics) for t in made.measured)
    ttft = next(r for r in rows if (r["target"], r["metric"]) == ("a", "ttft"))
    metric_ = made.of("a").metric("ttft")
    assert metric_ is not None
    assert float(ttft["p50"]) == pytest.approx(metric_.percentiles["p50"].value)
    assert float(ttft["p50_low"]) <= float(ttft["p50"]) <= float(ttft["p50_high"])
    assert "p99" not in ttft, "nothing has values enough"
    assert {r["invalid"] for r in rows} == {"'=late"}, "no formula for a spreadsheet"


def test_tables_for_the_eye() -> None:
    spread, single = tables(report(invalid=("late",)))
    assert spread.head == ("metric", "target", "n", "mean", "p50", "p95", "p99")
    first = spread.rows[0]
    assert first[:4] == ("ttft", "a", "40", "139 ms")
    assert first[4].startswith("139 ms [")
    assert first[6] == "n too small"
    assert spread.notes[0] == "late"
    assert ("error_rate", "b", "0.00% [0.00%, 8.76%]") in single.rows
    assert {len(r) for r in (*spread.rows, spread.head)} == {7}


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [(0.0123456, "s", "12.3 ms"), (1.5, "s", "1.5 s"), (0.01234, "share", "1.23%"), (12345.6, "tokens/s", "12,346")],
)
def test_amounts(value: float, unit: str, shown: str) -> None:
    assert amount(value, unit) == shown
