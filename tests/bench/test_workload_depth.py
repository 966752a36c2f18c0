"""Questions at a context depth: how long, how often the same, and that they are really asked so."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.bench import loads
from miyabi_llm.bench.gate.baseline import Baseline, mismatches
from miyabi_llm.bench.report import Machine
from miyabi_llm.bench.run import Bench, Order
from miyabi_llm.bench.values import Load, Target
from miyabi_llm.bench.workload import load_workload
from miyabi_llm.bench.workload.depth import deepened, filler
from miyabi_llm.cli import bench_parse as parse
from miyabi_llm.errors import BadUsage
from miyabi_llm.types import Endpoint
from tests.bench.failing import failing

SENDING = parse.Sending()


@given(st.integers(1, 3000), st.integers(0, 5))
def test_so_many_words_and_stops(tokens: int, seed: int) -> None:
    text = filler(tokens, str(seed))
    assert text == filler(tokens, str(seed))
    assert text.endswith(".\n\n")
    assert len(text.split()) + text.count(".") == pytest.approx(tokens, abs=1)


def test_no_question_has_the_text_of_another() -> None:
    chat = load_workload("chat")
    deep = deepened(chat, 50)
    begins = {str(item.messages[0]["content"])[:60] for item in deep.items}
    assert len(begins) == len(chat.items)
    assert all(
        str(new.messages[-1]["content"]).endswith(str(old.messages[-1]["content"]))
        for new, old in zip(deep.items, chat.items, strict=True)
    )
    assert deepened(chat, 0) is chat
    assert deep != deepened(chat, 50, seed=1)


def test_the_words_of_the_command_line() -> None:
    plan = parse.plan(parse.Words("1,2", depth="0,2048"), SENDING)
    assert [loads.label(load) for load in plan.loads] == ["c=1", "c=2", "c=1 d=2048", "c=2 d=2048"]
    assert plan.context == 2 * (2048 + parse.BESIDE)
    assert parse.plan(parse.Words("4"), SENDING).context == 0
    assert parse.plan(parse.Words(slo="ttft_p50<1s", depth="512"), SENDING).loads[0].depth == 512
    for bad in ("", "-1", "1,1", "1.5", "x", "99999999", "²"):
        with pytest.raises(BadUsage, match="--depth"):
            parse.plan(parse.Words(depth=bad), SENDING)
    with pytest.raises(BadUsage, match="one depth"):
        parse.plan(parse.Words(sweep=True, depth="1,2"), SENDING)


def test_it_is_asked_so_and_a_baseline_of_another_depth_is_not_compared() -> None:
    order = Order(Machine("Linux", "test", 2, 1 << 30), load_workload("chat", max_tokens=4), warm_up=0, timeout_s=20)
    with (
        failing(lambda n: "ok") as server,
        Bench([Target("t", Endpoint(server.url, "failing"))], order) as bench,
    ):
        found = loads.fixed(bench, (Load(requests=3), Load(requests=3, depth=300)))
    lengths = [len(str(asked["messages"]).split()) for asked in server.asked]
    assert max(lengths[:3]) < 150
    assert all(length > 270 for length in lengths[3:])
    assert [level.label for level in found.levels] == ["c=1", "c=1 d=300"]
    report = found.levels[0].report
    then = replace(report, load=replace(report.load, depth=300))
    assert mismatches(Baseline(then), report) == ("context depth: 300 then, 0 now",)
