"""The watchers of streams: whole events only, the same however the bytes are cut, and no cut taken for an end."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm.gateway.streams import Fed, Watch, judge_whole, watch
from miyabi_llm.gateway.streams.frames import Events, Lines, read_event
from tests import clauded, openaid
from tests.gateway.recorded import STREAMS, call, ollama, sse

NAMES = sorted(STREAMS)


def run(path: str, parts: list[bytes]) -> tuple[bytes, Watch, Fed]:
    """All that is passed on of these parts, and the last word."""
    watcher, good = watch(path), b""
    for part in parts:
        fed = watcher.feed(part)
        good += fed.good
        if fed.broken is not None:
            return good, watcher, fed
    fed = watcher.end()
    return good + fed.good, watcher, fed


@pytest.mark.parametrize("name", NAMES)
def test_a_good_stream_passes_unchanged(name: str) -> None:
    path, data = STREAMS[name]
    good, watcher, last = run(path, [data])
    assert good == data
    assert last.broken is None
    assert watcher.whole


@pytest.mark.parametrize("name", NAMES)
def test_G2_G3_no_cut_is_an_end(name: str) -> None:
    """Cut at every byte: never whole, and no byte of a half event is passed on."""
    path, data = STREAMS[name]
    ends = {len(data)}
    for cut in range(len(data)):
        good, watcher, last = run(path, [data[:cut]])
        if watcher.whole:  # only where nothing but a line end is missing, which says nothing
            assert data[cut:].strip() == b"", cut
            continue
        assert last.broken is not None, cut
        assert data.startswith(good)
        ends.add(len(good))
    assert len(ends) > 4


@given(st.sampled_from(NAMES), st.lists(st.integers(0, 3000), max_size=20))
@settings(deadline=None)
def test_G5_the_same_however_it_is_cut(name: str, cuts: list[int]) -> None:
    path, data = STREAMS[name]
    at = sorted({0, len(data), *(c % len(data) for c in cuts)})
    good, watcher, last = run(path, [data[a:b] for a, b in itertools.pairwise(at)])
    assert (good, last.broken, watcher.whole) == (data, None, True)


@given(st.sampled_from(NAMES), st.binary(max_size=60), st.integers(0, 4000))
@settings(max_examples=150, deadline=None)
def test_G5_bytes_put_in_never_make_a_half_answer_whole(name: str, noise: bytes, where: int) -> None:
    """What is passed on is a beginning of what came, whatever came; and it ends whole or broken."""
    path, data = STREAMS[name]
    at = where % len(data)
    dirty = data[:at] + noise + data[at:]
    good, watcher, last = run(path, [dirty])
    assert dirty.startswith(good)
    assert watcher.whole or last.broken is not None


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_G5_line_ends_comments_and_a_bom_are_no_harm(end: bytes) -> None:
    data = b"\xef\xbb\xbf" + openaid.normal().replace(b"data: [DONE]", b": a comment\nid: 7\nretry: 5\ndata: [DONE]")
    data = data.replace(b"\n", end)
    for size in (1, 2, 3, 7, len(data)):
        good, watcher, last = run("/v1/chat/completions", [data[i : i + size] for i in range(0, len(data), size)])
        assert (good, last.broken, watcher.whole) == (data, None, True)


def test_G5_data_over_several_lines() -> None:
    data = openaid.normal().replace(b'"choices": ', b'"choices":\ndata: ')
    assert run("/v1/chat/completions", [data])[2].broken is None


@pytest.mark.parametrize(
    "bad",
    [
        b"data: {nonsense\n\n",
        b"data: \xff\xfe\n\n",
        b"data: [1]\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        b"data: 7\n\n",
    ],
)
def test_G5_an_event_that_is_none_breaks(bad: bytes) -> None:
    good, _, last = run("/v1/chat/completions", [openaid.chunk(content="Hel") + bad + openaid.finish()])
    assert good == openaid.chunk(content="Hel")
    assert last.broken is not None


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
def test_G5_an_endless_event_is_bounded(path: str) -> None:
    watcher, sent = watch(path), 0
    while True:
        fed = watcher.feed(b"data: " + b"x" * (1 << 20))
        sent += 1
        if fed.broken is not None:
            break
        assert sent < 12
    assert fed.good == b""


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("/v1/chat/completions", openaid.chunk(content="Hel") + sse({"error": {"message": "x", "type": "y"}})),
        ("/v1/chat/completions", openaid.chunk(content="Hel") + sse({"message": "x"}, "error")),
        ("/v1/messages", b"".join(clauded.pieces()[:5]) + clauded.OVERLOADED),
        ("/api/chat", ollama().splitlines(keepends=True)[0] + b'{"error": "out of memory"}\n'),
        ("/v1/responses", sse({"type": "response.failed", "response": {"error": {"message": "x"}}}, "response.failed")),
    ],
)
def test_G6_an_error_event_is_no_content(path: str, data: bytes) -> None:
    good, watcher, last = run(path, [data])
    assert not watcher.whole
    assert last.broken is not None
    assert data == good + last.broken.said


def test_G16_a_call_cut_by_the_server_is_no_call() -> None:
    half = call('{"city": "東') + openaid.finish("tool_calls") + b"data: [DONE]\n\n"
    good, watcher, last = run("/v1/chat/completions", [half])
    assert good == call('{"city": "東')
    assert last.broken is not None
    good, watcher, last = run("/v1/messages", [clauded.tool_stream(['{"city": "東'])])
    assert b"tool_use" in good
    assert b"stop_reason" not in good.split(b"content_block_stop")[-1]
    assert not watcher.whole


def test_G16_a_call_cut_by_its_limit_is_told_as_such() -> None:
    half = call('{"city": "東') + openaid.finish("length") + b"data: [DONE]\n\n"
    assert run("/v1/chat/completions", [half])[2].broken is None


def test_blocks_and_messages_out_of_order_break() -> None:
    start, ping, *rest = clauded.pieces()
    for parts in (
        [*rest],
        [start, start],
        [start, rest[1]],
        [start, rest[0], rest[0]],
        [start, *rest[:3], clauded.ending()],
    ):
        assert run("/v1/messages", [b"".join(parts)])[2].broken is not None
    assert run("/v1/messages", [ping + start + b"".join(rest) + ping])[2].broken is None


@pytest.mark.parametrize("more", [b"data: [DONE]\n\n", b"\n", b": bye\n\n", b"half", b"{}\n"])
@pytest.mark.parametrize("name", NAMES)
def test_what_comes_after_the_end_is_passed_on(name: str, more: bytes) -> None:
    """Some servers end a stream of messages with `[DONE]` too."""
    path, data = STREAMS[name]
    for parts in ([data + more], [data, more], [data[:-1], data[-1:] + more]):
        good, watcher, last = run(path, parts)
        assert (good, watcher.whole, last.broken) == (data + more, True, None)


def test_usage_is_counted() -> None:
    assert [
        (w.usage.input, w.usage.output, w.usage.cache_read)
        for w in (run(*_one(STREAMS[n]))[1] for n in ("messages", "chat", "responses", "ollama chat"))
    ] == [(25, 15, 5), (7, 5, 2), (7, 5, 0), (7, 5, 0)]


def _one(stream: tuple[str, bytes]) -> tuple[str, list[bytes]]:
    return stream[0], [stream[1]]


@pytest.mark.parametrize(
    ("path", "data", "whole"),
    [
        ("/v1/messages", b'{"type":"message","content":[],"stop_reason":"end_turn","usage":{"input_tokens":3}}', True),
        ("/v1/messages", b'{"type":"message","content":[],"stop_reason":null}', False),
        ("/v1/messages", b'{"type":"error","error":{"type":"overloaded_error","message":"x"}}', False),
        ("/v1/messages", b'{"type":"message","content":[],"stop_reason":"end_turn"', False),
        ("/v1/messages/count_tokens", b'{"input_tokens": 5}', True),
        ("/v1/messages/count_tokens", b"{}", False),
        ("/v1/chat/completions", b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}', True),
        ("/v1/chat/completions", b'{"choices":[{"message":{"content":"a"}}]}', False),
        ("/v1/chat/completions", b'{"choices":[]}', False),
        ("/v1/chat/completions", b'{"error": "model crashed"}', False),
        ("/v1/embeddings", b'{"data":[{"embedding":[1.0]}]}', True),
        ("/v1/embeddings", b"[1]", True),
        ("/v1/embeddings", b"{}", False),
        ("/v1/responses", b'{"status":"completed","output":[]}', True),
        ("/v1/responses", b'{"status":"failed"}', False),
        ("/api/chat", b'{"message":{"content":"a"},"done":true,"eval_count":4}', True),
        ("/api/chat", b'{"message":{"content":"a"},"done":false}', False),
        ("/api/show", b"{}", True),
        ("/v1/chat/completions", b"<html>log in</html>", False),
    ],
)
def test_G6_G17_answers_in_one_piece(path: str, data: bytes, whole: bool) -> None:
    broken, _ = judge_whole(path, data)
    assert (broken is None) is whole


@given(st.binary(max_size=200), st.integers(1, 7))
@settings(deadline=None)
def test_frames_lose_nothing(data: bytes, size: int) -> None:
    for frames in (Events(), Lines()):
        got = b"".join(b"".join(frames.feed(data[i : i + size])) for i in range(0, len(data), size))
        assert got + b"".join(frames.last()) + frames.rest() == data


@given(st.text(max_size=40))
@settings(deadline=None)
def test_an_event_is_read_as_it_was_written(text: str) -> None:
    line = text.replace("\r", " ").replace("\n", " ").replace("\0", " ")
    event = read_event(f"event: x\ndata: {line}\n\n".encode("utf-8", "replace"))
    assert event is not None
    assert event.name == "x"
