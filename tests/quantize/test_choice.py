"""Order, intervals, gates, names and provenance: everything that needs no program."""

import random
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm import config
from miyabi_llm.cli.quantize import budget
from miyabi_llm.errors import BadUsage
from miyabi_llm.quantize import choose, provenance, quality, sizes
from miyabi_llm.quantize.card import default_name
from miyabi_llm.quantize.values import Limits, Measured, Order, Planned, Quality
from miyabi_llm.refs import ModelRef
from miyabi_llm.tools.quantize_output import Row, parse_divergence, parse_rows
from miyabi_llm.tools.quantizing import Window
from miyabi_llm.types import MemoryEstimate

from .test_output import TEXTS

NONE = MemoryEstimate(0, 0, 0, 0, 0)


def planned(kind: str, size: int, *, fits: bool | None = None) -> Planned:
    return Planned(kind, size, size, 0.5, 4.0, {}, 0, NONE, size, fits)


def measured(kind: str, size: int, kld: float, half: float = 0.001) -> Measured:
    q = Quality(kld, half / 2, kld - half, kld + half, 90.0, 8, 1000, "x")
    return Measured(kind, "0" * 64, size, 1.0, q, None)


def test_what_is_larger_and_worse_is_skipped() -> None:
    types = choose.mark_dominated([planned("Q4_0", 100), planned("Q4_K_M", 99), planned("Q3_K_M", 80)])
    assert [p.dominated for p in types] == ["Q4_K_M", None, None]
    assert choose.order(types, named=False) == ("Q4_K_M", "Q3_K_M")
    assert choose.order(types, named=True) == ("Q4_0", "Q4_K_M", "Q3_K_M")


def test_with_a_budget_the_largest_that_fit_come_first_and_two_at_most() -> None:
    known = [("Q8_0", 9, False), ("Q6_K", 7, True), ("Q5_K_M", 6, True), ("Q4_K_M", 5, True)]
    types = choose.mark_dominated([planned(k, s, fits=f) for k, s, f in known])
    assert choose.order(types, named=False) == ("Q6_K", "Q5_K_M")


def test_a_type_that_does_not_fit_dominates_nothing() -> None:
    """Memory is not size: a second copy for the processor may make the smaller file the larger server."""
    types = choose.mark_dominated([planned("IQ4_XS", 10, fits=False), planned("Q3_K_M", 11, fits=True)])
    assert choose.order(types, named=False) == ("Q3_K_M",)


def test_what_saves_nothing_is_made_only_when_it_is_named() -> None:
    types = [replace(planned("Q8_0", 9, fits=True), saved=-0.1), planned("Q4_0", 5, fits=True)]
    assert choose.order(types, named=False) == ("Q4_0",)
    assert choose.order(types, named=True) == ("Q8_0", "Q4_0")


def test_overlapping_intervals_are_said() -> None:
    a, b, c = measured("Q4_K_M", 3 << 20, 0.010), measured("Q4_K_S", 2 << 20, 0.0115), measured("Q2_K", 1 << 20, 0.2)
    said = choose.notes([a, b, c], "Q4_K_M")
    assert said == ("Q4_K_S is 1.0 MiB smaller and indistinguishable from Q4_K_M on this text",)


def test_the_front() -> None:
    found = [measured("Q4_0", 100, 0.07), measured("Q4_K_M", 99, 0.03), measured("Q3_K_M", 80, 0.1)]
    assert [m.best for m in choose.mark_front(found)] == [False, True, True]


def test_the_interval_is_the_wider_of_two() -> None:
    found = parse_divergence(TEXTS["kld-Q4_K_M.out"])
    assert found is not None
    low, high = quality.interval(found.rows, found.mean, found.mean_error)
    assert low < found.mean - 1.96 * found.mean_error
    assert high > found.mean + 1.96 * found.mean_error
    even = tuple(Row(i, 0.01, 0.001, 90.0) for i in range(1, 9))
    assert quality.interval(even, 0.01, 0.001) == (pytest.approx(0.01 - 0.00196), pytest.approx(0.01 + 0.00196))


def test_the_gate_asks_the_upper_end() -> None:
    found = parse_divergence(TEXTS["kld-Q4_0.out"])
    assert found is not None
    q = quality.judged(found, Window(512, 8), "x")
    assert q.tokens == 2040
    assert quality.passes(q, Limits()) is None
    assert quality.passes(q, Limits(0.036)) is False  # the mean is 0.0354
    assert quality.passes(q, Limits(q.high)) is True
    assert quality.passes(replace(q, stopped=True), Limits(1.0)) is False


def test_the_gate_asks_the_tail_and_the_top_token_too() -> None:
    found = parse_divergence(TEXTS["kld-Q4_0.out"])
    assert found is not None
    q = quality.judged(found, Window(512, 8), "x")
    assert quality.failures(q, Limits(1.0, 0.8, 92.0)) == ()
    assert quality.failures(q, Limits(1.0, 0.79)) == (
        "one token in a thousand differs by 0.796 and more; at most 0.79 is allowed",
    )
    (why,) = quality.failures(q, Limits(top=93.0))  # measured 93.4, but surely only 92.4
    assert why == "the likeliest token stayed the same for 92.4% or more; at least 93% must"


