"""Faults V3, V4, V7, V8: over all policies and worlds, what is private is never decided to a cloud."""

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm import detect
from miyabi_llm.route import audit, facts, ledger, policy, record, taint
from miyabi_llm.route.decide import decide
from miyabi_llm.route.scan import scan_request
from miyabi_llm.route.values import (
    Budget,
    Facts,
    Finding,
    Health,
    Policy,
    Privacy,
    Project,
    Rule,
    State,
    Target,
    Upstream,
    Verdict,
    When,
)
from miyabi_llm.route.verdict import judge
from tests.route.policies import BOTH

NAMES = ("a", "b", "c", "d")
WORDS = st.sampled_from(["", "a", "b", "claude-x", "local", "bulk", "hard", "cheap", "customer-1", "*"])
VERDICTS = st.sampled_from(list(Verdict))
UPSTREAM = st.builds(
    Upstream, st.just("http://127.0.0.1:1"), dialects=st.sampled_from([("anthropic",), ("openai", "anthropic")])
)
CLOUDS = st.builds(
    Target, st.sampled_from(NAMES), st.just("claude"), UPSTREAM, st.sampled_from([0, 50]), st.just("p"),
    st.tuples(WORDS.filter(bool)), st.just(Verdict.PUBLIC),
)  # fmt: skip
LOCALS = st.builds(
    Target, st.sampled_from(NAMES), st.just("local"), UPSTREAM, st.sampled_from([0, 50]), st.just(""),
    st.tuples(WORDS.filter(bool)), VERDICTS,
)  # fmt: skip
WHEN = st.builds(
    When, models=st.lists(WORDS, max_size=1).map(tuple), hints=st.lists(WORDS, max_size=1).map(tuple),
    projects=st.lists(WORDS, max_size=1).map(tuple), verdicts=st.lists(VERDICTS, max_size=2).map(tuple),
    min_tokens=st.sampled_from([0, 40]),
)  # fmt: skip
RULES = st.builds(
    Rule, st.just("r"), WHEN, st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), max_size=3).map(tuple)
)
POLICIES = st.builds(
    Policy,
    mode=st.sampled_from(["claude", "local", "hybrid"]),
    targets=st.lists(CLOUDS | LOCALS, max_size=4, unique_by=lambda t: t.name).map(tuple),
    rules=st.lists(RULES, max_size=3).map(tuple),
    privacy=st.builds(
        Privacy, VERDICTS, st.just(("*.pem",)), st.lists(st.builds(Project, WORDS, VERDICTS), max_size=2).map(tuple)
    ),
    budget=st.builds(Budget, st.none() | st.floats(0, 2), st.none() | st.floats(0, 2)),
    error=st.sampled_from(["", "", "", "broken"]),
)  # fmt: skip
FACTS = st.builds(
    Facts, st.sampled_from(["anthropic", "openai"]), WORDS, st.just("/v1/messages"), st.booleans(),
    st.dictionaries(st.sampled_from(["x-miyabi-target", "x-note"]), WORDS, max_size=2), st.integers(0, 100),
    st.integers(0, 50), st.lists(WORDS, max_size=2).map(tuple), WORDS, WORDS,
    st.lists(st.sampled_from(["k.pem", "a.py"]), max_size=1).map(tuple),
    st.lists(st.just(Finding("email", "a", "b")), max_size=1).map(tuple), st.booleans(), st.just(()), VERDICTS,
    VERDICTS,
)  # fmt: skip
HEALTHS = st.builds(Health, st.booleans(), st.sampled_from(["closed", "open", "half-open"]))
STATES = st.builds(
    State, st.dictionaries(st.sampled_from(NAMES), HEALTHS), st.none() | st.floats(-1, 2),
    st.dictionaries(st.sampled_from(NAMES), st.floats(0, 2)),
)  # fmt: skip


@given(POLICIES, FACTS, STATES)
@settings(max_examples=300)
def test_v3_v4_a_private_request_has_no_way_to_a_cloud(found: Policy, asked: Facts, state: State) -> None:
    """Whatever is down, spent, open or aliased: neither the target nor any fallback of it is a cloud."""
    decision = decide(found, asked, state)
    named = [found.target(n) for n in (decision.target, *decision.fallbacks) if n is not None]
    assert all(t is not None for t in named)
    assert decision.verdict is judge(found, asked).verdict
    clouds = [t for t in named if t is not None and not t.local]
    private = (
        asked.findings
        or not asked.complete
        or asked.asked
        or asked.taint
        or "k.pem" in asked.files
        or found.privacy.default_verdict
        or found.error
    )
    if private:
        assert decision.verdict > Verdict.PUBLIC
    if private or found.mode == "local":
        assert not clouds
    assert all(t.clearance >= decision.verdict for t in named if t is not None)
    assert all(state.of(t.name).usable for t in named if t is not None)
    assert len(named) == len({t.name for t in named if t is not None})


@given(POLICIES, FACTS, STATES)
def test_the_same_question_has_the_same_answer(found: Policy, asked: Facts, state: State) -> None:
    assert decide(found, asked, state) == decide(found, asked, state)


@given(POLICIES, FACTS, STATES, VERDICTS, VERDICTS, WORDS)
def test_v7_a_client_can_only_tighten(
    found: Policy, asked: Facts, state: State, said: Verdict, then: Verdict, word: str
) -> None:
    """More of what a client says never lowers the verdict."""
    quiet = replace(asked, asked=Verdict.PUBLIC, project="", hints=(), headers={}, session="")
    loud = replace(quiet, asked=said, project=word, hints=(word,), headers={"x-miyabi-target": word}, session=word)
    assert judge(found, loud).verdict >= judge(found, quiet).verdict
    assert judge(found, replace(loud, taint=max(then, loud.taint))).verdict >= judge(found, loud).verdict


