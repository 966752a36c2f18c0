"""Circuits by class of fault."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.route.breaker import LONGEST, Breaker, abandon, after, fault, next_month, probe, retry_after

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()
SPEND = {"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}}


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (200, None, ""), (0, None, "network"), (429, None, "rate"), (429, SPEND, "spend"), (402, None, "spend"),
        (529, None, "overloaded"), (200, {"type": "overloaded_error"}, "overloaded"), (503, None, "overloaded"),
        (500, None, "server"), (504, None, "server"), (401, None, "key"), (400, None, "client"), (404, None, "client"),
        (413, None, "client"), (422, None, "client"), (403, None, "client"),
    ],
)  # fmt: skip
def test_faults(status: int, error: dict[str, object] | None, kind: str) -> None:
    assert fault(status, error) == kind


def test_a_spend_limit_opens_until_the_month_turns() -> None:
    breaker = after(Breaker(), "spend", NOW)
    turn = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    assert breaker.state(turn - 1) == "open"
    assert breaker.state(turn) == "half-open"
    assert (
        next_month(datetime(2026, 12, 31, 23, 59, tzinfo=UTC).timestamp())
        == datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    )


def test_retry_after_is_capped_and_nonsense_ignored() -> None:
    assert retry_after({"retry-after": "3600"}) == 3600
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    for bad in ("", "soon", "nan", "inf", "-1", "Wed, 21 Oct 2026 07:28:00 GMT"):
        assert retry_after({"retry-after": bad}) is None
    assert after(Breaker(), "rate", NOW, wait=3600.0).state(NOW + LONGEST + 1) == "half-open"
    assert after(Breaker(), "rate", NOW, wait=2.0).state(NOW + 1.9) == "open"


def test_one_probe_at_a_time() -> None:
    breaker = after(Breaker(), "network", NOW)
    assert probe(breaker, NOW + 1) == (breaker, False)
    trying, may = probe(breaker, NOW + 10)
    assert may
    assert probe(trying, NOW + 10)[1] is False
    assert after(trying, "", NOW + 11) == Breaker()
    assert after(trying, "client", NOW + 11) == Breaker()
    assert probe(abandon(trying), NOW + 11)[1] is True
    worse = after(trying, "network", NOW + 11)
    assert worse.state(NOW + 20) == "open"  # twice as long


def test_server_faults_open_only_in_a_row() -> None:
    breaker = Breaker()
    for _ in range(2):
        breaker = after(breaker, "server", NOW)
    assert breaker.state(NOW) == "closed"
    assert after(after(breaker, "", NOW), "server", NOW).state(NOW) == "closed"
    assert after(breaker, "server", NOW).state(NOW) == "open"
    assert after(after(Breaker(), "client", NOW), "client", NOW) == Breaker()


FAULTS = st.sampled_from(["", "rate", "overloaded", "server", "network", "key", "client", "spend"])


@given(st.lists(st.tuples(FAULTS, st.floats(0, 400), st.floats(0, 1), st.none() | st.floats(0, 1e9))))
def test_every_circuit_but_a_spent_one_tries_again_soon(steps: list[tuple[str, float, float, float | None]]) -> None:
    breaker, now = Breaker(), NOW
    for what, passed, jitter, wait in steps:
        now += passed
        breaker, _ = probe(breaker, now)
        breaker = after(breaker, what, now, wait=wait, jitter=jitter)  # type: ignore[arg-type]
        if what == "spend":
            assert breaker.until == next_month(now)
        elif breaker.until and not any(s[0] == "spend" for s in steps):
            assert breaker.until <= now + LONGEST * 1.25
        assert breaker.state(now) in ("closed", "open")
