"""What a stream means: times, tokens and errors, in each dialect, however it is cut into pieces."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.bench.speech import read, request
from miyabi_llm.bench.values import Call, Item, Piece, Raw, Speech, Target
from miyabi_llm.types import Endpoint, Secret

MS = 1_000_000


def sse(*values: object) -> list[bytes]:
    return [b"data: " + (v if isinstance(v, bytes) else json.dumps(v).encode()) + b"\n\n" for v in values]


def delta(finish: str | None = None, **fields: object) -> object:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}}
CHAT = sse(
    delta(role="assistant", content=""), delta(content="a"), delta(content="bc"), delta("stop"), USAGE, b"[DONE]"
)
OLLAMA = [
    json.dumps(v).encode() + b"\n"
    for v in (
        {"message": {"role": "assistant", "content": ""}, "done": False},
        {"message": {"content": "a"}, "done": False},
        {"message": {"content": "bc"}, "done": False},
        {"message": {"content": ""}, "done": True, "done_reason": "stop", "prompt_eval_count": 9, "eval_count": 4}
        | {"prompt_eval_duration": 5 * MS, "eval_duration": 7 * MS, "load_duration": MS},
    )
]
ANTHROPIC = sse(
    {"type": "message_start", "message": {"usage": {"input_tokens": 9, "cache_read_input_tokens": 3}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "bc"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}},
    {"type": "message_stop"},
)
STREAMS: dict[Speech, list[bytes]] = {"openai-chat": CHAT, "ollama": OLLAMA, "anthropic": ANTHROPIC}


def raw(pieces: Sequence[bytes], status: int = 200) -> Raw:
    stamped = [Piece((i + 1) * MS, 0, data) for i, data in enumerate(pieces)]
    return Raw(Call(b""), 0, 0, 0, len(pieces) * MS, status, stamped)


@pytest.mark.parametrize("speech", STREAMS)
def test_the_same_answer_in_each_dialect(speech: Speech) -> None:
    sample = read(raw(STREAMS[speech]), speech)
    assert sample.ok
    assert (sample.text, sample.prompt_tokens, sample.output_tokens) == ("abc", 9, 4)
    content = next(i for i, data in enumerate(STREAMS[speech]) if b'"a"' in data)
    assert sample.first_ns == (content + 1) * MS, "a piece with a role only is no first token"
    assert len(sample.times_ns) == 2


@pytest.mark.parametrize("speech", STREAMS)
def test_a_stream_cut_anywhere_is_never_a_success(speech: Speech) -> None:
    whole = b"".join(STREAMS[speech])
    ends = {"openai-chat": b'"finish_reason": "stop"', "ollama": b'"done": true', "anthropic": b"stop_reason"}
    end = whole.index(ends[speech])
    for cut in range(1, end):
        assert not read(raw([whole[:cut]]), speech).ok, whole[:cut][-40:]


@pytest.mark.parametrize("speech", STREAMS)
@given(data=st.data())
def test_the_meaning_does_not_depend_on_the_pieces(speech: Speech, data: st.DataObject) -> None:
    whole = b"".join(STREAMS[speech])
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    sample = read(raw(pieces), speech)
    assert (sample.ok, sample.text, sample.output_tokens) == (True, "abc", 4)


@pytest.mark.parametrize("speech", STREAMS)
@given(data=st.binary(max_size=200))
def test_garbage_is_an_error_and_no_crash(speech: Speech, data: bytes) -> None:
    assert not read(raw([data]), speech).ok or b'"' in data


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        (sse({"error": {"message": "slot unavailable"}}), "refused"),
        ([b'{"error": {"message": "no"}}'], "refused"),
        (sse(delta(content="a"), {"error": {"message": "died"}}), "refused"),
        (sse(delta("stop"), b"[DONE]"), "refused"),
        (sse(delta(content="a")), "cut"),
        (sse(b"{nope"), "garbled"),
        ([], "cut"),
    ],
)
def test_errors_under_a_200(pieces: list[bytes], error: str) -> None:
    assert read(raw(pieces), "openai-chat").error == error


def test_tokens_from_the_best_source() -> None:
    timings = {"choices": [], "timings": {"prompt_ms": 5.0, "predicted_ms": 7.0, "predicted_n": 3, "cache_n": 2}}
    sample = read(raw([*CHAT[:4], *sse(timings), CHAT[5]]), "openai-chat")
    assert (sample.output_tokens, sample.provenance, sample.server_output_ms) == (3, "server timings", 7.0)
    assert sample.cached_tokens == 2
    assert read(raw([*CHAT[:4], CHAT[5]]), "openai-chat").provenance == "chunks"
    assert read(raw(CHAT), "openai-chat").provenance == "usage"
    counted = [sse(delta(content=t) | {"usage": {"completion_tokens": n}})[0] for t, n in (("a", 2), ("b", 3))]  # type: ignore[operator]
    sample = read(raw([*counted, *CHAT[3:]]), "openai-chat")
    assert (sample.provenance, sample.first_tokens) == ("usage per chunk", 2)


def test_reasoning_is_apart() -> None:
    sample = read(raw(sse(delta(reasoning_content="hm"), delta(content="a"), delta("stop"))), "openai-chat")
    assert (sample.reasoning_ns, sample.first_ns, sample.text) == (MS, 2 * MS, "a")


@pytest.mark.parametrize("speech", ["openai-chat", "openai-completions", "ollama", "anthropic"])
def test_a_request_is_whole_http(speech: Speech) -> None:
    target = Target("t", Endpoint("http://127.0.0.1:8080", "m", key=Secret("k")), speech)
    item = Item("i", ({"role": "system", "content": "s"}, {"role": "user", "content": "日本"}), max_tokens=5)
    head, _, body = request(target, item).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"Authorization: Bearer k" in head
    assert json.loads(body)["model"] == "m"
    assert "日本" in body.decode()
