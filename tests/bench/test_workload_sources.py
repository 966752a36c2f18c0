"""The sources: order, numbers, turns and pairs, looked at in the bytes that would be sent."""

import json
from collections import Counter
from typing import Any

import pytest

from miyabi_llm.bench.values import Call, Item, Piece, Raw, Sample, Speech, Target
from miyabi_llm.bench.workload import Pair, Paired, Questions, Workload
from miyabi_llm.errors import BadUsage
from miyabi_llm.types import Endpoint

WORDS = tuple(f"question {i} " + "word " * (10 + i) for i in range(7))
PLAIN = Workload("w", tuple(Item(f"i{i}", ({"role": "user", "content": w},)) for i, w in enumerate(WORDS)), "", "0")
TALK = Workload("t", (Item("t", ({"role": "user", "content": "one"},), more=("two", "three")),), "", "0")


def target(name: str = "a", speech: Speech = "openai-chat") -> Target:
    return Target(name, Endpoint(f"http://{name}:1", "m"), speech)


def body(call: Call | None) -> dict[str, Any]:
    assert call is not None
    head, _, data = call.data.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(data)}".encode() in head
    value = json.loads(data)
    assert isinstance(value, dict)
    return value


def words(call: Call | None) -> str:
    return str(body(call)["messages"][0]["content"])


