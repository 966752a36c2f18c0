"""The ledger: reserved before, settled after, and never more than the budget however many ask at once."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm.errors import BadUsage
from miyabi_llm.route import prices, savings
from miyabi_llm.route.ledger import BudgetSpent, Ledger, LedgerFailed
from miyabi_llm.route.policy import parse
from miyabi_llm.route.prices import Price, Usage
from miyabi_llm.route.values import Electricity
from tests.route.policies import BOTH

CHILD = """
import sys
from pathlib import Path
from miyabi_llm.route.ledger import BudgetSpent, Ledger
ledger = Ledger(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
got = 0
for n in range(40):
    try:
        entry = ledger.reserve("claude", "m", 0.01, 0.5)
        got += 1
        if n % 2:
            ledger.settle(entry, 0.01)
    except BudgetSpent:
        pass
print(got)
"""


def test_four_processes_share_one_budget(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:  # all at once
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    got = sum(int(c.communicate(timeout=120)[0]) for c in children)
    assert got == 50  # of 160 wished for: 50 x 0.01 is the budget
    assert Ledger(path).left(0.5) == pytest.approx(0)


def test_reserve_settle_drop(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.db")
    first = ledger.reserve("claude", "m", 0.4, 1.0)
    second = ledger.reserve("claude", "m", 0.5, 1.0)
    with pytest.raises(BudgetSpent, match=r"\$0\.1000 of the budget"):
        ledger.reserve("claude", "m", 0.2, 1.0)
    ledger.settle(first, 0.1, Usage(10, 20))
    ledger.drop(second)
    assert ledger.left(1.0) == pytest.approx(0.9)
    third = ledger.reserve("claude", "m", 0.3, 1.0)
    ledger.settle(third, None)  # cut: what was held counts
    ledger.settle(third, 0.0)  # a second time changes nothing
    ledger.drop(third)
    totals = ledger.totals()
    assert (totals.spent, totals.held, totals.cloud_requests) == (pytest.approx(0.4), 0, 2)
    assert totals.tokens == Usage(10, 20)


def test_a_crash_keeps_what_was_held(tmp_path: Path) -> None:
    Ledger(tmp_path / "l.db").reserve("claude", "m", 0.4, 1.0)
    assert Ledger(tmp_path / "l.db").left(1.0) == pytest.approx(0.6)


def test_a_new_month_is_a_new_budget(tmp_path: Path) -> None:
    now = [1_796_000_000.0]
    ledger = Ledger(tmp_path / "l.db", lambda: now[0])
    ledger.reserve("claude", "m", 1.0, 1.0)
    with pytest.raises(BudgetSpent):
        ledger.reserve("claude", "m", 0.1, 1.0)
    now[0] += 31 * 86400
    ledger.reserve("claude", "m", 0.1, 1.0)


def test_a_ledger_that_cannot_be_written_sends_nothing(tmp_path: Path) -> None:
    (tmp_path / "l.db").write_bytes(b"this is no database, and long enough to be seen as none" * 40)
    with pytest.raises(LedgerFailed):
        Ledger(tmp_path / "l.db")
    with pytest.raises(LedgerFailed):
        Ledger(tmp_path)


@given(
    st.lists(
        st.tuples(st.floats(0.001, 0.5), st.sampled_from(["settle", "drop", "hold"]), st.floats(0, 1)), max_size=30
    )
)
@settings(max_examples=40, deadline=None)
def test_never_more_than_the_budget(steps: list[tuple[float, str, float]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "l.db")
        for worst, then, part in steps:
            try:
                entry = ledger.reserve("claude", "m", worst, 1.0)
            except BudgetSpent:
                continue
            if then == "settle":
                ledger.settle(entry, worst * part)
            elif then == "drop":
                ledger.drop(entry)
            totals = ledger.totals()
            assert totals.spent + totals.held <= 1.0 + 1e-9
        ledger.close()


def test_prices_are_dated_and_tiered(tmp_path: Path) -> None:
    table = prices.load(tmp_path / "none.toml")
    assert table.as_of == "2026-08"
    haiku = table.of("claude-haiku-5-5")
    assert haiku is not None
    assert prices.cost(haiku, Usage(100_000, 1000)) == pytest.approx(0.0105)
    assert prices.cost(haiku, Usage(100_001, 1000)) == pytest.approx(0.0525005)
    assert table.of("claude-haiku-4-5-20251001") == table.of("claude-haiku-4-5")
    assert table.of("claude-fable-5-2") is None  # not in the source: not guessed
    assert table.of("claude-sonnet-5-5").open
    path = tmp_path / "prices.toml"
    path.write_text('as_of = "2026-11"\n[models.claude-fable-5-2]\ninput = 12\noutput = 60\n')
    own = prices.load(path)
    assert (own.as_of, own.of("claude-fable-5-2")) == ("2026-11", Price(12, 60))
    path.write_text('as_of = "2026-11"\n[models.x]\ninput = 12\n')
    with pytest.raises(BadUsage, match=r"models\.x\.output: is missing"):
        prices.load(path)


@given(
    st.sampled_from(list(prices.TABLE.values())), st.integers(0, 300_000), st.integers(0, 5000), st.data()
)  # fmt: skip
def test_the_worst_is_never_exceeded(price: Price, size: int, most: int, data: st.DataObject) -> None:
    one = data.draw(st.integers(0, size))
    two = data.draw(st.integers(0, size - one))
    usage = Usage(one, data.draw(st.integers(0, most)), two, data.draw(st.integers(0, size - one - two)))
    assert prices.cost(price, usage) <= prices.worst(price, size, most) + 1e-12


def test_savings_are_against_the_model_that_would_have_answered() -> None:
    policy = parse(BOTH)
    saved = savings.saving(policy, "claude-haiku-5-5", prices.BUILT_IN, Usage(1000, 1000), 20)
    assert (saved.instead, saved.cloud) == ("claude-haiku-5-5", pytest.approx(0.0006))
    unknown = savings.saving(policy, "gpt-9", prices.BUILT_IN, Usage(1000, 1000), 20)
    assert (unknown.instead, unknown.cloud) == ("", 0)


def test_electricity_can_make_local_the_dearer_one() -> None:
    """300 W, 50 tokens/s, 31 yen/kWh, 155 yen per dollar: 20 000 s for a million tokens cost 51.7 yen."""
    electricity = Electricity(300, 31, "JPY", 155)
    assert savings.power(20_000, electricity) * 155 == pytest.approx(51.67, abs=0.01)
    assert savings.Saving("claude-haiku-5-5", 0.1, savings.power(20_000, electricity)).net < 0
