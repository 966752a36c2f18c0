"""The self-test finds what it should about this load generator, in a small size; the whole of it is a slow test."""

from __future__ import annotations

import os
from array import array

import pytest

from miyabi_llm.bench.selftest import Check, Plan, SelfTest, Truth, quantile, self_test
from miyabi_llm.bench.values import Call, Piece, Raw, Target
from miyabi_llm.types import Endpoint, Event, plain

pytestmark = pytest.mark.alone  # it measures time
SMALL = Plan(
    streams=8,
    stream_s=1.0,
    tokens=10,
    one_chunk_streams=4,
    one_chunk_s=0.3,
    memory_requests=500,
    rate=100,
    rate_s=1.0,
    processes=(2,),
)
MS = 1_000_000


def test_a_small_one() -> None:
    events: list[Event] = []
    found = self_test(dict(os.environ), SMALL, events.append)
    checks = {check.name: check for check in found.checks}
    assert checks["failed requests"].ok
    assert len(found.checks) == 10
    assert [e.name for e in events][:2] == ["first request", "8 streams"]
    # generous: other work may hold this machine; the limits themselves are the slow test's
    assert checks["streams busy at the server"].value == pytest.approx(8, abs=4)
    assert 0 < checks["first request after process start"].value < 20
    assert checks["one-chunk requests/s, one process"].value > 50
    assert found.facts["chunks/s"] > 50
    assert plain(found)["checks"][0]["name"] == "first request after process start"


def test_the_truth_is_the_servers() -> None:
    source = Truth(Target("t", Endpoint("http://127.0.0.1", "m")))
    text = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":%s}],"sent_ns":%d}\n\n'
    pieces = [
        Piece(25 * MS, 21 * MS, text % (b"null", 20 * MS)),
        Piece(70 * MS, 45 * MS, text % (b"null", 40 * MS) + text % (b'"stop"', 44 * MS)),
    ]
    source.finished(Raw(Call(b""), 0, 0, sent_ns=MS, end_ns=70 * MS, status=200, pieces=pieces))
    assert source.ttft == array("d", [20.0])
    assert source.added == array("d", [1.0])
    assert source.pieces == array("d", [1.0, 5.0, 1.0])
    assert (source.gaps, source.true_gaps) == (array("d", [24.0, 0.0]), array("d", [20.0, 4.0]))
    source.finished(Raw(Call(b""), 0, 0, status=500))
    assert source.bad == 1


def test_the_verdict() -> None:
    fine, unknown, bad = (Check("x", 1, "", 2, "at most", ok) for ok in (True, None, False))
    assert SelfTest((fine, unknown), {}).ok
    assert not SelfTest((fine, bad), {}).ok
    assert [quantile([3, 1, 2], share) for share in (0, 0.5, 1)] == [1, 2, 3]
    assert quantile([], 0.5) == 0


@pytest.mark.slow
def test_the_whole() -> None:
    """Needs a machine that does nothing else: it is repeated, as its limits are about calm runs."""
    for _ in range(3):
        found = self_test(dict(os.environ))
        if found.ok:
            break
    assert found.ok, [check for check in found.checks if check.ok is False]
