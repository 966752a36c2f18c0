"""Workload files: what is read, and how what cannot be is named."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.bench.workload import BUILT_IN, load_workload
from miyabi_llm.bench.workload.rows import parse
from miyabi_llm.errors import BadUsage


def written(path: Path, *rows: object) -> str:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_workloads(name: str) -> None:
    found = load_workload(name)
    assert (found.name, found.license, len(found.sha256)) == (name, "CC0-1.0", 64)
    assert len(found.items) >= 12
    assert len({item.messages[-1]["content"] for item in found.items}) == len(found.items)
    assert all(item.messages[0]["role"] == "system" for item in found.items), "the number goes before all other words"
    assert any(ord(c) > 0x3000 for item in found.items for c in item.messages[-1]["content"]), "Japanese too"
    assert {item.max_tokens for item in load_workload(name, max_tokens=7).items} == {7}


def test_each_form_of_a_row(tmp_path: Path) -> None:
    message = {"role": "user", "content": "a"}
    path = written(
        tmp_path / "w.jsonl",
        {"messages": [message], "max_tokens": 5, "temperature": 0, "category": "x", "params": {"mirostat": 1}},
        "",
        {"id": 7, "prompt": "p"},
        {"custom_id": "c", "method": "POST", "body": {"model": "m", "messages": [message], "max_completion_tokens": 9}},
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "1"},
                {"from": "gpt", "value": ""},
                {"from": "human", "value": "2"},
            ]
        },
    )
    found = load_workload(path)
    a, p, c, s = found.items
    assert (found.name, found.license) == ("w.jsonl", "")
    assert (a.id, a.max_tokens, a.params) == ("row-1", 5, {"temperature": 0, "mirostat": 1})
    assert (p.id, p.prompt, p.messages, p.max_tokens) == ("7", "p", (), 128)
    assert (c.id, c.max_tokens, c.params) == ("c", 9, {})
    assert [m["content"] for m in s.messages] == ["s", "1"]
    assert s.more == ("2",)


def test_a_list_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps([{"id": "a", "conversations": [{"from": "human", "value": "hi"}]}], indent=2))
    assert [item.id for item in load_workload(str(path)).items] == ["a"]


def test_bad_rows_are_named_by_line(tmp_path: Path) -> None:
    path = written(tmp_path / "w.jsonl", {"id": "a", "prompt": "x"}, "{nope", {"id": "a", "prompt": "y"}, {"text": "z"})
    with pytest.raises(BadUsage) as e:
        load_workload(path)
    assert "3 bad rows of 4" in e.value.message
    for line in ("row 2: not JSON", "row 3: id 'a' is already in row 1", "row 4: neither messages"):
        assert line in e.value.message


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (5, "not a JSON object"),
        ({"messages": []}, "not a list with a message"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\] has no role"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] has no content"),
        ({"messages": [{"role": "system", "content": "x"}]}, "no user's message"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": ["a"]}, "prompt is not text"),
        ({"prompt": "\ud800"}, "half a character"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half a character"),
        ({"prompt": "a", "params": {"stream": False}}, "params holds stream"),
        ({"prompt": "a", "max_tokens": 0}, "not a whole number above 0"),
        ({"prompt": "a", "max_tokens": True}, "not a whole number above 0"),
        ({"conversations": [{"from": "ghost", "value": "x"}]}, r"conversations\[0\] is from nobody"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "no word of a user"),
        ({"prompt": "a", "params": []}, "params is not an object"),
        ({"prompt": "a", "id": {}}, "neither text nor a number"),
    ],
)
def test_what_is_wrong_with_a_row(row: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(row, 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["messages", "prompt", "role", "content", "conversations", "from", "value", "more", "body"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_row_is_a_crash(row: object) -> None:
    try:
        item = parse(row, 1)
    except ValueError:
        return
    assert item.prompt or item.messages


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [("w.jsonl", b"", "no question"), ("w.jsonl", b"\xff", "not UTF-8"), ("w.json", b"[{", "like a JSON list")],
)
def test_files_that_are_none(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadUsage, match=said):
        load_workload(str(tmp_path / name))


def test_unknown_names() -> None:
    with pytest.raises(BadUsage, match="no workload chatt") as e:
        load_workload("chatt")
    assert "code-review" in str(e.value.hint)
    with pytest.raises(BadUsage, match="No such file"):
        load_workload("nowhere.jsonl")
