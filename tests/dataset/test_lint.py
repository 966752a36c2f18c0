"""Splits that do not leak, rows that are alike, and what the lint says of rows and of their tokens."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm.dataset import Problem, Read, Row, alike, lint, split
from miyabi_llm.dataset.facts import Facts, Rendered, Special, facts

LONG = "The quick brown fox jumps over the lazy dog while forty two engineers watch it from the window of the office. "


def row(number: int, ask: str, answer: str = "yes", group: str | None = None) -> Row:
    return Row(
        "sft", ({"role": "user", "content": ask},), (({"role": "assistant", "content": answer},),), number, None, group
    )


def report(learn: list[Row], held: list[Row] | None = None, **more: Any) -> dict[str, lint.Finding]:
    held = held or []
    read = Read((*learn, *held), more.pop("problems", ()), "messages")
    near = lint.near([*learn, *held])
    found = lint.judge(lint.Looked(read, learn, held, near=near, **more), more.get("scan"))
    assert found.total == found.rows + found.bad
    return {f.check: f for f in found.findings}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.floats(0, 0.9), st.integers(0, 5), st.randoms(use_true_random=False))
def test_a_split_is_whole_is_the_same_in_any_order_and_leaks_nothing(
    count: int, fraction: float, seed: int, rng: random.Random
) -> None:
    rows = [row(i, f"question {i // 2}", f"answer {i}", group=str(i // 5)) for i in range(count)]
    learn, held = split(rows, fraction, seed)
    assert sorted(r.number for r in (*learn, *held)) == list(range(count))
    assert not {r.group for r in learn} & {r.group for r in held}
    assert not {str(r.prompt) for r in learn} & {str(r.prompt) for r in held}
    shuffled = rows[:]
    rng.shuffle(shuffled)
    assert {r.id for r in split(shuffled, fraction, seed)[1]} == {r.id for r in held}
    if count > 10 and fraction > 0:
        assert held
        assert learn


def test_near_duplicates_stay_on_one_side() -> None:
    rows = [row(i, LONG * 2 + f"{i // 4}-{i % 4} " + str(random.Random(i // 4).random()) * 8) for i in range(40)]
    pairs = alike.clusters((a.id, b.id) for a, b in lint.near(rows))
    assert len(pairs) == 40
    learn, held = split(rows, 0.25, 1, pairs)
    assert held
    assert not {pairs[r.id] for r in learn} & {pairs[r.id] for r in held}


def test_likeness_is_found_in_japanese_and_not_where_there_is_none() -> None:
    a = "納品書の備考欄の検収日と、基幹システムに登録された検収日が一致しない場合は、経理課へ連絡してください。"
    b = a.replace("経理課", "購買課")
    assert alike.likeness(alike.shingles(a), alike.shingles(b)) > 0.6
    assert list(alike.pairs([a, a + "。", "全く別の文章です。" * 5])) == [(0, 1, pytest.approx(0.98, abs=0.03))]
    assert list(alike.pairs(["", "", "x"])) == []
    assert list(alike.pairs(["ＡＢＣ  def" * 9, "abc DEF" * 9])) == [(0, 1, 1.0)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=12))
def test_exact_copies_are_always_found(texts: list[str]) -> None:
    found = {(a, b) for a, b, share in alike.pairs(texts) if share == 1.0}
    for i, one in enumerate(texts):
        for j in range(i + 1, len(texts)):
            if alike.plain(one) and alike.plain(one) == alike.plain(texts[j]):
                assert (i, j) in found


def test_copies_overlap_and_contamination_are_named_by_row() -> None:
    learn = [row(1, "a"), row(2, "b"), row(3, "a"), row(4, LONG, LONG), row(5, "kept", LONG * 2)]
    held = [row(6, "b"), row(7, "kept", "another"), row(8, "asked otherwise, entirely", LONG[5:])]
    found = report(learn, held)
    assert found["duplicate"].rows == (3, 6)
    assert found["contamination"].rows == (8,)
    both = [f for f in lint.judge(lint.Looked(Read((), (), ""), learn, held)).findings if f.check == "overlap"]
    assert [(f.level, f.rows) for f in both] == [("error", (6,)), ("warning", (7,))]


def test_rows_that_cannot_be_read_are_errors_and_counted_once() -> None:
    found = report([row(1, "a")], problems=(Problem(2, "no turns"), Problem(9, "no turns")))
    assert found["unreadable"].level == "error"
    assert found["unreadable"].rows == (2, 9)
    assert found["unreadable"].message == "2 rows: no turns"


def test_secrets_are_named_by_kind_and_row() -> None:
    from miyabi_llm.finetune.data import _scanner

    token = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
    looked = lint.Looked(Read((), (), ""), [row(1, "fine"), row(2, f"my key is {token} ok")], [])
    named = [f for f in lint.judge(looked, _scanner()).findings if f.check == "secret"]
    assert named
    assert all(f.rows == (2,) for f in named)
    assert token not in str(named)


SPECIAL = Special(bos=1, eos=(2, 3), pad=0)


def rendered(text: str, ids: list[int], prompt: list[int], blank: frozenset[int] = frozenset({9})) -> Rendered:
    return Rendered(text, ids, prompt, blank)


def test_facts_say_what_is_trained_and_whether_the_end_is() -> None:
    turns = [{"role": "user", "content": "hi "}, {"role": "assistant", "content": "ho"}]
    fine = facts("x", 1, turns, rendered("<hi><ho>", [1, 5, 6, 7, 2, 9], [1, 5, 6]), SPECIAL)
    assert (fine.tokens, fine.trained, fine.ends, fine.lost, fine.double_bos) == (6, 3, True, (), False)
    assert Facts.of(fine.json()) == fine
    cut = facts("x", 1, turns, rendered("<hi>", [1, 1, 6, 7], [1, 1, 6, 8]), SPECIAL)
    assert (cut.ends, cut.lost, cut.double_bos, cut.unlike, cut.bos) == (False, (2,), True, 1, 2)
    assert fine.sha != facts("x", 1, turns, rendered("<hi><ho>", [1, 5, 6, 7, 2, 9], [1, 5]), SPECIAL).sha


@pytest.mark.parametrize(
    ("fault", "check", "level"),
    [
        ({"trained": 0}, "untrained", "error"),
        ({"ends": False}, "no-end", "error"),
        ({"lost": (1,)}, "lost-text", "error"),
        ({"lost": (2,), "thought_lost": True}, "lost-thought", "error"),
        ({"double_bos": True}, "double-bos", "error"),
        ({"error": "TemplateError: roles must alternate"}, "template", "error"),
        ({"tokens": 5000}, "over-length", "warning"),
        ({"unlike": 2}, "mask", "note"),
    ],
)
def test_what_only_tokens_show_is_found(fault: dict[str, Any], check: str, level: str) -> None:
    good = {"tokens": 40, "trained": 4, "ends": True}
    known = [Facts("a", 1, **good), Facts("b", 2, **(good | fault))]  # type: ignore[arg-type]
    found = report([row(1, "a"), row(2, "b")], facts=known, max_length=1000)
    assert found[check].level == level
    assert found[check].rows == (2,)


def test_an_overlong_row_is_an_error_where_the_recipe_says_so() -> None:
    known = [Facts("a", 1, tokens=50, trained=4, ends=True)]
    found = report([row(1, "a")], facts=known, max_length=49, over_length="fail")
    assert found["over-length"].level == "error"
    assert "over-length" not in report([row(1, "a")], facts=known, max_length=50)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60))
def test_a_histogram_counts_every_row_once(lengths: list[int]) -> None:
    bins = lint.histogram(lengths)
    assert sum(count for _, count in bins) == len(lengths)
    assert len(bins) <= lint.BINS + 1
    assert bins[-1][0] >= max(lengths)
