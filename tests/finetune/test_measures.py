"""Gains, intervals and gates, against numbers worked out by hand."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.errors import BadUsage, GateFailed, Inconclusive, InvalidMeasurement
from miyabi_llm.finetune import gating, measures
from miyabi_llm.finetune.measures import Interval, Row


def rows(*values: float, weight: float = 1.0) -> list[Row]:
    return [Row(str(i), v, weight) for i, v in enumerate(values)]


def test_a_loss_is_weighed_by_tokens() -> None:
    told = {"rows": [["a", 10.0, 10], ["b", 30.0, 10], ["c", 80.0, 80]]}
    found = measures.mean(measures.rows_of("loss", told), 200, 0)
    assert found.value == pytest.approx(120 / 100)


def test_the_pairing_takes_the_hardness_of_rows_out() -> None:
    """Rows differ by far more than the two models do; the gain is clear all the same."""
    rng = random.Random(1)
    hard = [rng.uniform(0, 10) for _ in range(40)]
    a, b = rows(*hard), rows(*(h - 0.1 + rng.gauss(0, 0.05) for h in hard))
    gain = measures.negative(measures.change(a, b, 2000, 0))
    assert gain.low > 0
    assert gain.value == pytest.approx(0.1, abs=0.03)
    apart = measures.mean(a, 2000, 0)
    assert apart.high - apart.low > 10 * (gain.high - gain.low)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """The true gain of 0.2 lies in the 95% interval of 300 draws of 30 rows in about 95% of them."""
    rng = random.Random(7)
    hits = 0
    for _ in range(300):
        values = [rng.gauss(0.2, 1.0) for _ in range(30)]
        found = measures.change(rows(*[0.0] * 30), rows(*values), 400, 0)
        hits += found.low <= 0.2 <= found.high
    assert 0.91 <= hits / 300 <= 0.985


def test_rows_must_be_the_same() -> None:
    with pytest.raises(InvalidMeasurement, match="1 of them the same"):
        measures.change(rows(1.0, 2.0), rows(1.0), 100, 0)
    with pytest.raises(InvalidMeasurement, match="another number of tokens"):
        measures.change(rows(1.0, weight=3), rows(1.0, weight=4), 100, 0)
    with pytest.raises(InvalidMeasurement, match="no row"):
        measures.mean([], 100, 0)
    with pytest.raises(InvalidMeasurement, match="finite"):
        measures.mean(rows(math.nan, 1.0), 100, 0)
    with pytest.raises(BadUsage, match="no metric"):
        measures.rows_of("bleu", {"rows": [], "answers": []})


def test_answers_are_compared() -> None:
    assert measures.similar("exact", " Tokyo\n", "Tokyo") == 1
    assert measures.similar("exact", "Tokyo.", "Tokyo") == 0
    assert measures.similar("contains", "It is Tokyo.", "Tokyo") == 1
    assert measures.similar("overlap", "the cat sat", "the cat ran") == pytest.approx(2 / 3)
    assert measures.similar("overlap", "東京です", "東京だ") == pytest.approx(2 * 2 / 7)
    told = {"rows": [["a", 3.0, 2, 5.0, 2], ["b", 6.0, 2, 5.0, 2]], "answers": []}
    assert [r.value for r in measures.rows_of("preference", told)] == [1.0, 0.0]


@given(st.text(max_size=60), st.text(max_size=60), st.sampled_from(["exact", "contains", "overlap"]))
def test_a_likeness_is_a_share(a: str, b: str, metric: str) -> None:
    assert 0 <= measures.similar(metric, a, b) <= 1
    assert measures.similar(metric, a, a) == 1


def test_a_gate_has_three_answers() -> None:
    def gain(low: float, high: float) -> Interval:
        return Interval((low + high) / 2, low, high, 20)

    sure = measures.at_least("min_gain", "Q8_0", gain(0.1, 0.3), 0.0, "nats")
    lost = measures.at_least("min_gain", "Q8_0", gain(-0.3, -0.1), 0.0, "nats")
    open_ = measures.at_least("min_gain", "Q8_0", gain(-0.1, 0.3), 0.0, "nats")
    none = measures.at_least("min_gain", "Q8_0", gain(0.0, 0.0), 0.0, "nats")
    assert [v.outcome for v in (sure, lost, open_, none)] == ["pass", "fail", "inconclusive", "fail"]
    gating.raise_for((sure,))
    with pytest.raises(GateFailed) as failed:
        gating.raise_for((sure, open_, lost))
    assert failed.value.exit_code == 5
    with pytest.raises(Inconclusive) as undecided:
        gating.raise_for((sure, open_))
    assert undecided.value.exit_code == 6
    least = [measures.at_most("f", "Q8_0", gain(*g), 0.1, "nats").outcome for g in ((0, 0.1), (0.2, 0.3), (0, 0.3))]
    assert least == ["pass", "fail", "inconclusive"]


def test_a_stage_is_measured_against_the_base() -> None:
    base = {"rows": [["a", 20.0, 10], ["b", 30.0, 10]], "forget": [["f", 5.0, 10], ["g", 6.0, 10]], "answers": []}
    told = {"rows": [["a", 10.0, 10], ["b", 18.0, 10]], "forget": [["f", 7.0, 10], ["g", 8.0, 10]], "answers": []}
    found = measures.stage("adapter", "loss", told, base, 500)
    assert found.gain is not None
    assert found.forgot is not None
    assert found.gain.value == pytest.approx(1.1)
    assert found.forgot.value == pytest.approx(0.2)
    assert measures.stage("base", "loss", base, None, 500).gain is None
