"""The policy that makes room: what it may never do, whatever the models and the budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.serve.many.room import Holder, Refusal, Wanted, plan_room

sizes = st.integers(0, 40)
holders = st.lists(
    st.builds(
        Holder,
        name=st.sampled_from("abcdefgh"),
        memory=sizes,
        last_used=st.floats(0, 100),
        pinned=st.booleans(),
        busy=st.booleans(),
    ),
    unique_by=lambda h: h.name,
)


@given(holders, sizes, st.integers(0, 100))
def test_who_goes_is_neither_pinned_nor_busy_and_goes_in_the_order_of_last_use(
    there: list[Holder], need: int, budget: int
) -> None:
    answer = plan_room(there, Wanted("new", need), budget, 100.0)
    by_name = {h.name: h for h in there}
    if isinstance(answer, Refusal):
        return
    gone = [by_name[name] for name in answer]
    assert all(h.evictable for h in gone)
    used = [(h.last_used, h.name) for h in gone]
    assert used == sorted(used)
    kept = [h for h in there if h.name not in answer and h.evictable]
    assert all((k.last_used, k.name) > used[-1] for k in kept if used)


@given(holders, sizes, st.integers(0, 100))
def test_the_budget_holds_unless_one_model_alone_is_larger(there: list[Holder], need: int, budget: int) -> None:
    answer = plan_room(there, Wanted("new", need), budget, 100.0)
    if isinstance(answer, Refusal):
        stay = [h for h in there if not h.evictable]
        assert stay, "refused though everything could go"
        assert need + sum(h.memory for h in stay) > budget, "refused though there was room"
        return
    left = sum(h.memory for h in there if h.name not in answer)
    assert need + left <= budget or len(answer) == len(there)


@given(holders, sizes, st.integers(0, 100))
def test_nobody_goes_without_need(there: list[Holder], need: int, budget: int) -> None:
    answer = plan_room(there, Wanted("new", need), budget, 100.0)
    if not isinstance(answer, Refusal) and answer:
        last = next(h for h in there if h.name == answer[-1])
        left = sum(h.memory for h in there if h.name not in answer) + last.memory
        assert need + left > budget


@given(holders, sizes, st.integers(0, 100))
def test_a_model_is_not_in_its_own_way(there: list[Holder], need: int, budget: int) -> None:
    for holder in there:
        without = [h for h in there if h.name != holder.name]
        wanted = Wanted(holder.name, need)
        assert plan_room(there, wanted, budget, 100.0) == plan_room(without, wanted, budget, 100.0)


def test_a_refusal_names_who_holds_the_memory_and_whether_waiting_helps() -> None:
    mib = 1 << 20
    pinned, busy = Holder("p", 300 * mib, 1, pinned=True), Holder("b", 200 * mib, 2, busy=True)
    refused = plan_room([pinned, busy, Holder("idle", 9 * mib, 0)], Wanted("w", 400 * mib), 500 * mib, 9)
    assert isinstance(refused, Refusal)
    assert "p 300 MiB (pinned), b 200 MiB (answering)" in refused.message
    assert "needs 400 MiB of 500 MiB" in refused.message
    assert refused.retry_s
    only_pinned = plan_room([pinned], Wanted("w", 400 * mib), 500 * mib, 9)
    assert isinstance(only_pinned, Refusal)
    assert only_pinned.retry_s is None


@pytest.mark.parametrize("ahead", [150.0, float("inf")])
def test_a_clock_that_ran_ahead_protects_nobody_for_ever(ahead: float) -> None:
    answer = plan_room([Holder("a", 10, ahead), Holder("b", 10, 100.0)], Wanted("w", 15), 20, 100.0)
    assert answer == ("a", "b")
