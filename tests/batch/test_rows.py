"""What a line of the input means, whatever it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm.batch import Problem, Row, Shape, reading
from miyabi_llm.batch.rows import parse
from miyabi_llm.batch.values import URLS
from miyabi_llm.errors import BadUsage, MiyabiError
from tests.batch.batches import request, write

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["custom_id", "method", "url", "body", "prompt", "messages", "input", "stream"])
VALUES = JSON | st.sampled_from(["POST", *URLS]) | st.just({"messages": [{"role": "user", "content": "hi"}]})
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=5).map(lambda d: json.dumps(d).encode())
GOOD = st.text(min_size=1, max_size=3).map(lambda name: json.dumps(request(name, "hi")).encode())
LINES = (st.binary(max_size=40) | OBJECTS | GOOD).map(lambda b: b.replace(b"\n", b" "))
SHAPES = st.builds(Shape, to=st.sampled_from(list(URLS.values())), text=st.booleans())


def bad(line: object, shape: Shape | None = None) -> str:
    data = line if isinstance(line, bytes) else json.dumps(line).encode()
    found = parse(data, 1, shape or Shape())
    assert isinstance(found, Problem), found
    return found.message


def good(line: object, shape: Shape | None = None, number: int = 1) -> Row:
    found = parse(json.dumps(line).encode(), number, shape or Shape())
    assert isinstance(found, Row), found
    return found


@given(LINES, SHAPES)
def test_any_line_is_a_request_a_problem_or_blank(line: bytes, shape: Shape) -> None:
    found = parse(line, 7, shape)
    if isinstance(found, Row):
        assert found.url in URLS
        assert found.custom_id
        assert json.loads(json.dumps(found.body, allow_nan=False)) == found.body
    elif found is not None:
        assert found.line == 7
        assert found.message


@settings(max_examples=40)
@given(st.lists(LINES, max_size=12))
def test_every_line_is_sent_named_or_blank(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("in") / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        found = reading.check(path, Shape())
    except BadUsage:
        assert not any(parse(line, n, Shape()) for n, line in enumerate(lines, 1))
        return
    sent, named = [r.line for r in reading.rows(found)], [p.line for p in found.problems]
    blank = [n for n, line in enumerate(lines, 1) if parse(line, n, Shape()) is None]
    assert sorted(sent + named + blank) == list(range(1, len(lines) + 1))
    assert len(sent) == found.count


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{nonsense", "not JSON"),
        (b"[" * 100_000, "nested"),
        (b"\xff\xfe", "not UTF-8"),
        ([1], "not a JSON object"),
        ({"hello": 1}, "no `custom_id`"),
        (b'{"prompt": "x", "temperature": NaN}', "NaN"),
        (b'{"prompt": "x", "temperature": 1e999}', "too large"),
        ({**request("a", "x"), "custom_id": 7}, "custom_id"),
        ({k: v for k, v in request("a", "x").items() if k != "custom_id"}, "no `custom_id`"),
        ({**request("a", "x"), "url": "/v1/images"}, "/v1/images"),
        ({**request("a", "x"), "method": "GET"}, "only POST"),
        ({**request("a", "x"), "body": []}, "not an object"),
        ({**request("a", "x"), "body": {"prompt": "x"}}, "no `messages`"),
        ({**request("a", "x"), "body": {"messages": [], "stream": True}}, "do not stream"),
        ({**request("a", "x"), "mehtod": "POST"}, "unknown key"),
        ({"prompt": "x", "messages": []}, "both"),
        ({"prompt": ""}, "neither"),
        ({"messages": "x" * 0}, "neither"),
    ],
)
def test_a_bad_line_says_why(line: object, words: str) -> None:
    assert words in bad(line)


def test_plain_rows_become_requests_with_names_that_stay() -> None:
    shape = Shape(system="be brief", max_tokens=5, temperature=0)
    row = good({"prompt": "hi", "max_tokens": 9}, shape, 12)
    assert (row.custom_id, row.url) == ("row-12", "/v1/chat/completions")
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert row.body == {"messages": messages, "max_tokens": 9, "temperature": 0}
    own = {"messages": [{"role": "system", "content": "mine"}], "custom_id": "a"}
    assert good(own, shape).body["messages"] == own["messages"]
    assert good(own, shape).custom_id == "a"
    assert good({"prompt": "hi"}, Shape(to="completions", max_tokens=5)).body == {"prompt": "hi", "max_tokens": 5}
    assert good({"input": ["a", "b"]}, Shape(to="embeddings")).body == {"input": ["a", "b"]}
    text = parse(b'{"prompt": "an odd line"}\r\n', 3, Shape(text=True))
    assert isinstance(text, Row)
    assert text.body["messages"][0]["content"] == '{"prompt": "an odd line"}'


def test_a_batch_row_is_sent_as_it_is() -> None:
    row = good(request("a", "x"), Shape(system="be brief", max_tokens=5))
    assert row.body == request("a", "x")["body"]


def test_a_schema_goes_into_every_chat_request() -> None:
    shape = Shape(schema={"type": "object"})
    sent = good(request("a", "x"), shape).body["response_format"]
    assert sent["json_schema"] == {"name": "answer", "schema": {"type": "object"}, "strict": True}
    assert "/v1/embeddings" in bad(request("a", "x", "/v1/embeddings"), shape)


def test_duplicates_are_named_with_the_first_line(tmp_path: Path) -> None:
    rows: list[Any] = [request("a", "1"), "", request("b", "2"), request("a", "3"), "oops"]
    found = reading.check(write(tmp_path / "in.jsonl", rows), Shape())
    assert [(p.line, p.message.split(":")[0]) for p in found.problems] == [
        (4, "custom_id 'a' is already on line 1"),
        (5, "not JSON"),
    ]
    with pytest.raises(BadUsage, match="line 4: custom_id 'a' is already on line 1") as e:
        reading.refuse_bad(found)
    assert [p["line"] for p in e.value.details["problems"]] == [4, 5]


def test_a_line_without_end_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    with path.open("wb") as file:
        file.write(b'{"prompt": "')
        file.truncate(reading.LINE_LIMIT + (3 << 20))
        file.seek(0, 2)
        file.write(b'"}\n{"prompt": "next"}\n')
    found = reading.check(path, Shape())
    assert [(p.line, p.message) for p in found.problems] == [(1, "longer than 64 MiB")]
    assert [r.custom_id for r in reading.rows(found)] == ["row-2"]


def test_an_input_that_changes_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [{"prompt": "a"}])
    found = reading.check(path, Shape())
    write(path, [{"prompt": "b"}])
    with pytest.raises(MiyabiError, match="was changed"):
        list(reading.rows(found))


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_input_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(BadUsage, match="holds no request"):
        reading.check(tmp_path / "in.jsonl", Shape())


def test_a_pipe_or_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="is not a file"):
        reading.check(Path("/dev/null"), Shape())
    with pytest.raises(BadUsage, match="No such file"):
        reading.check(tmp_path / "no.jsonl", Shape())
