"""What becomes of each request, with a server that fails in every way."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from miyabi_llm import batch
from miyabi_llm.batch.answers import retry_after
from miyabi_llm.errors import AccessDenied, BadUsage, NetworkError
from miyabi_llm.types import Endpoint, Event, Secret
from tests.batch.batches import QUICK, go, read, request, text, write
from tests.batch.standin import Memory, Standin, right, serving


@pytest.fixture
def job(tmp_path: Path) -> batch.Job:
    write(tmp_path / "in.jsonl", [request(f"r{i}", f"hello {i}") for i in range(40)])
    return batch.Job(tmp_path / "in.jsonl", tmp_path / "out.jsonl")


def rows(job: batch.Job, *prompts: str, url: str = "/v1/chat/completions") -> batch.Job:
    write(job.source, [request(f"r{i}", p, url) for i, p in enumerate(prompts)])
    return job


def after(memory: Memory, count: int) -> None:
    """Return when `count` requests were answered."""
    while memory.answered.total() < count:
        time.sleep(0.002)


def asked(memory: Memory, count: int) -> None:
    """Return when `count` requests have come."""
    while memory.asked.total() < count:
        time.sleep(0.002)


def test_every_row_is_answered_in_the_batch_format(job: batch.Job) -> None:
    with serving() as server:
        done = go(replace(job, prices=batch.Prices(2.0, 10.0)), server)
    out = read(job.target)
    assert {name: text(row) for name, row in out.items()} == {f"r{i}": right(f"hello {i}") for i in range(40)}
    row = out["r3"]
    assert list(row) == ["id", "custom_id", "response", "error"]
    assert (row["response"]["status_code"], row["response"]["request_id"], row["error"]) == (200, "req-1", None)
    assert (done.total, done.done, done.failed, done.left, done.retried) == (40, 40, 0, 0, 0)
    assert (done.prompt_tokens, done.completion_tokens) == (sum(len(f"hello {i}") for i in range(40)), 120)
    assert done.cost == pytest.approx((done.prompt_tokens * 2 + 120 * 10) / 1e6)
    assert done.tokens_per_s is not None


def test_as_many_requests_at_once_as_the_server_has_slots(job: batch.Job) -> None:
    memory = Memory(slots=3, delay=0.01)
    with serving(memory) as server:
        go(job, server)
        assert memory.most == 3
        memory.slots, memory.most = None, 0
        go(replace(job, resume=False), server)
        assert 3 < memory.most <= 8
        memory.most = 0
        go(replace(job, resume=False), server, replace(QUICK, concurrency=2))
        assert memory.most == 2


def test_each_kind_of_request_goes_where_it_says(job: batch.Job) -> None:
    kinds = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    write(job.source, [request(u, "x", u) for u in kinds])
    with serving() as server:
        done = go(job, server)
        assert sorted(server.memory.paths) == sorted(kinds)
    assert (done.done, done.completion_tokens, done.prompt_tokens) == (3, 6, 3)
    assert read(job.target)[kinds[2]]["response"]["body"]["data"][0]["embedding"] == [0.5, -1.0]


def test_failures_that_pass_are_tried_again(job: batch.Job) -> None:
    with serving() as server:
        done = go(rows(job, "flaky:1", "flaky:2", "fine"), server)
        assert server.memory.asked["flaky:1"] == 4
    assert (done.done, done.failed, done.retried) == (3, 0, 6)
    assert text(read(job.target)["r0"]) == right("flaky:1")


@pytest.mark.parametrize(
    ("prompt", "status", "code", "tries"),
    [
        ("400:", 400, None, 1),
        ("500:", 500, None, 3),
        ("error200:", 200, "bad_answer", 3),
        ("empty200:", 200, "bad_answer", 3),
        ("nan:", 200, "bad_answer", 3),
        ("html:", 200, "bad_answer", 3),
        ("cut:", None, "connection", 3),
        ("chunked:", None, "connection", 3),
        ("drop:", None, "connection", 3),
        ("silent:", None, "timeout", 3),
    ],
)
def test_failures_that_last_are_kept_with_their_words(
    job: batch.Job, prompt: str, status: int | None, code: str | None, tries: int
) -> None:
    with serving() as server:
        done = go(rows(job, prompt, "fine"), server, replace(QUICK, tries=3, timeout_s=0.3))
        assert server.memory.asked[prompt] == tries
    row = read(job.target)["r0"]
    assert (row["response"] or {}).get("status_code") == status
    assert (row["error"] or {}).get("code") == code
    assert (done.done, done.failed, done.left) == (1, 1, 0)


def test_a_storm_of_429_costs_no_row_a_try(job: batch.Job) -> None:
    memory = Memory(storm=30)
    with serving(memory) as server:
        done = go(job, server, replace(QUICK, tries=2))
    assert (done.done, done.failed, done.retried) == (40, 0, 30)
    assert set(memory.answered.values()) == {1}


def test_a_request_that_alone_is_refused_ends_alone(job: batch.Job) -> None:
    with serving(Memory(delay=0.05)) as server:
        many = rows(job, "busy:", *(f"hello {i}" for i in range(40)))
        done = go(many, server, replace(QUICK, patience_s=0.3, concurrency=2))
    assert (done.done, done.failed) == (40, 1)
    assert read(job.target)["r0"]["response"]["status_code"] == 503


def test_a_server_that_comes_back_gets_the_rows_it_lost(job: batch.Job) -> None:
    memory = Memory(delay=0.02)
    server = Standin(memory)
    alive = [server]

    def restart() -> None:
        for count in (8, 20):
            after(memory, count)
            alive[-1].crash()
            time.sleep(0.15)
            alive.append(Standin(memory, server.port))

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        done = go(job, server)
    finally:
        thread.join()
        alive[-1].crash()
    assert (done.done, done.failed) == (40, 0)
    assert done.retried
    assert {n: text(r) for n, r in read(job.target).items()} == {f"r{i}": right(f"hello {i}") for i in range(40)}


def test_a_server_that_stays_away_ends_the_batch_not_the_rows(job: batch.Job) -> None:
    memory = Memory(delay=0.02)
    with serving(memory) as server:
        crash = threading.Thread(target=lambda: (after(memory, 8), server.crash()))
        crash.start()
        with pytest.raises(NetworkError, match="took no request for 0") as e:
            go(job, server, replace(QUICK, patience_s=0.2))
        crash.join()
        assert "run the same command again" in str(e.value.hint)
        kept = read(job.target)
        assert 0 < len(kept) < 40
        assert all(r["response"]["status_code"] == 200 for r in kept.values())
        with serving(memory) as again:
            done = go(job, again)
    assert (done.done, done.failed, done.resumed) == (40, 0, len(kept))


def test_nobody_there_is_said_at_once(job: batch.Job) -> None:
    with serving() as server:
        server.crash()
        begun = time.monotonic()
        with pytest.raises(NetworkError, match="no answer from"):
            go(job, server)
    assert time.monotonic() - begun < QUICK.patience_s


def test_a_wrong_key_ends_the_batch_before_it_fails_every_row(job: batch.Job) -> None:
    memory = Memory(key="right")
    with serving(memory) as server:
        go(rows(job, "a"), server)
        memory.key = "other"
        rows(job, "b")
        fresh = replace(job, resume=False)
        wrong = Endpoint(server.url, "m", key=Secret("wrong"))
        with batch.opened(fresh) as work, pytest.raises(AccessDenied, match="who are you"):
            batch.run(work, wrong, QUICK, stop=batch.Stop())
    assert read(job.target) == {}


def test_the_model_that_is_named_is_asked(job: batch.Job) -> None:
    write(job.source, [request("a", "x"), {"prompt": "y"}])
    events: list[Event] = []
    with serving() as server:
        go(job, server, model="mine", on_event=events.append)
        assert [b["model"] for b in server.memory.bodies] == ["mine", "mine"]
        with pytest.raises(BadUsage, match="answers of mine, not of yours"):
            go(job, server, model="yours")
        go(replace(job, resume=False), server)
        assert sorted(b["model"] for b in server.memory.bodies[2:]) == ["m", "m"]
    assert [e.message for e in events if e.kind == "warning"] == ["rows name 'm' and others; mine is asked"]


def test_an_answer_that_breaks_the_schema_is_a_failure(job: batch.Job) -> None:
    judged = replace(job, judge=lambda said: None if said == '{"n": 1}' else "not the schema")
    with serving() as server:
        done = go(rows(judged, "json:", "fine"), server)
    assert (done.done, done.failed) == (1, 1)
    row = read(job.target)["r1"]
    assert (row["response"]["status_code"], row["error"]["code"]) == (200, "schema")


def test_half_a_letter_and_a_cut_answer_are_written(job: batch.Job) -> None:
    with serving() as server:
        done = go(rows(job, "surrogate:", "long story"), server)
    assert (done.done, done.cut) == (2, 1)
    assert text(read(job.target)["r0"]) == "\ud83d"


def test_stop_lets_requests_in_flight_finish(job: batch.Job) -> None:
    stop = batch.Stop()
    memory = Memory(delay=0.05)
    with serving(memory) as server:
        asks = threading.Thread(target=lambda: (after(memory, 8), stop.ask()))
        asks.start()
        done = go(job, server, stop=stop)
        asks.join()
        assert done.interrupted
        assert 0 < done.left < 40
        assert set(memory.asked) == set(memory.answered)  # nothing was asked in vain
        again = go(job, server)
    assert (again.done, again.resumed) == (40, done.done)
    assert set(memory.asked.values()) == {1}


def test_stop_twice_does_not_wait(job: batch.Job) -> None:
    stop = batch.Stop()
    with serving() as server:
        asks = threading.Thread(target=lambda: (asked(server.memory, 2), stop.ask(), stop.ask()))
        asks.start()
        begun = time.monotonic()
        done = go(rows(job, "silent:1", "silent:2"), server, replace(QUICK, grace_s=5.0), stop=stop)
        asks.join()
    assert time.monotonic() - begun < 3
    assert (done.left, done.interrupted) == (2, True)


def test_retry_after_is_a_number_or_a_date() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after("7", now) == 7
    assert retry_after("Thu, 01 Jan 2026 00:00:09 GMT", now) == 9
    for nothing in ("", "soon", "-1", "nan", "inf", "Thu, 01 Jan 2020 00:00:00 GMT"):
        assert retry_after(nothing, now) is None
