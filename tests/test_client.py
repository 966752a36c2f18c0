"""The client: one stream parser for every cutting of the bytes, and no part taken for the whole."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm.client import Client, Delta, Message, Meter, Usage, base_url
from miyabi_llm.client.http import is_local
from miyabi_llm.client.sse import SseEvent, SseParser
from miyabi_llm.client.values import read_chunk
from miyabi_llm.errors import (
    AccessDenied,
    AnswerCut,
    BadUsage,
    MiyabiError,
    ModelMissing,
    NetworkError,
    PromptTooLong,
    ServerFailed,
)
from miyabi_llm.types import Endpoint, Secret
from tests.openaid import WORDS, Openaid, normal, serving

HI = [Message("user", "hi")]


@pytest.fixture(scope="module")
def server() -> Iterator[Openaid]:
    with serving() as s:
        yield s


def ask(server: Openaid, model: str, idle_s: float = 10) -> list[Delta]:
    with Client(Endpoint(server.url, model), idle_s=idle_s) as client:
        return list(client.chat(HI))


def parse(data: bytes, cuts: list[int] = []) -> list[SseEvent]:  # noqa: B006
    parser, found, last = SseParser(), [], 0
    for cut in [*sorted(cuts), len(data)]:
        found += parser.feed(data[last:cut])
        last = cut
    return found


# --- the parser

LINES = st.lists(
    st.one_of(
        st.sampled_from(
            ["", "data", "data:", "data: ", ": ping", "event: error", "id: 1", "retry: 5", "odd: x", "\ufeff"]
        ),
        st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12).map(lambda t: f"data: {t}"),
    ),
    max_size=12,
)


@given(LINES, st.lists(st.sampled_from(["\n", "\r", "\r\n"]), min_size=12, max_size=12), st.booleans(), st.data())
def test_the_same_events_for_any_cutting(lines: list[str], ends: list[str], bom: bool, data: st.DataObject) -> None:
    text = "".join(line + end for line, end in zip(lines, ends, strict=False))
    body = (b"\xef\xbb\xbf" if bom else b"") + text.encode()
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=8))
    whole = parse(body)
    assert parse(body, cuts) == whole
    assert parse(body, list(range(len(body)))) == whole


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_any_bytes_give_events_or_one_explained_error(body: bytes, cuts: list[int]) -> None:
    def result(cuts: list[int]) -> object:
        try:
            return parse(body, [min(c, len(body)) for c in cuts])
        except NetworkError:
            return "error"

    assert result(cuts) == result([])


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (b"data: a\n\n", ["a"]),
        (b"data:a\r\rdata: b\r\n\r\n", ["a", "b"]),
        (b"\xef\xbb\xbfdata: a\ndata: b\n\n", ["a\nb"]),
        (b": ping\n\ndata\n\n", [""]),
        (b"data:  two\n\n", [" two"]),
        (b"data: unfinished\n", []),
        (b"event: error\n\ndata: x\n\n", ["x"]),
    ],
)
def test_the_grammar(body: bytes, events: list[str]) -> None:
    assert [e.data for e in parse(body)] == events


def test_an_event_has_a_type_and_an_id() -> None:
    assert parse(b"id: 7\nevent: error\ndata: x\n\ndata: y\n\n") == [
        SseEvent("error", "x", "7"),
        SseEvent("message", "y", "7"),
    ]


@pytest.mark.parametrize("piece", [b"x" * 100, b"data: " + b"x" * 50 + b"\n"], ids=["line", "event"])
def test_memory_is_bounded(piece: bytes) -> None:
    parser = SseParser(limit=1000)
    with pytest.raises(NetworkError, match="1,000 bytes"):
        any(parser.feed(piece) for _ in range(100))


# --- streams


def test_a_good_stream(server: Openaid) -> None:
    deltas = ask(server, "normal")
    assert [d.text for d in deltas if d.text] == WORDS
    assert [d.finish_reason for d in deltas if d.finish_reason] == ["stop"]
    assert [d.usage for d in deltas if d.usage] == [Usage(7, 5, 2)]
    assert server.asked[-1]["stream_options"] == {"include_usage": True}
    assert "return_progress" not in server.asked[-1]  # unknown servers get no unknown fields


def test_what_llama_server_adds() -> None:
    with serving(context=4096) as server, Client(Endpoint(server.url, "counted")) as client:
        deltas = list(client.chat(HI, {"temperature": 0.5}))
        assert client.context_size() == 4096
        assert client.count_prompt([Message("system", "be brief"), *HI]) == 3
        assert server.asked[-1]["temperature"] == 0.5
        assert server.asked[-1]["return_progress"] is True
    assert [d.progress for d in deltas if d.progress] == [(2, 4)]
    assert "".join(d.reasoning for d in deltas) == "hm"
    assert "".join(d.text for d in deltas) == "42"


@pytest.mark.parametrize("model", ["bare", "whole"])
def test_streams_without_trimmings_are_whole(server: Openaid, model: str) -> None:
    assert ask(server, model)[-1].finish_reason == "stop"


@pytest.mark.parametrize("model", ["endless", "done-only", "cut", "reset", "error", "error-event", "error-200"])
def test_a_part_is_never_the_whole(server: Openaid, model: str) -> None:
    server.cut_at = 120
    with pytest.raises(AnswerCut):
        ask(server, model)


def test_the_servers_own_words_are_kept(server: Openaid) -> None:
    with pytest.raises(AnswerCut, match="out of memory"):
        ask(server, "error")
    with pytest.raises(AnswerCut, match="overloaded"):
        ask(server, "error-event")
    with pytest.raises(AnswerCut, match="model crashed"):
        ask(server, "error-200")


def test_a_stream_cut_anywhere_before_its_finish_reason_is_an_error(server: Openaid) -> None:
    body = normal()
    whole_from = body.index(b"\n\n", body.index(b'"stop"')) + 2
    cuts = [*range(0, whole_from, 13), whole_from - 1]
    with Client(Endpoint(server.url, "cut")) as client:
        for server.cut_at in cuts:
            with pytest.raises(AnswerCut):
                list(client.chat(HI))
        for server.cut_at in (whole_from, whole_from + 5, len(body)):
            assert "".join(d.text for d in client.chat(HI)) == "".join(WORDS)


@pytest.mark.parametrize("model", ["garbage", "deep", "latin", "long", "html"])
def test_what_is_no_stream_is_an_error(server: Openaid, model: str) -> None:
    with pytest.raises(NetworkError):
        ask(server, model)


def test_silence_ends(server: Openaid) -> None:
    start = time.perf_counter()
    with pytest.raises(AnswerCut, match="silent"):
        ask(server, "silent", idle_s=0.3)
    assert time.perf_counter() - start < 5


def test_closing_the_stream_tells_the_server(server: Openaid) -> None:
    server.gone.clear()
    with Client(Endpoint(server.url, "slow")) as client:
        stream = client.chat(HI)
        for _ in range(3):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert server.gone.wait(3)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ("401", AccessDenied, "who are you"),
        ("404", ModelMissing, "not found"),
        ("429", NetworkError, "wait 7 s"),
        ("500", NetworkError, "answered 500"),
        ("503", ServerFailed, "Loading model"),
        ("redirect", NetworkError, "redirect"),
        ("tight", PromptTooLong, "4,096 tokens; the context is 2,048"),
    ],
)
def test_a_refusal_is_explained(server: Openaid, model: str, error: type[MiyabiError], words: str) -> None:
    with pytest.raises(error, match=words):
        ask(server, model)


def test_nobody_there_is_explained() -> None:
    with serving() as server:
        pass
    with pytest.raises(NetworkError, match="no answer from http://127") as e:
        ask(server, "normal")
    assert "miyabi-llm ps" in (e.value.hint or "")


# --- the rest


def test_models_and_a_server_that_cannot_count(server: Openaid) -> None:
    with Client(Endpoint(server.url, "normal")) as client:
        assert client.models() == ("normal", "slow")
        assert client.kind() == "other"
        assert client.context_size() is None
        assert client.count_prompt(HI) is None


def test_the_key_goes_in_the_header_and_in_no_repr(server: Openaid) -> None:
    with Client(Endpoint(server.url, "normal", key=Secret("sesame"))) as client:
        list(client.chat(HI))
        assert "sesame" not in repr(client.endpoint)
    assert server.headers[-1]["authorization"] == "Bearer sesame"


def test_a_local_server_is_reached_past_any_proxy(server: Openaid, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert ask(server, "normal")


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:80", True),
        ("http://[::1]:80", True),
        ("http://localhost.", True),
        ("http://192.168.1.2", True),
        ("https://api.example.com", False),
        ("https://127.0.0.1.example.com", False),
        ("https://8.8.8.8", False),
    ],
)
def test_local_by_its_text(url: str, local: bool) -> None:
    assert is_local(url) is local


@pytest.mark.parametrize(
    ("typed", "base"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/v1/", "http://127.0.0.1:8080"),
        ("https://host/api/v1", "https://host/api"),
    ],
)
def test_addresses_as_typed(typed: str, base: str) -> None:
    assert base_url(typed) == base


@pytest.mark.parametrize("typed", ["", "host:80", "ftp://h", "http://", "http://u:p@h", "http://h:x", "http://h?key=1"])
def test_what_is_no_address(typed: str) -> None:
    with pytest.raises(BadUsage):
        base_url(typed)


def test_the_meter_counts_between_the_first_and_the_last_word() -> None:
    times = iter([0.0, 1.0, 2.0, 5.0, 6.0])
    meter = Meter(lambda: next(times))
    for delta in (Delta(progress=(1, 2)), Delta(text="a"), Delta(text="b"), Delta(text="c"), Delta(usage=Usage(9, 5))):
        meter.see(delta)
    stats = meter.stats()
    assert (stats.ttft_s, stats.total_s, stats.tokens_per_second, stats.clock) == (1.0, 6.0, 1.0, "client")


def test_the_meter_prefers_the_servers_rate() -> None:
    meter = Meter()
    meter.see(Delta(text="a", timings={"predicted_per_second": 12.5, "prompt_per_second": "bad"}))
    stats = meter.stats()
    assert (stats.tokens_per_second, stats.prompt_per_second, stats.clock) == (12.5, None, "server")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "message", "content", "finish_reason", "usage", "error", "prompt_tokens"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(["choices", "usage", "error", "timings", "prompt_progress"]), JSON))
def test_any_json_is_a_delta_or_an_explained_error(body: dict[str, object]) -> None:
    try:
        delta = read_chunk(body)
    except MiyabiError:
        return
    (delta.text + delta.reasoning).encode()


def test_a_lone_surrogate_can_be_printed() -> None:
    body = json.loads(r'{"choices": [{"delta": {"content": "a\ud83dz"}}]}')
    assert read_chunk(body).text == "a\N{REPLACEMENT CHARACTER}z"
