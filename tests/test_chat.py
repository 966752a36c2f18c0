"""Conversations as values: their options, their file, and the check before anything is sent."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm import chat
from miyabi_llm.chat import Budget, ChatOptions, Session
from miyabi_llm.client import Client, Message, Usage
from miyabi_llm.errors import BadUsage, PromptTooLong
from miyabi_llm.types import Endpoint
from tests.openaid import serving

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
OPTIONS = st.builds(
    ChatOptions,
    temperature=st.none() | st.floats(0, 5),
    top_k=st.none() | st.integers(0, 100),
    seed=st.none() | st.integers(0, 2**32 - 1),
    stop=st.lists(TEXT, max_size=2).map(tuple),
    reasoning=st.none() | st.sampled_from(["on", "off", "high"]),
    schema=st.none() | st.just({"type": "object"}),
)
SESSIONS = st.builds(
    Session,
    model=TEXT,
    options=OPTIONS,
    system=st.none() | TEXT,
    turns=st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), TEXT), max_size=4).map(tuple),
)


# --- options


def test_options_become_the_fields_of_a_request() -> None:
    options = ChatOptions(0.5, 0.9, 40, 0.05, 7, 100, ("END",), "high", {"type": "object"})
    assert options.params() == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "seed": 7,
        "max_tokens": 100,
        "stop": ["END"],
        "reasoning_effort": "high",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
    }
    assert ChatOptions().params() == {}
    assert ChatOptions(reasoning="off").params() == {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("temperatur", "1", "did you mean temperature"),
        ("temperature", "hot", "not a number"),
        ("temperature", "9", "between 0 and 5"),
        ("temperature", "nan", "between"),
        ("top_k", "1.5", "not a number"),
        ("seed", "-1", "between"),
        ("max_tokens", "0", "between"),
        ("reasoning", "much", "one of on, off"),
        ("schema", "{}", "unknown option"),
    ],
)
def test_a_wrong_option_is_explained(key: str, text: str, words: str) -> None:
    with pytest.raises(BadUsage, match=words):
        ChatOptions().with_text(key, text)


def test_options_as_typed() -> None:
    options = ChatOptions().with_text("temperature", "0").with_text("top_k", "3").with_text("stop", "END")
    assert options == ChatOptions(temperature=0.0, top_k=3, stop=("END",))
    assert options.with_text("stop", "default").with_text("top_k", "default") == ChatOptions(temperature=0.0)


# --- sessions


def test_operations_copy() -> None:
    empty = Session("m", system="be brief")
    talk = empty.said("one").answered("1").said("two").answered("2")
    assert [m.content for m in talk.messages()] == ["be brief", "one", "1", "two", "2"]
    assert talk.retried().turns == talk.turns[:3]
    assert talk.retried().retried() == talk.retried()  # a question without an answer is asked again
    assert talk.undone() == empty.said("one").answered("1")
    assert talk.retried().undone() == talk.undone()
    assert talk.cleared() == empty
    with pytest.raises(BadUsage):
        empty.retried()


@given(SESSIONS)
def test_a_session_comes_back_from_its_file(session: Session) -> None:
    assert chat.loads(session.to_json()) == session


def test_saving_is_private_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text("old")
    path.chmod(0o644)
    session = Session("m").said("世界")
    chat.save(session, path)
    assert chat.load(path) == session
    assert os.listdir(tmp_path) == ["s.json"]
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_saving_where_it_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="not saved"):
        chat.save(Session("m"), tmp_path / "no" / "s.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadUsage, match="not saved"):
        chat.save(Session("m"), tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


GOOD = {"miyabi_llm_session": 1, "model": "m", "system": None, "options": {}, "turns": []}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a saved session"),
        (GOOD | {"miyabi_llm_session": 2}, "version 2"),
        (GOOD | {"sytem": "x"}, "did you mean system"),
        (GOOD | {"model": 1}, "must be text"),
        (GOOD | {"turns": {}}, "turns a list"),
        (GOOD | {"turns": [{"role": "user"}]}, r"turns\[0\]"),
        (GOOD | {"turns": [{"role": "root", "content": "x"}]}, r"turns\[0\]: role"),
        (GOOD | {"options": {"top_kk": 1}}, "did you mean top_k"),
        (GOOD | {"options": {"top_k": "many"}}, "options.top_k"),
        (GOOD | {"options": {"top_k": True}}, "options.top_k"),
        (GOOD | {"options": {"stop": "x"}}, "options.stop"),
        (GOOD | {"options": {"schema": []}}, "options.schema"),
    ],
)
def test_a_bad_file_is_explained(body: object, words: str) -> None:
    with pytest.raises(BadUsage, match=words):
        chat.loads(body if isinstance(body, str) else json.dumps(body))


@pytest.mark.parametrize(("data", "words"), [(b"\xff", "UTF-8"), (b"x" * 101, "too long"), (None, "No such")])
def test_a_file_that_is_no_prompt(tmp_path: Path, data: bytes | None, words: str) -> None:
    path = tmp_path / "f"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(BadUsage, match=words):
        chat.read_text(path, limit=100)


# --- the budget


def test_a_prompt_that_cannot_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(PromptTooLong, match="has 100,412 tokens; the context is 8,192") as e:
        chat.judge(Budget(100_412, True, 8192, None), 400_000)
    assert e.value.hint is not None
    assert "--ctx 101376" in e.value.hint
    with pytest.raises(PromptTooLong, match="the answer may take 500"):
        chat.judge(Budget(7700, True, 8192, 500), 0)
    assert not chat.judge(Budget(7692, True, 8192, 500), 0).warnings  # it fits, and was asked to be that long
    assert chat.judge(Budget(7692, True, 8192, None), 0).warnings
    with pytest.raises(PromptTooLong) as e:
        chat.judge(Budget(50_000, True, 8192, None), 0, most=32_768)
    assert "trained for 32,768" in (e.value.hint or "")


def test_a_guess_refuses_only_what_surely_cannot_fit() -> None:
    assert chat.judge(Budget(2000, False, 1000, None), 6000).warnings  # a guess above the context: a warning
    with pytest.raises(PromptTooLong, match="about 10,000 tokens"):
        chat.judge(Budget(10_000, False, 1000, None), 30_000)


def test_no_warning_where_there_is_room_or_no_limit_known() -> None:
    assert not chat.judge(Budget(1000, True, 8192, None), 0).warnings
    assert not chat.judge(Budget(10**6, False, None, None), 10**7).warnings


@given(st.integers(1, 10**6), st.booleans(), st.integers(1, 10**5), st.none() | st.integers(1, 10**5))
def test_an_exact_prompt_is_sent_only_when_it_fits(prompt: int, exact: bool, context: int, most: int | None) -> None:
    try:
        chat.judge(Budget(prompt, exact, context, most), prompt * 3)
    except PromptTooLong:
        assert prompt + (most or 1) > context
    else:
        assert not exact or prompt + (most or 1) <= context


def test_a_server_that_cuts_is_caught() -> None:
    exact = Budget(1000, True, 4096, None)
    assert chat.was_cut(exact, 3000, Usage(1000, 5)) is None
    assert "read 400 prompt tokens of 1,000" in (chat.was_cut(exact, 3000, Usage(400, 5)) or "")
    guess = Budget(10_000, False, None, None)
    assert chat.was_cut(guess, 32_000, Usage(7000, 5)) is None
    assert "at least 2,000" in (chat.was_cut(guess, 32_000, Usage(512, 5)) or "")
    assert chat.was_cut(guess, 32_000, None) is None


def test_the_check_asks_the_server_before_anything_is_sent() -> None:
    with serving(context=10) as server, Client(Endpoint(server.url, "normal")) as client:
        assert chat.check(client, Session("normal").said("a b c")).prompt == 3
        with pytest.raises(PromptTooLong):
            chat.check(client, Session("normal").said("word " * 10))
        assert server.asked == []
        list(chat.ask(client, Session("normal"), "hello"))
        assert server.asked[0]["messages"] == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("length", "max_tokens", "most", "ctx"),
    [(100, None, None, None), (30_000, None, None, 11_264), (30_000, None, 8192, 8192), (100, 20_000, None, 20_480)],
)
def test_the_context_is_chosen_from_the_length(
    length: int, max_tokens: int | None, most: int | None, ctx: int | None
) -> None:
    assert chat.context_for((Message("user", "x" * length),), max_tokens, most) == ctx


def test_a_guess_counts_digits_and_signs_one_by_one() -> None:
    def guess(text: str) -> int:
        return chat.estimate((Message("user", text),)) - chat.estimate((Message("user", ""),))

    assert guess("three words here") == 6
    assert guess("123, 45") == 7
    assert guess("日本語") == 3


# --- text


@given(TEXT, TEXT)
def test_piped_text_stays_inside_its_fence(prompt: str, piped: str) -> None:
    text = chat.with_context(prompt, piped)
    if prompt.strip() and piped.strip():
        fence = text.rsplit("\n", 1)[1]
        assert text == f"{prompt}\n\n{fence}\n{piped.rstrip()}\n{fence}"
        assert fence not in piped
    else:
        assert text in (prompt, piped)


def test_a_fence_is_longer_than_those_inside() -> None:
    assert chat.with_context("why?", "````\nx\n````").endswith("\n`````")


@given(st.text(max_size=10))
def test_clean_text_can_be_sent(text: str) -> None:
    chat.clean(text).encode()
