"""The command `route`: explain, test, replay, audit, untaint, spend, init, schema. Nothing here opens a socket."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from miyabi_llm.config import load
from miyabi_llm.route import audit, keys, policy, prices, probes, record
from miyabi_llm.route.decide import decide
from miyabi_llm.route.ledger import Ledger
from miyabi_llm.route.places import places
from miyabi_llm.route.prices import Usage
from miyabi_llm.route.savings import Saving
from miyabi_llm.route.taint import Taints
from miyabi_llm.route.values import Facts, Finding, State, Verdict
from tests.route.policies import BOTH

RECIPES = Path(__file__).parent.parent.parent / "recipes" / "route"
EXAMPLES = sorted((RECIPES / "examples").glob("*.json"))


class Here:
    """A home of its own, and the command in it."""

    def __init__(self, folder: Path) -> None:
        self.env = {**os.environ, "MIYABI_HOME": str(folder / "home"), "MIYABI_CONFIG": str(folder / "config")}
        self.places = places(load(self.env))

    def __call__(self, *words: str, given: str | None = None, rc: int = 0) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "miyabi_llm", "route", *words],
            env=self.env, input=given, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == rc, done.stderr
        return json.loads(done.stdout) if "--json" in words and done.stdout else done.stdout + done.stderr


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path)


def test_the_shipped_examples_meet_the_shipped_probes(here: Here) -> None:
    """All ten examples, Japanese among them, each named by a probe."""
    done = here("test", str(RECIPES / "probes.yaml"), "--json")
    assert [p["wrong"] for p in done] == [[]] * len(done)
    named = (RECIPES / "probes.yaml").read_text(encoding="utf-8")
    assert len(EXAMPLES) == 10
    assert all(e.name in named for e in EXAMPLES)
    assert sum(not e.read_text(encoding="utf-8").isascii() for e in EXAMPLES) >= 4


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.stem)
def test_explain_shows_no_private_text(example: Path) -> None:
    from miyabi_llm.route import ask, explain

    found = explain.explain(
        policy.read(RECIPES / "policy.toml"), ask.read(example.read_bytes(), example.name), prices.BUILT_IN
    )
    assert found.decision.reason
    shown = repr(found)
    for secret in ("AKIAIOSFODNN7EXAMPLE", "５６７８－９０１８", "佐藤花子", "丸の内", "五六七八", "Sakura#2026x"):
        assert secret not in shown


def test_explain_in_words(here: Here) -> None:
    example = str(RECIPES / "examples" / "03-my-number-ja.json")
    text = here("explain", example, "--policy", str(RECIPES / "policy.toml"))
    assert "target    local" in text
    assert "found     my-number" in text
    assert "else      without what was found (1): claude" in text
    assert "not       claude: confidential may not go there" in text
    found = here("explain", "-", "--policy", str(RECIPES / "policy.toml"), "--json", given="hello")
    assert (found["decision"]["target"], found["decision"]["verdict"]) == ("claude", "public")
    assert "no policy" in here("explain", "-", given="hello")


def test_a_probe_that_is_not_met_is_exit_5(here: Here, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(BOTH)
    (tmp_path / "probes.yaml").write_text(
        "policy: p.toml\nprobes:\n  - {name: a, text: hello, expect: {target: local}}\n"
        "  - {name: b, text: hello, expect: {target: claude}}\n"
    )
    assert "1 of 2 probes are not met: a" in here("test", str(tmp_path / "probes.yaml"), rc=5)
    (tmp_path / "probes.yaml").write_text("probes:\n  - {name: a, text: hello, expect: {targt: local}}\n")
    assert "Did you mean probes[0].expect.target?" in here("test", str(tmp_path / "probes.yaml"), rc=2)


def test_init_writes_a_policy_that_is_read(here: Here) -> None:
    assert here("init").strip() == str(here.places.policy)
    assert policy.load(here.places.policy).error == ""
    assert "--force" in here("init", rc=2)
    here(
        "init",
        "--force",
        "--mode",
        "hybrid",
        "--local",
        "box=http://192.168.1.5:8080",
        "--local",
        "b2=http://127.0.0.1:1",
    )
    found = policy.read(here.places.policy)
    assert (found.mode, [t.name for t in found.targets]) == ("hybrid", ["claude", "box", "b2"])
    here("init", "--force", "--mode", "sometimes", rc=2)
    assert policy.read(here.places.policy).mode == "hybrid"
    assert json.loads(here("schema"))["additionalProperties"] is False


CLEAN = Facts("anthropic", "claude-sonnet-5-5", "/v1/messages", est_tokens=10, complete=True)
KEY_IN_IT = Facts(
    "anthropic", "m", "/v1/messages", complete=True, findings=(Finding("email", "messages[0].content:3", "t***p"),)
)


def test_replay_verify_untaint_spend(here: Here) -> None:
    old = policy.parse(BOTH)
    key = keys.secret(here.places.secret)
    log = audit.Audit(here.places.audit, key)
    for facts in (CLEAN, CLEAN, KEY_IN_IT):
        log.append(record.decided(facts, decide(old, facts, State()), old, "ab" * 32))
    log.close()
    assert "3 lines hold, nothing is missing" in here("audit", "verify")
    new = here.places.policy.parent / "new.toml"
    new.parent.mkdir(parents=True)
    new.write_text(BOTH.replace('default_verdict = "public"', 'default_verdict = "public"\nignore = ["email"]'))
    done = here("replay", "--policy", str(new), "--json")
    assert (done["decisions"], done["same"], done["leaves"]) == (3, 2, 1)
    new.write_text(BOTH.replace('mode = "claude"', 'mode = "local"'))
    assert "2  " in here("replay", "--policy", str(new))

    taints = Taints(here.places.taint, key)
    taints.mark("session one", Verdict.CONFIDENTIAL, [("email", b"x" * 32)])
    (row,) = here("untaint", "--json")
    assert row["kinds"] == ["email"]
    assert here("untaint", "session one", "--json") == {"untainted": True, "logged": True}
    assert taints.of("session one") is Verdict.PUBLIC
    assert here("untaint", "session one", rc=2)
    assert "4 lines hold" in here("audit", "verify")
    assert '"kind":"untaint"' in here.places.audit.read_text()

    ledger = Ledger(here.places.ledger)
    ledger.settle(ledger.reserve("claude", "m", 0.5), 0.25, Usage(1, 2))
    ledger.local("local", "m", Usage(10, 20), Saving("claude-haiku-5-5", 0.02, 0.005))
    assert "spent $0.2500" in here("spend")
    assert here("spend", "--json")["saved"] == pytest.approx(0.015)

    here.places.audit.write_bytes(here.places.audit.read_bytes().replace(b'"detected":{"email":1}', b'"detected":{}'))
    assert "line 3 was changed" in here("audit", "verify", rc=1)


def test_v8_a_record_keeps_no_text_of_a_client(tmp_path: Path) -> None:
    secret = "taro@tanaka-shoji.co.jp"
    facts = Facts(
        "anthropic", secret, f"/v1/{secret}", headers={"x-note": secret}, hints=(secret, "bulk"), project="山田太郎",
        session=secret, files=(f"secrets/{secret}",), unseen=(secret,), findings=(Finding("email", "a:1", "t***p"),),
    )  # fmt: skip
    found = policy.parse(BOTH)
    line = json.dumps(record.decided(facts, decide(found, facts, State()), found, "ab" * 32), ensure_ascii=False)
    assert "tanaka" not in line
    assert "山田" not in line
    assert '"bulk"' in line
    again = record.facts_of(json.loads(line), found)
    assert decide(found, again, State()).verdict is Verdict.CONFIDENTIAL


def test_v8_words_of_a_clean_request_are_kept_only_as_names() -> None:
    assert [record.word(w) for w in ("customer-aoba", "claude-sonnet-5-5", "/v1/messages")] == [
        "customer-aoba", "claude-sonnet-5-5", "/v1/messages",
    ]  # fmt: skip
    for text in ("山田太郎", "two words", "0901234567", "a" * 200, "line\nline"):
        assert record.word(text) == record.KEPT_OUT


def test_probes_need_exactly_one_request(tmp_path: Path) -> None:
    from miyabi_llm.errors import BadUsage

    (tmp_path / "p.yaml").write_text("probes:\n  - {name: a, text: x, file: y, expect: {}}\n")
    with pytest.raises(BadUsage, match=r"p\.yaml:2: probes\[0\]: has not exactly one"):
        probes.load(tmp_path / "p.yaml")
