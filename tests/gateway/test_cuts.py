"""G2, G3: a sample of the cuts of `benchmarks/cuts.py`, through a whole gateway."""

from __future__ import annotations

import random

from benchmarks.cuts import all_cuts, run


def test_no_cut_is_taken_for_an_end() -> None:
    counts, fakes = run(random.Random(7).sample(all_cuts(), 300))
    assert fakes == []
    assert sum(counts.values()) == 300
