"""What a status means for the next try, and how many tries there are."""

from __future__ import annotations

import json

import pytest

from miyabi_llm.gateway.asked import Kind, Missed
from miyabi_llm.gateway.opening import classify
from miyabi_llm.gateway.retries import Budget, pause
from miyabi_llm.route.values import Target, Upstream

HERE = Target("here", "local", Upstream("http://127.0.0.1:1"))
SPENT = json.dumps({"error": {"details": {"error_code": "enforced_spend_limit_reached"}}}).encode()


def missed(kind: Kind, retry_after: float | None = None) -> Missed:
    return Missed(HERE, kind, "", 500, b"", (), retry_after)


@pytest.mark.parametrize(
    ("status", "body", "retry_after", "kind"),
    [
        (400, b"", None, "client"), (401, b"", None, "client"), (403, b"", None, "client"), (404, b"", None, "client"),
        (413, b"", None, "client"), (422, b"", None, "client"), (409, b"", None, "client"), (402, b"", None, "spend"),
        (429, b"", 3.0, "rate"), (429, b"", None, "rate"), (429, SPENT, None, "spend"), (429, SPENT, 3.0, "rate"),
        (400, SPENT, None, "spend"), (429, b"[" * 100_000, None, "rate"), (429, b'{"error": 7}', None, "rate"),
        (408, b"", None, "timeout"), (504, b"", None, "timeout"), (500, b"", None, "server"),
        (502, b"", None, "server"),
        (503, b"", None, "overloaded"), (529, b"", None, "overloaded"), (599, b"", None, "server"),
    ],
)  # fmt: skip
def test_G7_G8_G9_what_a_status_means(status: int, body: bytes, retry_after: float | None, kind: str) -> None:
    assert classify(status, body, retry_after) == kind


def test_G9_only_the_clients_fault_is_final() -> None:
    assert missed("client").final
    assert not any(missed(k).final for k in ("rate", "spend", "server", "overloaded", "cut", "timeout", "elsewhere"))


def test_pauses_are_short_and_few() -> None:
    for kind in ("unreachable", "cut", "garbled", "overloaded", "server"):
        waits = [pause(missed(kind), n, chance) for n in range(2) for chance in (0.0, 1.0)]
        assert waits == pytest.approx([0.05, 0.15, 0.1, 0.3])
        assert pause(missed(kind), 2) is None
    for kind in ("client", "spend", "timeout", "elsewhere", "permit"):
        assert pause(missed(kind), 0) is None


def test_G7_a_short_wait_is_waited_a_long_one_not() -> None:
    assert pause(missed("rate", 1.5), 0) == 1.5
    assert pause(missed("rate", 3600.0), 0) is None
    assert pause(missed("rate"), 0) is None


def test_G8_tries_cannot_be_saved_up_without_end() -> None:
    budget = Budget()
    for _ in range(10_000):
        budget.request()
    assert sum(budget.take() for _ in range(100)) == 10
