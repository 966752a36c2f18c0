"""The language of gates: what it means, and what it says about what it does not understand."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from miyabi_llm.bench.gate.expr import DEFAULT, SINGLE, SPREAD, STATISTICS, Rule, parse, parse_all
from miyabi_llm.bench.stats.definitions import DEFINITIONS
from miyabi_llm.errors import BadUsage


@pytest.mark.parametrize(
    ("text", "name", "kind", "bound"),
    [
        ("ttft_p50 > +10%", "ttft_p50", "relative", 0.10),
        ("ttft_p95>500ms", "ttft_p95", "absolute", 0.5),
        (" ttft_p99.9 >= 1.5 s ", "ttft_p99.9", "absolute", 1.5),
        ("error_rate > 1%", "error_rate", "absolute", 0.01),
        ("error_rate > 0.01", "error_rate", "absolute", 0.01),
        ("error_rate > +1%", "error_rate", "relative", 0.01),
        ("output_tps < -5%", "output_tps", "relative", -0.05),
        ("output_tps < 20 tok/s", "output_tps", "absolute", 20.0),
        ("tpot_p50 > 30ms", "tpot_p50", "absolute", 0.03),
        ("gap_mean > 250us", "gap_mean", "absolute", 0.00025),
        ("goodput < 2/s", "goodput", "absolute", 2.0),
    ],
)
def test_what_it_means(text: str, name: str, kind: str, bound: float) -> None:
    rule = parse(text)
    assert (rule.name, rule.kind) == (name, kind)
    assert rule.bound == pytest.approx(bound)


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("", 1, "name of a metric, found the end"),
        ("  500ms", 3, "name of a metric, found '500ms'"),
        ("tttf_p50 > +10%", 1, "did you mean ttft_p50"),
        ("ttft > 500ms", 1, "ttft_p50"),
        ("ttft_p42 > 3s", 6, "p50, p75"),
        ("output_tps_p50 < 3", 1, "write output_tps"),
        ("ttft_p50", 9, "expected < or >"),
        ("ttft_p50 => 4ms", 10, "'=>' is none of"),
        ("ttft_p50 < +10%", 10, "turn it around, >"),
        ("output_tps > +5%", 12, "turn it around, <"),
        ("ttft_p50 > ", 12, "expected a number"),
        ("ttft_p50 > nan", 12, "expected a number"),
        ("ttft_p50 > 1e99s", 12, "too large"),
        ("ttft_p50 > 10%", 12, "+10% or -10%"),
        ("ttft_p50 > +10ms", 12, "a sign is for a change"),
        ("ttft_p50 > 500", 15, "expected a unit (s, ms"),
        ("ttft_p50 > 3 parsecs", 14, "found 'parsecs'"),
        ("ttft_p50 > -5%", 1, "above 0%"),
        ("output_tps < -100%", 1, "100% or more"),
        ("ttft_p50 > 3s and more", 13, "found 's and more'"),
    ],
)
def test_what_it_says(text: str, position: int, words: str) -> None:
    with pytest.raises(BadUsage) as caught:
        parse(text)
    assert caught.value.details["position"] == position
    assert words in f"{caught.value.message} {caught.value.hint}"


def test_objectives_say_what_must_hold() -> None:
    assert parse("ttft_p95 < 500ms", objective=True).operator == ">"
    assert parse("output_tps > 20", objective=True).operator == "<"
    for wrong in ("ttft_p95 > 500ms", "ttft_p50 < +10%"):
        with pytest.raises(BadUsage):
            parse(wrong, objective=True)


def test_the_default_and_repeated_rules() -> None:
    assert [r.name for r in parse_all()] == ["ttft_p50", "tpot_p50", "output_tps", "error_rate"]
    assert not any("p99" in text for text in DEFAULT)
    assert len(parse_all(["ttft_p50 > +5%", "ttft_p50 > 1s"])) == 2
    with pytest.raises(BadUsage, match="two rules"):
        parse_all(["ttft_p50 > +5%", "ttft_p50 > +10%"])


@given(st.one_of(st.text(max_size=40), st.text("ttft_p95 ><=+-.%ms0123e/", max_size=30)))
@example("ttft_p50 > +1e400%")
@example("ttft_p50 > \u0661\u0660ms")
def test_any_text_is_a_rule_or_an_explained_error(text: str) -> None:
    found: Rule | BadUsage
    try:
        found = parse(text)
    except BadUsage as e:
        found = e
    if isinstance(found, BadUsage):
        assert found.hint
        assert 1 <= found.details["position"] <= len(text) + 1


@given(
    st.sampled_from([*SINGLE, *(f"{m}_{s}" for m in SPREAD for s in STATISTICS)]),
    st.integers(1, 99),
    st.sampled_from(["", " "]),
)
def test_every_metric_takes_a_change(name: str, share: int, gap: str) -> None:
    better = DEFINITIONS[name if name in SINGLE else name.rpartition("_")[0]].better
    sign, operator = ("-", "<") if better == "higher" else ("+", ">")
    rule = parse(f"{name}{gap}{operator}{gap}{sign}{share}{gap}%")
    assert rule.name == name
    assert rule.tolerance > 0
