"""A request is looked through whole: everything serialised counts, and what cannot be seen is confidential."""

import base64
import json
import random
import urllib.parse
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm import detect
from miyabi_llm.route import facts, policy
from miyabi_llm.route.decide import decide
from miyabi_llm.route.scan import scan_request
from miyabi_llm.route.values import Limits, Privacy, State, Verdict
from tests.route.policies import BOTH

AWS = "AKIA" + "Q3EXAMPL" + "E7ZT4WMB"
SECRETS = (AWS, "090-1234-5678", "個人番号：123456789018", "taro@tanaka-shoji.co.jp", "password=hunter2!")


def request() -> dict[str, Any]:
    """A request with everything that one may hold."""
    return {
        "model": "claude-sonnet-5-5",
        "max_tokens": 100,
        "system": [{"type": "text", "text": "You are a helper.", "cache_control": {"type": "ephemeral"}}],
        "metadata": {"user_id": "user_0a1b2c3d_account__session_550e8400-e29b-41d4-a716-446655440000"},
        "tools": [
            {"name": "read", "description": "Reads a file.", "input_schema": {
                "type": "object", "properties": {"file": {"type": "string", "description": "A path."}}}},
        ],
        "messages": [
            {"role": "user", "content": "Read the file."},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Let me see.", "signature": base64.b64encode(bytes(1200)).decode()},
                {"type": "redacted_thinking", "data": base64.b64encode(bytes(range(256)) * 6).decode()},
                {"type": "text", "text": "I read it."},
                {"type": "tool_use", "id": "toolu_01", "name": "read", "input": {"file": "a.txt", "lines": [1, 2]}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_01", "content": [{"type": "text", "text": "line one"}]},
                {"type": "document", "title": "t.txt",
                 "source": {"type": "text", "media_type": "text/plain", "data": "d"}}]},
        ],
    }  # fmt: skip


def scanned(body: Any, headers: dict[str, str] | None = None, **more: Any) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return scan_request(data, "anthropic", headers or {}, detect.Cache(), **more)


