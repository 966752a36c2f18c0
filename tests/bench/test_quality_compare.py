"""The paired comparison: exact figures, honest intervals, rare false alarms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm.bench.quality.compare import Pairs, compare, interval, mcnemar, tango
from miyabi_llm.bench.quality.run import ALL, score
from miyabi_llm.bench.quality.values import SCHEMA, Drift, Graded, How, Report
from miyabi_llm.errors import InvalidMeasurement


def report(rights: dict[str, list[bool]], name: str = "a") -> Report:
    items = tuple(
        Graded(f"{task}-{i}", task, "s", right, "" if right else "another answer", str(right))
        for task, values in rights.items()
        for i, right in enumerate(values)
    )
    scores = tuple(score(t, [i for i in items if i.task == t]) for t in rights)
    return Report(
        SCHEMA, name, "m", None, "here", "2026-01-01", "openai-chat", How(), dict.fromkeys(rights, "f"), scores,
        score(ALL, items), None, items, 1.0,
    )  # fmt: skip


def rights(share: float, n: int, seed: int) -> list[bool]:
    return [bool(x) for x in np.random.default_rng(seed).random(n) < share]


@pytest.mark.parametrize(("a", "b", "p"), [(0, 0, 1.0), (5, 5, 1.0), (10, 0, 2 / 1024), (8, 2, 112 / 1024)])
def test_mcnemar_is_the_binomial_of_a_fair_coin(a: int, b: int, p: float) -> None:
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(p)


def test_tango_has_a_width_where_nothing_differs() -> None:
    for gained, lost, n in ((3, 1, 44), (0, 0, 100), (0, 9, 60), (40, 2, 120), (0, 5, 5)):
        low, high = tango(gained, lost, n)
        assert -1 <= low <= (gained - lost) / n <= high <= 1
    low, high = tango(0, 0, 100)
    assert high == pytest.approx(1.96**2 / (100 + 1.96**2), abs=1e-3)
    assert low == pytest.approx(-high)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(0, 80)] * 4).filter(lambda t: sum(t) > 0))
def test_the_interval_holds_the_difference_and_mirrors(counts: tuple[int, int, int, int]) -> None:
    pairs = Pairs(*counts)
    low, high = interval(pairs)
    assert -1 <= low <= pairs.difference <= high <= 1


def test_the_same_answers_pass_only_with_enough_items() -> None:
    many, few = report({"t": rights(0.5, 122, 1)}), report({"t": rights(0.5, 6, 1)})
    assert compare(many, many).outcome == "pass"
    assert compare(few, few).outcome == "inconclusive", "six equal items do not show that a model is as good"


def test_a_loss_fails_and_a_gain_passes() -> None:
    good, bad = report({"t": [True] * 90 + [False] * 30}), report({"t": [True] * 55 + [False] * 65}, "b")
    verdict = compare(good, bad)
    assert (verdict.outcome, verdict.total.pairs.only_a, verdict.total.pairs.only_b) == ("fail", 35, 0)
    assert verdict.total.difference == pytest.approx(-35 / 120)
    assert compare(bad, good).outcome == "pass"


def test_one_task_that_collapses_fails_alone() -> None:
    before = {"x": [True] * 100, "y": [True] * 100, "z": [True] * 20}
    after = report(before | {"z": [False] * 20}, "b")
    verdict = compare(report(before), after)
    assert verdict.outcome == "fail"
    assert [t.outcome for t in verdict.tasks] == ["pass", "pass", "fail"]
    assert verdict.reason.startswith("z: worse")


def test_false_alarms_are_rare_and_losses_are_found() -> None:
    """Independent answers at the same rate: the noisiest case; greedy answers of one model differ far less."""
    alarms = finds = 0
    for seed in range(40):
        a = report({t: rights(0.6, 40, 10 * seed + i) for i, t in enumerate("xyz")})
        b = report({t: rights(0.6, 40, 9000 + 10 * seed + i) for i, t in enumerate("xyz")}, "b")
        kept = {t: rights(0.5, 40, 7000 + 10 * seed + i) for i, t in enumerate("xyz")}
        base = {t: rights(0.6, 40, 10 * seed + i) for i, t in enumerate("xyz")}
        worse = report({t: [r and k for r, k in zip(base[t], kept[t], strict=True)] for t in base}, "b")
        alarms += compare(a, b).outcome == "fail"
        finds += compare(a, worse).outcome == "fail"
    assert alarms <= 3
    assert finds >= 37


def test_what_cannot_be_compared_is_refused() -> None:
    a = report({"t": [True] * 10})
    other_items = replace(a, items=tuple(replace(i, sha256="other") for i in a.items))
    for wrong in (replace(a, speech="openai-completions"), replace(a, invalid=("broken",)), other_items):
        with pytest.raises(InvalidMeasurement):
            compare(a, wrong)


def test_a_chat_is_a_chat_in_every_dialect() -> None:
    a = report({"t": [True] * 60})
    assert compare(a, replace(a, speech="ollama", server="elsewhere")).outcome == "pass"


def test_only_common_items_count_and_drift_is_said() -> None:
    a, b = report({"t": [True] * 60}), report({"t": [True] * 100}, "b")
    verdict = compare(a, replace(b, drift=Drift(10, 8, 0.8, 0.5, 0.9)))
    assert (verdict.total.pairs.n, verdict.left_out) == (60, 40)
    assert verdict.notes == ("b answered 2 of 10 items differently when asked twice",)
