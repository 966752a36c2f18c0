"""Checkers and shipped task sets: exact, and no answer makes them fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.bench.quality import BUILT_IN, load_tasks
from miyabi_llm.bench.quality.checks import DEFECTS, check
from miyabi_llm.bench.quality.tasks import parse, take
from miyabi_llm.errors import BadUsage
from tests.bench.quizd import right_answer

SETS = load_tasks(BUILT_IN)
QUESTIONS = [q for s in SETS for q in s.questions]
BUG = {"kind": "review", "lines": [5, 6], "kinds": ["leak"]}
CLEAN = {"kind": "review", "lines": [], "kinds": []}
JSON = {"kind": "json", "schema": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}}
TEXT = {"kind": "text", "answers": ["二人", "2人"]}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
answers = (
    st.text()
    | st.builds(lambda n, k: f"BUG {n} {k}", st.integers(), st.sampled_from(DEFECTS))
    | st.builds(json.dumps, json_values)
    | st.sampled_from(
        ["[" * 5000, "1e999", '{"a": 1e999}', "9" * 5000, "\ud800", "<think>", "```json\n{\n```", "﷽" * 99]
    )
)


@given(answers, st.sampled_from([q.check for q in QUESTIONS]))
def test_no_answer_makes_a_checker_fail(answer: str, rule: dict[str, object]) -> None:
    found = check(answer, rule)
    assert found.right == (found.why == "")


@pytest.mark.parametrize("task", SETS, ids=lambda s: s.name)
def test_every_shipped_item_can_be_answered_and_is_not_right_by_chance(task) -> None:
    assert len(task.questions) >= {"code-review": 40, "json": 30, "japanese": 30}[task.name]
    for q in task.questions:
        assert (q.license, check(right_answer(q.check), q.check).right) == ("CC0-1.0", True), q.id
        others = {right_answer(o.check) for o in task.questions}
        same = sum(check(o, q.check).right for o in others)
        assert same <= len(others) / 2, q.id
        assert not check("", q.check).right


def test_a_planted_defect_lies_in_an_added_line_and_clean_diffs_are_among_them() -> None:
    task = SETS[0]
    clean = [q for q in task.questions if not q.check["lines"]]
    assert 10 <= len(clean) <= len(task.questions) / 2
    for q in task.questions:
        rows = dict(row.split(" | ", 1) for row in q.prompt.splitlines()[1:] if " | " in row)
        assert all(rows[str(n)].startswith("+") for n in q.check["lines"]), q.id
        assert set(q.check["kinds"]) <= set(DEFECTS)


@pytest.mark.parametrize(
    ("answer", "rule", "right"),
    [
        ("BUG 5 leak", BUG, True),
        ("\n`BUG 6 leak`\nbecause the file stays open", BUG, True),
        ("<think>perhaps OK?</think>\nBUG 5 leak", BUG, True),
        ("BUG 5", BUG, False),
        ("BUG 55 leak", BUG, False),
        ("BUG 5 race", BUG, False),
        ("The defect: BUG 5 leak", BUG, False),
        ("OK", BUG, False),
        ("OK", CLEAN, True),
        ("OK.", CLEAN, True),
        ("Looks OK", CLEAN, False),
        ("BUG 1 leak", CLEAN, False),
        ('{"a": 1}', JSON, True),
        ('```json\n{"a": 1.0}\n```', JSON, True),
        ('Here it is: {"a": 1}', JSON, False),
        ('{"a": true}', JSON, False),
        ('{"a": NaN}', JSON, False),
        ("二人", TEXT, True),
        ("答え：「２人」。", TEXT, True),
        ("Answer: 2人\n理由は", TEXT, True),
        ("二人います", TEXT, False),
        ("三人", TEXT, False),
    ],
)
def test_what_is_right(answer: str, rule: dict[str, object], right: bool) -> None:
    assert check(answer, rule).right is right


def test_a_limit_takes_the_same_items_from_everywhere() -> None:
    ids = [q.id for q in take(SETS[0], 10)]
    assert len(set(ids)) == 10
    assert ids == [q.id for q in SETS[0].questions[::5]]
    assert take(SETS[0], 1000) == SETS[0].questions


HEAD = {"task": "t", "license": "CC0-1.0", "instruction": "i", "example": "e"}
ROW = {"id": "a", "license": "CC0-1.0", "prompt": "p", "check": {"kind": "text", "answers": ["x"]}}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", ":2: not JSON"),
        ("[]", ":2: not a JSON object"),
        (json.dumps(ROW | {"check": {"kind": "vibes"}}), ":2: `check.kind`"),
        (json.dumps(ROW | {"check": {"kind": "text", "answers": [1]}}), ":2: `check.answers` must hold"),
        (json.dumps(ROW | {"check": {"kind": "json", "schema": {"type": "thing"}}}), ":2: `check.schema`"),
        (json.dumps(ROW | {"check": {"kind": "json", "schema": {"$ref": "http://x/"}}}), "must not refer"),
        (json.dumps(ROW | {"max_tokens": True}), ":2: `max_tokens`"),
        (json.dumps(ROW | {"prompt": ""}), ":2: `prompt`"),
        ("", "a head and items"),
    ],
)
def test_a_bad_row_is_named_by_its_line(row: str, said: str) -> None:
    with pytest.raises(BadUsage, match=said):
        parse(f"{json.dumps(HEAD)}\n{row}\n".encode(), "mine")


@given(st.binary(max_size=300))
def test_a_file_of_anything_is_a_task_set_or_wrong_usage(data: bytes) -> None:
    with pytest.raises(BadUsage):
        parse(data, "mine")


def test_own_task_sets(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text(f"{json.dumps(HEAD)}\n{json.dumps(ROW)}\n", encoding="utf-8")
    assert [len(s.questions) for s in load_tasks(["json", str(mine)])] == [len(SETS[1].questions), 1]
    for bad in (["json", "json"], ["nothing"], [str(tmp_path / "no.jsonl")]):
        with pytest.raises(BadUsage):
            load_tasks(bad)