def test_limits_that_were_not_said_follow_from_the_mean() -> None:
    assert quality.limits(Order()) == Limits()
    derived = quality.limits(Order(max_kld=0.04))
    assert derived == Limits(0.04, pytest.approx(2.0), pytest.approx(60.0))
    assert quality.limits(Order(max_kld=0.04, max_p999=1.0, min_top=95.0)) == Limits(0.04, 1.0, 95.0)
    assert quality.limits(Order(min_top=95.0)) == Limits(top=95.0)
    for name in ("Q8_0", "Q4_K_M", "Q4_0", "Q2_K"):  # what was measured is within what follows from its mean
        found = parse_divergence(TEXTS[f"kld-{name}.out"])
        assert found is not None
        q = quality.judged(found, Window(512, 8), "x")
        assert quality.failures(q, quality.limits(Order(max_kld=q.high))) == ()


def test_a_hopeless_candidate_is_known_after_two_windows() -> None:
    rows = parse_rows(TEXTS["kld-Q2_K.out"])
    assert [quality.hopeless(r, Limits(0.05)) for r in rows[:2]] == [False, True]
    assert [quality.hopeless(r, Limits(top=95.0)) for r in rows[:2]] == [False, True]
    assert not any(quality.hopeless(r, Limits()) for r in rows)
    assert not any(quality.hopeless(r, Limits(0.3, 0.001, 50.0)) for r in rows)


@given(st.lists(st.floats(-1e-4, 10), min_size=1, max_size=40), st.floats(0, 1))
def test_an_interval_holds_its_mean(means: list[float], error: float) -> None:
    rows = tuple(Row(i + 1, sum(means[: i + 1]) / (i + 1), error, 50.0) for i in range(len(means)))
    low, high = quality.interval(rows, rows[-1].mean, error)
    assert low <= rows[-1].mean <= high


def test_the_size_of_recorded_probabilities() -> None:
    assert sizes.logits_bytes(Window(512, 8), 151_936) == 619_931_604  # a file that was written
    assert sizes.chunks_at_most(600, Window(256, 16)) == 3


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        ("gemma3:270m", "gemma3:270m-q4_k_m"),
        ("hf:Org/Repo-GGUF:F16", "repo:q4_k_m"),
        ("file:/somewhere/My Model.gguf", "my-model:q4_k_m"),
        ("ollama:library/llama3:8b", "llama3:8b-q4_k_m"),
        ("file:/x/....gguf", "model:q4_k_m"),
        ("file:/x/ollama.gguf", "ollama-model:q4_k_m"),  # ollama:q4_k_m would be a name at Ollama's registry
    ],
)
def test_names(ref: str, name: str) -> None:
    assert str(default_name(ModelRef.parse(ref), "Q4_K_M")) == name


def test_an_amount_of_memory() -> None:
    settings = config.load({"HOME": "/nonexistent"})
    assert budget(None, settings) is None
    assert budget("4GiB", settings) == 4 << 30
    assert budget("1.5g", settings) == 3 << 29
    assert budget("300MB", settings) == 300_000_000
    assert (budget("auto", settings) or 0) > 0
    for wrong in ("", "0", "much", "4 GiB per day", "-1G"):
        with pytest.raises(BadUsage):
            budget(wrong, settings)


def blocks(kind: str, *, f16: bool = True, seed: int = 3) -> list[tuple[float, ...]]:
    """Runs of 32 weights as a format leaves them: q4 (16 steps between extremes), q8 (127ths), or none."""
    rng = random.Random(seed)
    runs = []
    for _ in range(48):
        run = [rng.gauss(0, 0.05) for _ in range(32)]
        if kind == "q4":
            low, step = min(run), (max(run) - min(run)) / 15
            run = [low + round((v - low) / step) * step for v in run]
        elif kind == "q8":
            step = max(map(abs, run)) / 127
            run = [round(v / step) * step for v in run]
        runs.append(struct.unpack("<32e", struct.pack("<32e", *run)) if f16 else tuple(run))
    return runs


def test_traces_of_rounding() -> None:
    assert provenance.few_values(blocks("q4"))
    assert provenance.on_grid(blocks("q8"))
    assert provenance.on_grid(blocks("q8", f16=False))
    for runs in (blocks("none"), blocks("none", f16=False)):
        assert not provenance.few_values(runs)
        assert not provenance.on_grid(runs)
    assert not provenance.few_values(blocks("q8"))


def test_empty_and_constant_weights_prove_nothing() -> None:
    assert not provenance.few_values([(0.0,) * 32] * 48)
    assert not provenance.on_grid([(0.0,) * 32] * 48)
    assert not provenance.few_values([])


def test_no_shipped_text_is_too_short() -> None:
    text = Path(choose.__file__).parent.parent / "data" / "evaluation.txt"
    content = text.read_text("utf-8")
    assert "def " in content
    assert "の" in content
    assert len(content.encode()) > 10_000