@pytest.mark.parametrize(
    "name", ["x-miyabi-privacy", "X-Miyabi-Privacy", "x-privacy", "x-miyabi-verdict", "x-miyabi-target"]
)
@pytest.mark.parametrize("value", ["public", "PUBLIC", "0", "none", "", "claude", "allow", "公開"])
def test_v7_matrix_of_headers(name: str, value: str) -> None:
    found = policy.parse(BOTH)
    body = json.dumps(
        {"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "個人番号：123456789018"}]}
    )
    headers = {name: value}
    scan = scan_request(body.encode(), "anthropic", headers, detect.Cache(), found.privacy)
    decision = decide(found, facts.build("anthropic", "/v1/messages", headers, scan), State())
    assert decision.verdict is Verdict.CONFIDENTIAL
    assert "claude" not in (decision.target, *decision.fallbacks)


def test_mode_local_has_no_cloud_by_any_name() -> None:
    found = policy.parse(BOTH.replace('mode = "claude"', 'mode = "local"').replace('url = "http://127.0.0.1:9/"',
                         'url = "http://127.0.0.1:9/"\naliases = ["big"]'))  # fmt: skip
    for model, headers in (("claude", {}), ("big", {}), ("m", {"x-miyabi-target": "claude"}), ("m", {})):
        asked = Facts("anthropic", model, "/v1/messages", headers=headers, complete=True)
        decision = decide(found, asked, State())
        assert (decision.target, decision.fallbacks) == ("local", ())


def test_v7_a_word_that_is_no_verdict_is_the_strictest() -> None:
    for word, verdict in (("top secret", 2), ("confidentail", 2), ("internal", 1), ("Confidential ", 2), (" ", 0)):
        scan = scan_request(b"{}", "anthropic", {}, detect.Cache())
        asked = facts.build("anthropic", "/v1/messages", {"X-Miyabi-Privacy": word}, scan)
        assert asked.asked == verdict


def test_v4_the_label_is_part_of_the_request() -> None:
    asked = Facts("anthropic", "m", "/v1/messages", complete=True, findings=(Finding("email", "a", "b"),))
    with pytest.raises(FrozenInstanceError):
        asked.findings = ()  # type: ignore[misc]


def test_v4_a_session_stays_private_over_turns_retries_and_models(tmp_path: Path) -> None:
    """The turn after one with a secret in it has no secret in it, asks for another model, and still stays."""
    found = policy.parse(BOTH)
    taints = taint.Taints(tmp_path / "t.db", b"k" * 32)
    cache = detect.Cache()
    texts = ("hello", "my number is 090-1234-5678", "thank you", "now as a poem")
    where = []
    for turn, text in enumerate(texts):
        body = json.dumps({"model": f"claude-{turn}", "messages": [{"role": "user", "content": text}]}).encode()
        headers = {"x-claude-code-session-id": "s"}
        scan = scan_request(body, "anthropic", headers, cache, found.privacy)
        asked = facts.build("anthropic", "/v1/messages", headers, scan, taints.of("s"))
        decision = decide(found, asked, State())
        taints.mark("s", decision.verdict, scan.marks)
        where.append(decision.target)
    assert where == ["claude", "local", "local", "local"]
    taints.untaint("s")
    assert taints.of("s") is Verdict.PUBLIC


def test_v8_nothing_private_is_in_any_file(tmp_path: Path) -> None:
    """Canaries in every slot of a request: the log, the ledger and the list of sessions do not have them."""
    canaries = [
        "taro@tanaka-shoji.co.jp",
        "123456789018",
        "hunter2!Zq",
        "山田太郎",
        "session-canary-7",
        "AKIA" + "Q3EXAMPLE7ZT4WMB",
    ]
    found = policy.parse(BOTH)
    key = b"k" * 32
    log = audit.Audit(tmp_path / "audit.jsonl", key)
    taints = taint.Taints(tmp_path / "taint.db", key)
    book = ledger.Ledger(tmp_path / "ledger.db")
    for canary in canaries:
        body = {
            "model": canary, "metadata": {"user_id": canary}, "system": f"password={canary}",
            "tools": [{"name": canary}],
            "messages": [{"role": "user", "content": f"個人番号 {canary} {canaries[1]} {canaries[0]}"}],
        }  # fmt: skip
        headers = {
            "x-claude-code-session-id": canary,
            "x-miyabi-project": canary,
            "x-miyabi-hint": canary,
            "x-note": canary,
        }
        data = json.dumps(body, ensure_ascii=False).encode()
        scan = scan_request(data, "anthropic", headers, detect.Cache(), found.privacy)
        asked = facts.build("anthropic", f"/v1/{canary}", headers, scan)
        decision = decide(found, asked, State())
        assert decision.verdict is Verdict.CONFIDENTIAL
        log.append(record.decided(asked, decision, found, "0" * 64, taints.name(asked.session)))
        taints.mark(asked.session, decision.verdict, scan.marks)
        book.settle(book.reserve("claude", record.decided(asked, decision, found, "")["model"], 0.1), 0.1)
        assert not any(c in repr(decision) + repr(scan.findings) for c in canaries)
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    for canary in canaries:
        assert canary.encode() not in written
        assert json.dumps(canary).strip('"').encode() not in written
