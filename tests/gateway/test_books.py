"""The gateway's books: no record, no request; no money, no request; a private session stays private."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from miyabi_llm.gateway.asked import Missed
from miyabi_llm.gateway.books import Circuits, Flush, written
from miyabi_llm.route.audit import Audit, AuditFailed, verify
from miyabi_llm.route.keys import secret
from miyabi_llm.route.values import Policy, Target, Upstream
from tests import clauded
from tests.gateway.house import HELLO, House, policy, running

PRIVATE = [{"role": "user", "content": "マイナンバーは123456789018です"}]


@pytest.fixture
def claude() -> Iterator[clauded.Clauded]:
    with clauded.serving() as server:
        yield server


@pytest.fixture
def local() -> Iterator[clauded.Clauded]:
    with clauded.serving() as server:
        yield server


def lines(house: House) -> list[dict[str, object]]:
    return [json.loads(line) for line in (house.work / "audit.jsonl").read_text().splitlines()]


def money(house: House) -> dict[str, float]:
    found = house.http.get("/miyabi/status").json()["money"]
    return {k: found[k] for k in ("spent", "held", "cloud_requests", "local_requests")}


def test_what_was_sent_was_written_down_before(claude: clauded.Clauded, local: clauded.Clauded) -> None:
    text = policy(f"claude claude {claude.url}", f"here local {local.url}", mode="claude")
    with running(text, keys={"here": "k"}) as house:
        for _ in range(3):
            house.messages()
        house.messages(messages=PRIVATE)
        claude.script = ["529"]
        house.messages()
        until = time.monotonic() + 20
        while len(found := lines(house)) < 14 and time.monotonic() < until:  # the last is written after its answer
            time.sleep(0.02)
    kinds = [line["kind"] for line in found]
    assert kinds == ["decision", "send", "outcome"] * 3 + ["decision", "outcome"] + ["decision", "send", "outcome"]
    sends = [line for line in found if line["kind"] == "send"]
    assert len(claude.asked) == len(sends) == 4
    assert {(line["target"], line["verdict"]) for line in sends} == {("claude", "PUBLIC")}
    assert len({line["permit"] for line in sends}) == 4
    assert found[-1]["attempts"] == ["claude=529", "here=200"]


def test_the_log_of_a_gateway_verifies(claude: clauded.Clauded, tmp_path: Path) -> None:
    with running(policy(f"claude claude {claude.url}", mode="claude")) as house:
        for _ in range(5):
            house.messages()
        key = secret(house.work / "key")
        house.gateway.clerk._files.audit.sync()  # type: ignore[union-attr]
        assert verify(house.work / "audit.jsonl", key).problems == ()


def test_without_a_log_nothing_leaves(claude: clauded.Clauded, local: clauded.Clauded) -> None:
    """The log is a folder, or another gateway writes it: local requests go on."""
    text = policy(f"claude claude {claude.url}", f"here local {local.url}", mode="claude")
    with running(text, keys={"here": "k"}, spoil="audit.jsonl") as house:
        answer = house.messages()
        assert (answer.status_code, answer.headers["x-miyabi-target"]) == (200, "here")
        assert "claude" not in answer.headers["x-miyabi-attempts"]
        assert house.http.get("/miyabi/status").json()["books"]
    with running(text, keys={"here": "k"}, spoil="ledger.sqlite") as house:
        assert house.messages().headers["x-miyabi-target"] == "here"
    assert claude.connections == 0


def test_money_is_reserved_settled_and_given_back(claude: clauded.Clauded) -> None:
    text = policy(f"claude claude {claude.url}", mode="claude", more="[budget]\nmonthly_usd = 1.0")
    with running(text) as house:
        house.messages()
        one = money(house)
        # 25 tokens at 2, 5 from the cache at 0.20 and 15 at 10 US dollars a million
        assert one == {"spent": pytest.approx(201e-6), "held": 0, "cloud_requests": 1, "local_requests": 0}
        claude.script = ["400"]
        house.messages()
        assert money(house) == one  # an error is not charged
        claude.script = ["cut=900"]
        house.cut("/v1/messages", HELLO)
        assert money(house)["spent"] > 3 * one["spent"]  # nobody knows what it cost: the worst is taken


@pytest.mark.parametrize(
    "more", ["[budget]\nmonthly_usd = 0.0001", "[budget]\nper_request_usd = 0.0001", "[budget]\nmonthly_usd = 0.0"]
)
def test_what_is_too_dear_is_not_sent(claude: clauded.Clauded, local: clauded.Clauded, more: str) -> None:
    text = policy(f"claude claude {claude.url}", f"here local {local.url}", mode="claude", more=more)
    with running(text, keys={"here": "k"}) as house:
        assert house.messages().headers["x-miyabi-target"] == "here"
    assert claude.connections == 0


def test_no_price_is_no_price(claude: clauded.Clauded) -> None:
    with running(policy(f"claude claude {claude.url}", mode="claude", more="[budget]\nmonthly_usd = 9.0")) as house:
        assert house.messages(model="claude-no-such-model").status_code == 503
    assert claude.connections == 0


def test_many_at_once_never_overspend(claude: clauded.Clauded) -> None:
    """Eight clients, money for about three requests at their worst."""
    worst = (len(json.dumps(HELLO)) + 20) * 2.5e-6 + 64 * 10e-6
    text = policy(f"claude claude {claude.url}", mode="claude", more=f"[budget]\nmonthly_usd = {3 * worst:.6f}")
    with running(text) as house:
        threads = [threading.Thread(target=house.messages, kwargs={"stream": False}) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert money(house)["spent"] + money(house)["held"] <= 3 * worst
    assert 1 <= len(claude.asked) <= 8


def test_a_session_stays_where_its_secret_is(claude: clauded.Clauded, local: clauded.Clauded) -> None:
    text = policy(f"claude claude {claude.url}", f"here local {local.url}", mode="claude")
    with running(text, keys={"here": "k"}) as house:
        for header in ("x-miyabi-session", "x-claude-code-session-id"):
            said = {header: f"s-{header}"}
            assert house.messages(headers=said).headers["x-miyabi-target"] == "claude"
            assert house.messages(headers=said, messages=PRIVATE).headers["x-miyabi-target"] == "here"
            assert house.messages(headers=said).headers["x-miyabi-target"] == "here"
        assert house.messages(headers={"x-miyabi-session": "another"}).headers["x-miyabi-target"] == "claude"
        kept = (house.work / "taints.sqlite").read_bytes()
    assert b"s-x-" not in kept


def test_a_record_is_looked_for_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    assert not written(file, "claude", "n1")
    log = Audit(file, b"k" * 32)
    for number in range(3000):
        log.append({"kind": "outcome", "decision": str(number)}, sync=False)
    send = {"kind": "send", "target": "claude", "verdict": "PUBLIC"}
    log.append(send | {"permit": "n1"})
    log.append(send | {"permit": "n2", "verdict": "INTERNAL"})
    log.append(send | {"permit": "n3", "kind": "decision"})
    assert written(file, "claude", "n1")
    for target, nonce in (("other", "n1"), ("claude", "n2"), ("claude", "n3"), ("claude", "n4")):
        assert not written(file, target, nonce)
    with file.open("ab") as end:  # a line that is not ended is not written
        end.write(json.dumps(send | {"permit": "n5"}).encode())
    assert not written(file, "claude", "n5")
    log.close()


def test_one_flush_for_all_who_wait(tmp_path: Path) -> None:
    class Counting(Audit):
        flushes = 0

        def sync(self) -> None:
            Counting.flushes += 1
            super().sync()

    async def run() -> None:
        log = Counting(tmp_path / "a.jsonl", b"k" * 32)
        flush = Flush(log)

        async def one() -> None:
            number = log.append({"kind": "x"}, sync=False)
            await flush.synced()
            assert int((tmp_path / "a.jsonl.head").read_text().split()[0]) >= number

        await asyncio.gather(*(one() for _ in range(50)))
        assert 1 <= Counting.flushes <= 3
        log.close()

    asyncio.run(run())


def test_a_flush_that_fails_fails_for_all(tmp_path: Path) -> None:
    class Failing(Audit):
        broken = False

        def sync(self) -> None:
            if self.broken:
                raise AuditFailed("the disk is gone")
            super().sync()

    async def run() -> None:
        log = Failing(tmp_path / "a.jsonl", b"k" * 32)
        flush = Flush(log)
        log.broken = True
        results = await asyncio.gather(*(flush.synced() for _ in range(5)), return_exceptions=True)
        assert all(isinstance(r, AuditFailed) for r in results)
        log.broken = False
        await flush.synced()
        log.close()

    asyncio.run(run())


def test_a_circuit_opens_and_is_forgotten() -> None:
    here = Target("here", "local", Upstream("http://127.0.0.1:1"))
    circuits = Circuits(Policy(targets=(here,)))
    assert circuits.admit(here)
    circuits.note(here, Missed(here, "unreachable", "gone", 503, b""))
    assert circuits.health()["here"].circuit == "open"
    assert not circuits.admit(here)
    circuits.note(here, Missed(here, "permit", "not asked at all", 503, b""))
    assert circuits.health()["here"].circuit == "open"
    circuits.forget()
    assert circuits.health()["here"].circuit == "closed"