def answered(call: Call | None, stream: int = 0, text: str = "answer", *, broken: bool = False) -> Raw:
    assert call is not None
    events = [{"choices": [{"delta": {"content": text}}]}, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    pieces = [Piece(i + 1, 0, b"data: " + json.dumps(e).encode() + b"\n\n") for i, e in enumerate(events)]
    return Raw(call, stream, 0, 0, 3, 200, pieces, "broken" if broken else "")


def test_each_pass_asks_everything_once_in_a_seeded_order() -> None:
    source = Questions(PLAIN, [target()], seed=3, passes=2)
    calls = [source.next(0) for _ in range(15)]
    assert calls.pop() is None
    items = [c.item for c in calls if c]
    assert sorted(items[:7]) == sorted(items[7:]) == list(range(7))
    assert items[:7] != items[7:]
    again = Questions(PLAIN, [target()], seed=3)
    assert items == [c.item for c in (again.next(0) for _ in range(14)) if c]
    in_file = Questions(PLAIN, [target()], order="file")
    assert [c.item for c in (in_file.next(0) for _ in range(7)) if c] == list(range(7))


def test_blocks_go_on_where_the_last_one_ended() -> None:
    whole, block = (Questions(PLAIN, [target("a"), target("b")], seed=3, salt="s", first=n) for n in (0, 5))
    calls = [whole.next(0) for _ in range(30)]
    assert calls[10:] == [block.next(0) for _ in range(20)]


def test_shards_share_the_sequence() -> None:
    alone = Questions(PLAIN, [target()], seed=1, salt="s")
    shards = [Questions(PLAIN, [target()], seed=1, salt="s", shard=i, shards=3) for i in range(3)]
    assert [shards[i % 3].next(0) for i in range(20)] == [alone.next(0) for i in range(20)]


def test_every_prompt_begins_with_a_number_of_its_own() -> None:
    source = Questions(PLAIN, [target()], seed=1)
    calls = [source.next(0) for _ in range(3000)]
    assert len({c.nonce for c in calls if c}) == 3000
    for call in calls:
        assert call is not None
        assert words(call) == f"[{call.nonce}]\n{WORDS[call.item]}"
    other = Questions(PLAIN, [target()], seed=1)
    assert not {c.nonce for c in calls if c} & {c.nonce for c in (other.next(0) for _ in range(100)) if c}, "a new run"


def test_without_numbers_prompts_are_as_written_but_for_the_warm_up() -> None:
    bare = Questions(PLAIN, [target()], nonce=False)
    assert {words(bare.next(0)) for _ in range(7)} == set(WORDS)
    warm = Questions(PLAIN, [target()], nonce=False, phase="warm-up")
    assert not {words(warm.next(0)) for _ in range(7)} & set(WORDS)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_a_share_of_each_prompt_is_common(share: float) -> None:
    source = Questions(PLAIN, [target()], prefix_share=share)
    prompts = [words(source.next(0)) for _ in range(7)]
    for text in prompts:
        prefix, _, rest = text.rpartition("[")
        assert len(prefix) / (len(prefix) + len(rest) - len("123456789012345]\n")) == pytest.approx(share, abs=0.02)
        longest = max((p.rpartition("[")[0] for p in prompts), key=len)
        assert longest.startswith(prefix)
    assert words(Questions(PLAIN, [target()], prefix_share=share).next(0))[:16] != prompts[0][:16], "cold in each run"


@pytest.mark.parametrize("speech", ["openai-chat", "openai-completions", "ollama", "anthropic"])
def test_plain_prompts_in_every_dialect(speech: Speech) -> None:
    workload = Workload("p", (Item("p", prompt="say this"),), "", "0")
    call = Questions(workload, [target(speech=speech)]).next(0)
    asked = body(call)
    text = asked["prompt"] if speech == "openai-completions" else asked["messages"][0]["content"]
    assert call is not None
    assert text == f"[{call.nonce}]\nsay this"


def test_a_picture_in_a_message_stays() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:"}}]
    workload = Workload("p", (Item("p", ({"role": "user", "content": parts},)),), "", "0")
    content = body(Questions(workload, [target()]).next(0))["messages"][0]["content"]
    assert content[0]["type"] == "text"
    assert content[1:] == parts


def test_a_conversation_goes_on_with_the_answers() -> None:
    samples: list[Sample] = []
    source = Questions(TALK, [target()], passes=1, sink=samples.append)
    assert source.ordered
    first = source.next(0)
    source.finished(answered(first, text="A"))
    second = source.next(0)
    source.finished(answered(second, text="B"))
    third = source.next(0)
    source.finished(answered(third))
    assert source.next(0) is None
    said = [m["content"] for m in body(third)["messages"]]
    assert said[1:] == ["A", "two", "B", "three"]
    assert said[0].endswith("one")
    assert {c.nonce for c in (first, second, third) if c} == {first.nonce if first else ""}
    assert [s.turn for s in samples] == [0, 1, 2]


def test_halves_of_characters_are_put_together() -> None:
    source = Questions(TALK, [target()])
    source.finished(answered(source.next(0), text="\ud83d\ude00 \ud800."))
    assert body(source.next(0))["messages"][1]["content"] == "\N{GRINNING FACE} \N{REPLACEMENT CHARACTER}."


def test_a_conversation_ends_with_a_failure() -> None:
    source = Questions(TALK, [target()], passes=1)
    source.finished(answered(source.next(0), broken=True))
    assert source.next(0) is None


def test_conversations_of_an_open_loop_go_on_with_the_next_call() -> None:
    source = Questions(TALK, [target()], open_loop=True)
    first, other = source.next(0), source.next(1)
    source.finished(answered(first, 0))
    third = source.next(2)
    assert third is not None
    assert other is not None
    assert (other.turn, third.turn) == (0, 1)


def test_pairs_are_the_same_prompt_in_random_order() -> None:
    pairs: list[Pair] = []
    source = Paired(PLAIN, [target("a"), target("b")], rounds=10, per_round=20, pairs=pairs.append)
    orders: Counter[tuple[int, ...]] = Counter()
    for _ in range(200):
        calls = [source.next(0), source.next(0)]
        assert words(calls[0]) == words(calls[1])
        orders[tuple(c.target for c in calls if c)] += 1
        for call in calls:
            source.finished(answered(call))
    assert source.next(0) is None
    assert set(orders) == {(0, 1), (1, 0)}
    assert 60 < orders[0, 1] < 140
    assert [p.number for p in pairs] == list(range(200))
    assert Counter(p.round for p in pairs) == dict.fromkeys(range(10), 20)
    assert all([s.target for s in p.samples] == [0, 1] for p in pairs)


def test_one_server_under_two_names_never_sees_a_prompt_twice() -> None:
    here = [Target(host, Endpoint(f"http://{host}:1", "m")) for host in ("127.0.0.1", "localhost")]
    source = Paired(PLAIN, here)
    prompts = [words(source.next(0)) for _ in range(100)]
    assert len(set(prompts)) == 100
    assert len({len(p) - len(WORDS[i]) for p in prompts for i in range(7) if p.endswith(WORDS[i])}) == 1


def test_streams_keep_their_pairs_together() -> None:
    source = Paired(PLAIN, [target("a"), target("b")])
    by_stream = {s: [source.next(s), source.next(s)] for s in (0, 1)}
    for calls in by_stream.values():
        assert len({words(c) for c in calls}) == 1
    loop = Paired(PLAIN, [target("a"), target("b")], open_loop=True)
    assert Counter(c.target for c in (loop.next(i) for i in range(10)) if c) == {0: 5, 1: 5}


def test_what_cannot_be_asked() -> None:
    with pytest.raises(BadUsage, match="no target"):
        Questions(PLAIN, [])
    with pytest.raises(BadUsage, match="cannot be common"):
        Questions(PLAIN, [target()], prefix_share=1.0)
    with pytest.raises(BadUsage, match="have no turns"):
        Questions(TALK, [target(speech="openai-completions")])
