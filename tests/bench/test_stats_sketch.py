"""The sketch and the timeline: as good as they say, as small as they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.bench.stats.sketch import ERROR, Sketch
from miyabi_llm.bench.stats.timeline import BINS, Timeline

MS = 1_000_000


@given(st.lists(st.floats(1e-9, 1e5) | st.just(0.0), min_size=1, max_size=200), st.floats(0, 1))
def test_a_quantile_is_within_its_error(values: list[float], share: float) -> None:
    sketch = Sketch()
    sketch.add(np.array(values))
    true = sorted(values)[int(share * (len(values) - 1))]
    assert sketch.quantiles([share])[0] == pytest.approx(true, rel=ERROR * 1.0001)
    assert (sketch.least, sketch.most) == (min(values), max(values))
    assert sketch.mean == pytest.approx(np.mean(values))


@given(st.lists(st.floats(0, 10), max_size=50), st.lists(st.floats(0, 10), max_size=50))
def test_merged_is_the_same_as_together(a: list[float], b: list[float]) -> None:
    first, second, both = Sketch(), Sketch(), Sketch()
    first.add(np.array(a))
    second.add(np.array(b))
    both.add(np.array(a + b))
    first.merge(second)
    assert first.n == both.n
    assert np.array_equal(first.quantiles([0, 0.5, 1]), both.quantiles([0, 0.5, 1]), equal_nan=True)


def test_a_weight_is_so_many_values() -> None:
    weighted, each = Sketch(), Sketch()
    weighted.add(np.array([1.0, 2.0]), np.array([3.0, 1.0]))
    each.add(np.array([1.0, 1.0, 1.0, 2.0]))
    assert weighted.n == each.n == 4
    assert weighted.quantiles([0.5, 1.0]) == each.quantiles([0.5, 1.0])
    assert weighted.sd == pytest.approx(each.sd)
    assert each.sd == pytest.approx(0.5)


def test_the_shape_of_the_tail_survives() -> None:
    values = np.random.default_rng(1).lognormal(-4, 1, 200_000)
    sketch = Sketch()
    for part in np.split(values, 20):
        sketch.add(part)
    for share in (0.5, 0.9, 0.99, 0.999):
        assert sketch.quantiles([share])[0] == pytest.approx(float(np.quantile(values, share)), rel=0.006)


def test_a_window_that_is_known_afterwards() -> None:
    line = Timeline(2, 0)
    line.add(np.arange(0, 1000 * MS, 10 * MS), np.array([np.ones(100), np.full(100, 2.0)]))
    whole, half = line.within([(0, 1000 * MS), (250 * MS, 750 * MS)]).T
    assert whole == pytest.approx([100, 200])
    assert half == pytest.approx([50, 100])


@pytest.mark.parametrize("hours", [1, 30])
def test_a_long_run_stays_small_and_exact_enough(hours: int) -> None:
    line = Timeline(1, 0)
    end = hours * 3_600_000 * MS
    times = np.linspace(0, end - 1, 100_000).astype(np.int64)
    line.add(times, np.ones((1, 100_000)))
    assert line.within([(0, end // 3)])[0, 0] == pytest.approx(100_000 / 3, rel=4 / BINS)
    assert line.within([(0, end)])[0, 0] == pytest.approx(100_000, rel=4 / BINS)


def test_timelines_merge() -> None:
    a, b = Timeline(1, 0), Timeline(1, 500 * MS)
    a.add(np.array([100 * MS]), np.ones((1, 1)))
    b.add(np.array([700 * MS]), np.ones((1, 1)))
    a.merge(b)
    assert a.within([(0, 600 * MS), (600 * MS, 1000 * MS)])[0].tolist() == pytest.approx([1, 1])
    assert sum(rate * 0.2 for _, rate in a.series(0, 0.2)) == pytest.approx(2)
