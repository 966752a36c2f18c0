"""Rows of every form become one form, or a problem with the number of the row and the way out; the counts add up."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm.dataset import Problem, Reading, Row, files, forms, read
from miyabi_llm.errors import BadUsage, MachineLimit

ASK, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
GOOD = {
    "messages": {"messages": [ASK, ANSWER]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
    "alpaca": {"instruction": "Why?", "input": "", "output": "Because."},
    "prompt-completion": {"prompt": "Why?", "completion": "Because."},
    "preference": {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    "unpaired": {"prompt": "Why?", "completion": "Because.", "label": True},
}


def made(value: Any, form: str = "", **reading: Any) -> Row | Problem:
    form = form or forms.detect(value) or ""
    return forms.row(value, 7, form, Reading(**reading))


@pytest.mark.parametrize("form", GOOD)
def test_each_form_is_known_by_its_keys_and_becomes_the_same_row(form: str) -> None:
    assert forms.detect(GOOD[form]) == form
    row = made(GOOD[form])
    assert isinstance(row, Row)
    assert row.prompt == (ASK,)
    assert row.last == (ANSWER,)
    assert row.number == 7
    again = Row.of(row.json())
    assert again == row
    assert again.id == row.id == row.json()["id"]
    assert len(row.id) == 12


def test_the_same_content_has_the_same_name_wherever_it_stands() -> None:
    a, b = made(GOOD["messages"]), made(GOOD["sharegpt"])
    assert isinstance(a, Row)
    assert isinstance(b, Row)
    assert a.id == b.id
    other = forms.row(GOOD["messages"], 900, "messages", Reading())
    assert isinstance(other, Row)
    assert other.id == a.id


def test_a_conversation_is_learned_from_its_last_answer() -> None:
    row = made(
        {"messages": [ASK, ANSWER, {"role": "user", "content": "More"}, {"role": "assistant", "content": "Yes"}]}
    )
    assert isinstance(row, Row)
    assert len(row.prompt) == 3
    assert row.last[0]["content"] == "Yes"


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": r, "content": f"says {i}"} for i, r in enumerate(roles)]}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "not a JSON object"),
        ({"messages": []}, "no turns"),
        ({"messages": "x"}, "no turns"),
        ({"messages": [3]}, "turn 1 is not an object"),
        ({"messages": [{"content": "x"}]}, "turn 1 has no `role`"),
        ({"messages": [{"role": "user"}, ANSWER]}, "turn 1 has no text in `content`"),
        ({"messages": [ASK, {"role": "assistant", "content": " \n"}]}, "turn 2, by the assistant, is empty"),
        (turns("human", "gpt"), "turn 1 is by 'human', an unknown role (for example --set data.roles.human=user)"),
        (turns("developer", "user", "assistant"), "data.roles.developer=system"),
        (turns("user"), "`messages` holds no turn of the assistant: nothing to learn"),
        (turns("user", "assistant", "user"), "the last turn is the user's: nothing answers it"),
        (turns("user", "system", "assistant"), "turn 2 is a system prompt"),
        (turns("system", "assistant"), "no turn of the user before the answer"),
        ({"messages": [{"role": "user", "content": "a\0b"}, ANSWER]}, "holds U+0000"),
        ({"messages": [{"role": "user", "content": "a\ud800b"}, ANSWER]}, "holds U+D800"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]}, "something that is not text"),
        ({"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [1]}]}, "calls tools"),
        ({"messages": [ASK, {"role": "assistant", "content": "<think>a</think>b"}]}, "the answer holds reasoning"),
        ({"instruction": 3, "output": "x"}, "`instruction` is not a text"),
        ({"instruction": "x", "output": ""}, "`output` is empty"),
        ({"prompt": "x", "completion": "y", "label": "maybe"}, "`label` is not true or false"),
        ({"prompt": "x", "chosen": "y", "rejected": "y"}, "chosen and rejected are the same"),
        ({"prompt": "x", "completion": [ASK, ANSWER]}, "is not one turn of the assistant"),
        ({"chosen": [ASK, ANSWER], "rejected": [{"role": "user", "content": "Other"}, ANSWER]}, "different questions"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_with_its_number(value: Any, said: str) -> None:
    found = made(value, form=forms.detect(value) or "messages")
    assert isinstance(found, Problem)
    assert str(found).startswith("row 7: ")
    assert said in str(found)


@pytest.mark.parametrize(
    ("value", "way_out"),
    [
        ({"text": "<s>hi"}, "give the turns"),
        ({"mesages": []}, "did you mean `messages` where it says `mesages`?"),
        ({"a": 1}, "known are messages"),
        (3, "a row is an object"),
    ],
)
def test_rows_of_no_known_form_get_the_way_out(value: Any, way_out: str) -> None:
    assert forms.detect(value) is None
    assert way_out in forms.no_form(value)[1]


def test_roles_are_mapped_when_the_recipe_says_so() -> None:
    row = made(turns("Kunde", "Berater"), roles={"Kunde": "user", "Berater": "assistant"})
    assert isinstance(row, Row)
    assert [m["role"] for m in (*row.prompt, *row.last)] == ["user", "assistant"]


def test_reasoning_is_kept_or_stripped_as_the_recipe_says() -> None:
    value = {"messages": [ASK, {"role": "assistant", "content": "Because.", "reasoning_content": "Hm."}]}
    kept, stripped = made(value, thinking="keep"), made(value, thinking="strip")
    assert isinstance(kept, Row)
    assert isinstance(stripped, Row)
    assert kept.last[0]["content"] == "<think>\nHm.\n</think>\n\nBecause."
    assert stripped.last == (ANSWER,)
    open_ = made({"messages": [ASK, {"role": "assistant", "content": "<think>x"}]}, thinking="strip")
    assert "not closed" in str(open_)


def test_a_system_prompt_is_given_only_to_rows_without_one() -> None:
    row = made(GOOD["messages"], system="Be brief.")
    own = made(turns("system", "user", "assistant"), system="Be brief.")
    assert isinstance(row, Row)
    assert isinstance(own, Row)
    assert row.prompt[0] == {"role": "system", "content": "Be brief."}
    assert own.prompt[0]["content"] == "says 0"


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_a_damaged_file_is_reported_row_by_row_and_the_counts_add_up(tmp_path: Path) -> None:
    good = json.dumps(GOOD["messages"]).encode()
    path = write(
        tmp_path / "rows.jsonl",
        b"\xef\xbb\xbf" + good + b"\r",  # 1: a BOM and CRLF are fine
        b"",  # 2: blank
        b'{"messages": ["\xff"]}',  # 3: not UTF-8
        b"{not json",  # 4
        b'{"messages": NaN}',  # 5
        json.dumps(GOOD["alpaca"]).encode(),  # 6: another form
        b"[" * 100_000,  # 7: too deep
        b'{"messages": "' + b"x" * (files.MOST_ROW + 5) + b'"}',  # 8: too long
        good,  # 9
        b'{"messages": [{"role": "user", "content": "a\\u0000"}]}',  # 10
        json.dumps(turns("user", "boss")).encode(),  # 11
    )
    found = read(path, Reading())
    assert [r.number for r in found.rows] == [1, 9]
    assert [p.number for p in found.problems] == [3, 4, 5, 6, 7, 8, 10, 11]
    assert found.total == 10
    said = "\n".join(map(str, found.problems))
    for words in ("row 3: not UTF-8 at byte 16", "row 4: not JSON", "NaN is no number", "is alpaca, but the rows",
                  "row 7: too deeply nested", "bytes; a row has", "U+0000", "unknown role"):  # fmt: skip
        assert words in said
    assert found.sha256 == files.hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_row_of_fifty_megabytes_costs_one_row_and_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(json.dumps(GOOD["messages"]).encode() + b"\n" + b'{"messages": "')
        for _ in range(50):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + json.dumps(GOOD["messages"]).encode() + b"\n")
    tracemalloc.start()
    found = read(path, Reading())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [r.number for r in found.rows] == [1, 3]
    assert "row 2: 50,000,0" in str(found.problems[0])
    assert peak < 4 * files.MOST_ROW


def test_a_packed_file_is_read_and_a_bomb_is_not(tmp_path: Path) -> None:
    fine, bomb = tmp_path / "fine.jsonl.gz", tmp_path / "bomb.jsonl.gz"
    fine.write_bytes(gzip.compress(json.dumps(GOOD["messages"]).encode() + b"\n"))
    assert len(read(fine, Reading()).rows) == 1
    bomb.write_bytes(gzip.compress(b"\0" * 60_000_000))
    with pytest.raises(MachineLimit, match="unpacks to more than"):
        read(bomb, Reading())
    (tmp_path / "cut.jsonl.gz").write_bytes(fine.read_bytes()[:-9])
    with pytest.raises(BadUsage, match=r"cut\.jsonl\.gz"):
        read(tmp_path / "cut.jsonl.gz", Reading())


def test_csv_and_json_are_read_with_the_numbers_of_their_records(tmp_path: Path) -> None:
    table = write(tmp_path / "rows.csv", b"prompt,completion", b'Why?,"Because,', b'of it."', b"a,b,c", b"What?,This.",
                  b"\xff,x", b"Empty?,")  # fmt: skip
    found = read(table, Reading())
    assert [(r.number, r.last[0]["content"]) for r in found.rows] == [(2, "Because,\nof it."), (5, "This.")]
    assert [p.number for p in found.problems] == [4, 6, 7]
    listed = tmp_path / "rows.json"
    listed.write_text(json.dumps([GOOD["alpaca"], 3]))
    both = read(listed, Reading())
    assert (len(both.rows), [p.number for p in both.problems]) == (1, [2])


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("rows.txt", b"x", "no form of file we read"),
        ("none.jsonl", None, "no such file"),
        ("rows.csv", b"a,a\n1,2\n", "two columns have one name"),
    ],
)
def test_what_is_no_file_of_rows_is_refused(name: str, data: bytes | None, said: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(BadUsage, match=said):
        read(tmp_path / name, Reading())


def test_an_empty_file_has_no_rows_and_no_problems(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv", "a.json"):
        (tmp_path / name).write_bytes(b"")
        assert read(tmp_path / name, Reading()).total == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["messages", "conversations", "role", "content", "from", "value", "prompt", "completion",
                         "chosen", "rejected", "label", "instruction", "output", "input", "system", "history", "x"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(JSON, st.sampled_from([*GOOD]))
def test_any_value_is_a_row_or_a_problem(value: Any, form: str) -> None:
    found = forms.row(value, 1, form, Reading())
    assert isinstance(found, Row | Problem)
    if isinstance(found, Row):
        assert Row.of(json.loads(json.dumps(found.json()))).id == found.id


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([json.dumps(v).encode() for v in GOOD.values()]))))
def test_any_file_is_read_and_its_counts_add_up(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("any") / "rows.jsonl"
    data = b"\n".join(lines)
    path.write_bytes(data)
    found = read(path, Reading())
    numbers = sorted([r.number for r in found.rows] + [p.number for p in found.problems])
    assert len(numbers) == len(set(numbers)) == found.total
    for number in range(1, data.count(b"\n") + 2):
        line = data.split(b"\n")[number - 1]
        try:
            blank = not line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            blank = False
        assert (number in numbers) != blank
