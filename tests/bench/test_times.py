"""Arrival times: exact, seeded, and one process however many send them."""

import itertools

import pytest

from miyabi_llm.bench.engine.times import arrivals, dispersion


@pytest.mark.parametrize("shards", [1, 4, 10])
def test_poisson_stays_poisson_in_any_number_of_processes(shards: int) -> None:
    rate, seconds = 100.0, 400.0
    merged = sorted(
        t
        for shard in range(shards)
        for t in itertools.takewhile(lambda t: t < seconds, arrivals(rate, "poisson", 7, shard, shards))
    )
    alone = list(itertools.takewhile(lambda t: t < seconds, arrivals(rate, "poisson", 7)))
    assert merged == alone
    assert len(merged) == pytest.approx(rate * seconds, rel=0.02)
    assert len({round(b - a, 9) for a, b in itertools.pairwise(merged)}) > 0.99 * len(merged)
    assert 0.9 < dispersion(merged, 1.0) < 1.1


def test_constant_is_constant() -> None:
    assert list(itertools.islice(arrivals(4.0, "constant", 0), 4)) == [0.0, 0.25, 0.5, 0.75]
    with pytest.raises(ValueError, match="above 0"):
        next(arrivals(0, "constant", 0))
