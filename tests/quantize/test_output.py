"""The parsers on real output, on output that was cut, and on anything at all."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.tools import quantize_output as output

FIXTURES = Path(__file__).parent.parent / "fixtures" / "llama-cpp"
TEXTS = {p.name: p.read_text("utf-8") for p in FIXTURES.iterdir() if p.suffix in (".out", ".err")}


@pytest.mark.parametrize(
    ("name", "mean", "error", "p999", "top", "ppl", "ratio"),
    [
        ("Q8_0", 0.000464, 0.000019, 0.009761, 99.118, 5.823931, 0.999242),
        ("Q4_K_M", 0.003153, 0.000122, 0.058383, 97.353, 5.841169, 1.002199),
        ("Q4_0", 0.035415, 0.001470, 0.796478, 93.431, 5.991307, 1.027959),
        ("Q2_K", 0.241069, 0.008881, 3.530464, 81.078, 7.004640, 1.201822),
    ],
)
def test_divergence(name: str, mean: float, error: float, p999: float, top: float, ppl: float, ratio: float) -> None:
    found = output.parse_divergence(TEXTS[f"kld-{name}.out"])
    assert found is not None
    assert (found.mean, found.mean_error, found.p999) == (mean, error, p999)
    assert (found.same_top, found.ppl, found.base_ppl, found.ppl_ratio) == (top, ppl, 5.828350, ratio)
    assert [r.chunk for r in found.rows] == list(range(1, 9))
    assert found.rows[-1].mean == pytest.approx(mean, abs=6e-6)


def test_a_base_run() -> None:
    text = TEXTS["base.err"] + TEXTS["base.out"]
    assert output.parse_perplexity(text) == (5.8283, 0.35401)
    assert output.chunks_done(text) == (8, 8)
    assert output.chunks_done(TEXTS["base.err"]) == (0, 8)


def test_a_dry_run_adds_up_to_the_tool_s_own_total() -> None:
    found = output.parse_dry_run(TEXTS["dry.err"])
    assert found is not None
    assert (len(found.tensors), found.mib, found.fallbacks, found.needs_imatrix) == (339, 1059.89, 0, False)
    assert sum(t.nbytes or 0 for t in found.tensors) / 2**20 == pytest.approx(1059.89, abs=0.01)
    assert found.tensors[0] == output.PlannedTensor("output.weight", (1536, 151936), "Q6_K")
    assert found.tensors[1] == output.PlannedTensor("output_norm.weight", (1536,), "F32")


def test_a_dry_run_of_a_type_that_needs_an_imatrix() -> None:
    found = output.parse_dry_run(TEXTS["dry2.err"])
    assert found is not None
    assert (len(found.tensors), found.mib, found.needs_imatrix) == (339, 592.19, True)
    assert sum(t.nbytes or 0 for t in found.tensors) / 2**20 == pytest.approx(592.19, abs=0.01)


def test_a_run_of_one_window() -> None:
    assert output.parse_perplexity(TEXTS["ppl_probe.err"]) == (4.5610, 0.67931)
    assert output.chunks_done(TEXTS["ppl_probe.err"] + TEXTS["ppl_probe.out"]) == (1, 1)
    assert output.parse_divergence(TEXTS["ppl_probe.err"] + TEXTS["ppl_probe.out"]) is None


@pytest.mark.parametrize(("name", "mib"), [("Q8_0", 1801.09), ("Q4_K_M", 1059.89), ("Q4_0", 1011.16), ("Q2_K", 712.33)])
def test_a_real_run_reads_like_its_plan(name: str, mib: float) -> None:
    text = TEXTS[f"quant-{name}.err"] + TEXTS[f"quant-{name}.out"]
    assert output.tensors_done(text) == (339, 339)
    found = output.parse_dry_run(text)
    assert found is not None
    assert (len(found.tensors), found.mib) == (339, mib)
    assert sum(t.nbytes or 0 for t in found.tensors) / 2**20 == pytest.approx(mib, abs=0.01)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K_M", "Q4_0", "Q2_K"])
def test_the_other_stream_of_a_comparison_adds_and_takes_nothing(name: str) -> None:
    out, err = TEXTS[f"kld-{name}.out"], TEXTS[f"kld-{name}.err"]
    assert output.parse_divergence(err) is None
    assert output.chunks_done(err) == (0, 8)
    assert output.parse_divergence(err + out) == output.parse_divergence(out)
    rows = output.parse_rows(out)
    assert all(r.same_top_error > 0 for r in rows)


def test_progress_of_a_run_that_was_killed() -> None:
    text = TEXTS["quant-Q6_K.err"]
    assert output.tensors_done(text) == (183, 339)
    assert output.parse_dry_run(text) is None


@given(st.sampled_from(sorted(TEXTS)), st.integers(0, 60_000), st.integers(0, 60_000), st.text(max_size=40))
def test_cut_and_disturbed_output_gives_a_value_or_none(name: str, start: int, end: int, noise: str) -> None:
    text = TEXTS[name]
    parsers(text[start:end])
    parsers(text[:start] + noise + text[end:])


@given(st.text(alphabet="[] /0123456789.-±%nafKLD:=>MiBQ_()type size,\n\t ", max_size=300))
def test_anything_gives_a_value_or_none(text: str) -> None:
    parsers(text)


def parsers(text: str) -> None:
    found = output.parse_divergence(text)
    assert found is None or found.rows == output.parse_rows(text)
    plan = output.parse_dry_run(text)
    assert plan is None or plan.tensors
    for tensor in plan.tensors if plan else ():
        assert tensor.nbytes is None or tensor.nbytes >= 0
    output.tensors_done(text)
    output.chunks_done(text)
    output.parse_perplexity(text)
    output.parse_types(text)
    output.parse_bench(text)