def test_a_clean_request_is_public() -> None:
    found = scanned(request(), {"x-claude-code-session-id": "s1", "authorization": f"Bearer {AWS}", "x-api-key": AWS})
    assert found.unseen == ()
    assert found.findings == ()
    assert found.floor is Verdict.PUBLIC


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a text in a JSON value, keys included."""
    if isinstance(value, dict):
        found = [(*path, key, None) for key in value]
        for key, item in value.items():
            found += places(item, (*path, key))
        return found
    if isinstance(value, list):
        return [p for i, item in enumerate(value) for p in places(item, (*path, i))]
    return [path]


@pytest.mark.parametrize("place", places(request()), ids=str)
def test_a_secret_in_any_place_is_found(place: tuple[Any, ...]) -> None:
    for secret in SECRETS:
        body = request()
        inner: Any = body
        *way, last = place
        for part in way[: -1 if last is None else None]:
            inner = inner[part]
        if last is None:  # as a key
            inner[secret] = inner.pop(way[-1])
        else:
            inner[last] = f"{inner[last]} {secret}" if isinstance(inner[last], str) else secret
        found = scanned(body)
        assert found.floor is Verdict.CONFIDENTIAL, (place, secret)


@pytest.mark.parametrize("how", [str, urllib.parse.quote, json.dumps, lambda t: base64.b64encode(t.encode()).decode()])
def test_encoded_in_a_tool_result(how: Any) -> None:
    for secret in SECRETS:
        body = request()
        body["messages"][2]["content"][0]["content"] = how(f"memo: {secret} end")
        assert scanned(body).findings, secret


def test_a_label_is_the_key_of_the_value() -> None:
    body = request()
    body["messages"][1]["content"][3]["input"] = {"user": {"password": "correct-horse", "個人番号": 123456789018}}
    kinds = {f.kind for f in scanned(body).findings}
    assert kinds == {"password", "my-number"}
    assert {f.where for f in scanned(body).findings} == {
        "messages[1].content[3].input.user.password:0", "messages[1].content[3].input.user.{key}:0",
    }  # fmt: skip


def test_a_secret_over_the_joint_of_two_blocks() -> None:
    body = request()
    body["messages"][0]["content"] = [{"type": "text", "text": f"key {AWS[:9]}"}, {"type": "text", "text": AWS[9:]}]
    assert [f.kind for f in scanned(body).findings] == ["aws-access-key"]


UNSEEN: dict[str, Any] = {
    "picture": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}},
    "picture by address": {"type": "image", "source": {"type": "url", "url": "https://a.test/x.png"}},
    "pdf": {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}},
    "file": {"type": "document", "source": {"type": "file", "file_id": "f"}},
    "openai picture": {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}},
    "sound": {"type": "input_audio", "input_audio": {"data": "aGVsbG8=", "format": "wav"}},
    "of next year": {"type": "hologram", "text": "hi"},
    "opaque base64": {"type": "text", "text": base64.b64encode(bytes(range(256)) * 8).decode()},
}


@pytest.mark.parametrize("what", UNSEEN)
def test_what_cannot_be_seen_is_confidential(what: str) -> None:
    for deep in (False, True):
        body = request()
        if deep:
            body["messages"][2]["content"][0]["content"].append(UNSEEN[what])
        else:
            body["messages"].append({"role": "user", "content": [UNSEEN[what]]})
        found = scanned(body)
        assert not found.complete
        assert found.floor is Verdict.CONFIDENTIAL


def test_what_a_tool_is_given_is_json_and_no_block() -> None:
    body = request()
    body["messages"][1]["content"][3]["input"] = {"content": [{"type": "paragraph", "text": "hi"}], "images": ["a.png"]}
    properties = body["tools"][0]["input_schema"]["properties"]
    properties["content"] = {"type": "array", "items": {"type": "string"}}
    properties["container"] = properties["file_ids"] = {"type": "string"}
    assert scanned(body).unseen == ()
    body["messages"][1]["content"][3]["input"]["content"][0]["text"] = f"key {AWS}"
    assert scanned(body).findings
    body["messages"].append({"role": "user", "content": {"type": "image", "source": {"type": "url", "url": "u"}}})
    assert not scanned(body).complete


def test_what_lies_elsewhere_is_confidential() -> None:
    picture = [{"role": "user", "type": "image", "source": {"type": "url", "url": "u"}}]
    assert not scanned({"model": "m", "name": "x", "type": "tool_use", "input": picture}).complete
    assert not scanned(request() | {"tools": [{"type": "file_search", "vector_store_ids": ["v"]}]}).complete
    for more in ({"previous_response_id": "resp_1"}, {"container": "c"}, {"images": ["aGVsbG8="]}):
        assert not scanned(request() | more).complete
    assert scanned(request() | {"container": None}).complete


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        b'{"a":' * 70 + b"1" + b"}" * 70,
        b"{} {}",
    ],
)
def test_v2_bytes_that_are_no_clear_json(body: bytes) -> None:
    found = scanned(body)
    assert not found.complete
    assert found.floor is Verdict.CONFIDENTIAL


def test_v2_too_large_too_slow_or_broken_is_confidential() -> None:
    body = request()
    body["messages"][0]["content"] = "word " * 20_000
    assert not scanned(body, limits=Limits(scan_bytes=50_000)).complete
    late = scanned(body, limits=Limits(scan_seconds=-1.0))
    assert "longer than" in late.unseen[0]

    class Broken(detect.Cache):
        def get(self, key: bytes) -> detect.Result | None:
            raise ZeroDivisionError

    broken = scan_request(json.dumps(body).encode(), "anthropic", {}, Broken())
    assert not broken.complete
    assert "ZeroDivisionError" in broken.unseen[0]


def test_headers_and_query_are_looked_at() -> None:
    for name in ("x-note", "anthropic-beta", "x-miyabi-query", "referer"):
        assert scanned(request(), {name: f"a={AWS}"}).findings, name


def test_ignore_and_allow() -> None:
    body = request()
    body["system"][0]["text"] = "I am taro@tanaka-shoji.co.jp on 10.1.2.3"
    kinds = {f.kind for f in scanned(body).findings}
    assert kinds == {"email", "ip-private"}
    privacy = Privacy(ignore=("ip-private",), allow=("*@tanaka-shoji.co.jp",))
    assert scanned(body, privacy=privacy).findings == ()
    body["system"][0]["text"] += " and hanako@suzuki-shoji.co.jp"
    assert [f.kind for f in scanned(body, privacy=privacy).findings] == ["email"]


def test_one_cache_serves_several_policies() -> None:
    cache = detect.Cache()
    body = json.dumps(request() | {"user": "write to taro@tanaka-shoji.co.jp in secrets/a.pem"}).encode()
    lax = Privacy(allow=("*@tanaka-shoji.co.jp",))
    strict = Privacy(deny_globs=("*.pem",))
    for _ in range(2):
        assert scan_request(body, "anthropic", {}, cache, lax).findings == ()
        assert scan_request(body, "anthropic", {}, cache).findings
        assert scan_request(body, "anthropic", {}, cache, strict).files == ("secrets/a.pem",)
        assert scan_request(body, "anthropic", {}, cache, lax).files == ()


def test_denied_paths_make_a_request_confidential() -> None:
    found = policy.parse(BOTH)
    for path, wanted in (
        ("src/app.py", "PUBLIC"),
        ("src/secrets/prod.yaml", "CONFIDENTIAL"),
        ("C:\\k\\Server.PEM", "CONFIDENTIAL"),
    ):
        body = request()
        body["messages"][1]["content"][3]["input"]["file"] = path
        scan = scanned(body, privacy=found.privacy)
        fact = facts.build("anthropic", "/v1/messages", {}, scan)
        assert decide(found, fact, State()).verdict is Verdict[wanted], path


def test_names_are_looked_for_on_wish_or_the_scan_is_not_complete() -> None:
    body = request()
    body["messages"][0]["content"] = "昨日山田太郎と話した"
    assert scanned(body).floor is Verdict.PUBLIC  # nothing says that it is a name
    assert scanned(body, privacy=Privacy(names=True)).floor is Verdict.CONFIDENTIAL  # found, or no list to find it with


def test_turn_after_turn_only_new_blocks_are_scanned() -> None:
    cache = detect.Cache()
    body = request()
    for turn in range(5):
        body["messages"].append({"role": "user", "content": f"turn {turn}: " + "word " * 50})
        cache.hits = cache.misses = 0
        scan_request(json.dumps(body).encode(), "anthropic", {}, cache)
        if turn:
            assert cache.misses == 1


LEAVES = (
    st.text(max_size=30) | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False)
)
JSON = st.recursive(
    LEAVES, lambda i: st.lists(i, max_size=4) | st.dictionaries(st.text(max_size=12), i, max_size=4), max_leaves=20
)


@given(JSON, st.sampled_from(SECRETS), st.integers(0, 2**32))
@settings(deadline=None)
def test_wherever_it_is_put_it_is_found(value: Any, secret: str, seed: int) -> None:
    """Any JSON with a secret in one of its texts is never PUBLIC."""
    rng = random.Random(seed)

    def put(item: Any) -> Any:
        if isinstance(item, dict) and item:
            key = rng.choice(list(item))
            return item | {key: put(item[key])}
        if isinstance(item, list) and item:
            i = rng.randrange(len(item))
            return [*item[:i], put(item[i]), *item[i + 1 :]]
        return f"note: {secret}"

    assert scanned({"messages": put(value)}).floor is Verdict.CONFIDENTIAL
