"""The bytes of a request: parsed once, changed as little as can be, and refused where two readers would differ."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm.errors import BadUsage
from miyabi_llm.gateway.adapt import Adapted, adapt
from miyabi_llm.gateway.body import parse
from miyabi_llm.gateway.headers import down, up
from miyabi_llm.route.values import Target, Upstream

CLAUDE = Target("claude", "claude", Upstream("https://api.anthropic.com"))
OPUS = Target("claude", "claude", Upstream("https://api.anthropic.com", "claude-opus-5-5"))
HERE = Target("here", "local", Upstream("http://127.0.0.1:1", "qwen2.5-coder:1.5b"))
BILLING = "x-anthropic-billing-header: cc_version=2.1.0.abc; cc_entrypoint=cli; cch={};"
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "abc"}
TEXT = {"type": "text", "text": "答え"}


def made(body: dict[str, Any], target: Target, *, first: bool = True, headers: dict[str, str] | None = None) -> Adapted:
    data = json.dumps(body, ensure_ascii=False, indent=1).encode()
    return adapt(parse(data), tuple((headers or {}).items()), target, path="/v1/messages", first=first)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=6), json_values, max_size=6), st.sampled_from([None, 1, "\t"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_member_stands_where_it_is_said_to(body: dict[str, Any], indent: Any, plain: bool) -> None:
    data = json.dumps(body, indent=indent, ensure_ascii=plain).encode("utf-8", "surrogatepass")
    try:
        found = parse(data)
    except BadUsage:
        assert any("\ud800" <= c <= "\udfff" for c in data.decode("utf-8", "surrogatepass"))
        return
    assert found.plain() == body
    for name, member in found.members.items():
        assert json.loads(found.text[member.start : member.end]) == body[name]
    gone = frozenset(list(body)[::2])
    assert json.loads(found.replaced({}, gone)) == {k: v for k, v in body.items() if k not in gone}
    assert found.replaced({}) == data


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_parsing_never_fails_in_another_way(data: bytes) -> None:
    try:
        assert isinstance(json.loads(data), dict)
        parse(data)
    except (BadUsage, ValueError, AssertionError):
        with pytest.raises(BadUsage):
            parse(data)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "7", '"x"', "{", '{"a":1,}', '{"a":1} x', '{"a" 1}', "{'a':1}", '{"a":1 "b":2}', '{"a":NaN}',
        '{"a":1,"a":2}', '{"a":1,"\\u0061":2}', '{"a":{"b":1,"b":2}}', '{"a":[{"b":1,"b":2}]}', "[" * 100_000,
        '{"a":' + "[" * 100_000,
    ],
)  # fmt: skip
def test_what_two_readers_would_read_differently_is_no_request(text: str) -> None:
    with pytest.raises(BadUsage):
        parse(text.encode())


def test_nothing_to_adapt_is_nothing_changed() -> None:
    body = {"model": "claude-opus-5-5", "messages": [{"role": "user", "content": "x"}], "temperature": 0.5}
    for target in (CLAUDE, OPUS):
        assert made(body, target) == Adapted(json.dumps(body, indent=1).encode(), ())


def test_another_name_for_the_model_is_all_that_changes() -> None:
    data = b'{ "messages": [{"role":"user","content":"\\u0041 \\"model\\": \\"x\\""}],\r\n'
    data += b' "model"  :  "fast" , "max_tokens":5}'
    found = adapt(parse(data), (), HERE, path="/v1/messages", first=True)
    assert found.data == data.replace(b'"fast"', b'"qwen2.5-coder:1.5b"')
    assert found.changes == ("model",)


def test_the_billing_hash_is_pinned_for_local_targets_only() -> None:
    def body(hash_: str) -> dict[str, Any]:
        system = [{"type": "text", "text": BILLING.format(hash_)}, {"type": "text", "text": "You are cch=abc."}]
        return {"model": HERE.endpoint.model, "system": system, "messages": []}

    one, two = (made(body(h), HERE) for h in ("00d5f", "1a2b3"))
    assert one.data == two.data
    assert one.changes == ("billing",)
    assert b"You are cch=abc." in one.data
    assert len(one.data) == len(made(body("00d5f"), CLAUDE).data)
    assert made(body("00d5f"), CLAUDE).changes == ()


def test_thinking_goes_where_another_model_answers() -> None:
    messages = [
        {"role": "user", "content": "thinking?"},
        {"role": "assistant", "content": [THOUGHT, TEXT]},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, TEXT]},
    ]
    body = {"model": "m", "messages": messages}
    assert made(body, CLAUDE).changes == ()
    for found in (made(body, CLAUDE, first=False), made(body, HERE)):
        said = json.loads(found.data)["messages"]
        assert [m["content"] for m in said] == ["thinking?", [TEXT], [TEXT]]
        assert "thinking" in found.changes


def test_thinking_of_a_local_model_never_goes_to_claude() -> None:
    unsigned = {"type": "thinking", "thinking": "hm", "signature": ""}
    body = {"model": "m", "messages": [{"role": "assistant", "content": [unsigned, THOUGHT, TEXT]}]}
    assert json.loads(made(body, CLAUDE).data)["messages"][0]["content"] == [THOUGHT, TEXT]


def test_a_message_of_thinking_alone_is_left() -> None:
    body = {"model": HERE.endpoint.model, "messages": [{"role": "assistant", "content": [THOUGHT]}]}
    assert made(body, HERE).changes == ()


def test_betas_and_sampling() -> None:
    body = {"model": "m", "temperature": 0.5, "top_p": 0.9, "messages": []}
    new = {"anthropic-version": "2026-10-21", "anthropic-beta": "x"}
    assert made(body, CLAUDE, headers=new).changes == ()  # what was meant for Claude is the client's to say
    other = made(body, CLAUDE, first=False, headers=new)
    assert json.loads(other.data) == {"model": "m", "messages": []}
    assert other.changes == ("sampling",)
    assert made(body, CLAUDE, first=False, headers=new | {"anthropic-version": "2023-06-01"}).changes == ()
    here = made(body, HERE, headers=new)
    assert here.changes == ("model", "betas")
    assert [k for k, _ in here.headers] == ["anthropic-version"]


def test_headers_to_a_cloud_are_by_an_allow_list() -> None:
    said = (
        ("Host", "x"), ("Authorization", "Bearer k"), ("X-Api-Key", "k"), ("Cookie", "c"), ("x-miyabi-hint", "bulk"),
        ("anthropic-version", "2023-06-01"), ("Content-Type", "application/json"), ("x-forwarded-for", "10.0.0.1"),
        ("x-internal-customer", "Tanaka"), ("User-Agent", "u"), ("accept-encoding", "gzip"),
    )  # fmt: skip
    assert [k for k, _ in up(said, cloud=True)] == ["anthropic-version", "Content-Type", "User-Agent"]
    assert "x-internal-customer" in [k for k, _ in up(said, cloud=False)]
    assert not {"authorization", "x-api-key", "cookie"} & {k.lower() for k, _ in up(said, cloud=False)}


def test_headers_from_a_server() -> None:
    said = (("Set-Cookie", "x"), ("access-control-allow-origin", "*"), ("request-id", "r"), ("x-miyabi-route", "lie"))
    assert down(said) == (("request-id", "r"),)
