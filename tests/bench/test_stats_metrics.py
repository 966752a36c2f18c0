"""Metrics against cases computed by hand."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from miyabi_llm.bench.speech import read
from miyabi_llm.bench.stats import Collector, Measured, figures, metrics, vllm
from miyabi_llm.bench.stats.column import KEEP
from miyabi_llm.bench.stats.definitions import DEFINITIONS
from miyabi_llm.bench.values import Call, Piece, Raw, Run, Sample
from miyabi_llm.errors import BadUsage
from tests.bench.making import BEGIN, MS, lost, run, sample


def measured(*samples: Sample, seconds: float = 1.0, runs: list[Run] | None = None, **fields: object) -> Measured:
    collector = Collector(["t"], origin_ns=BEGIN, **fields)  # type: ignore[arg-type]
    for s in samples:
        collector(s)
    return metrics(collector, runs or run(seconds))[0]


def test_one_answer_by_hand() -> None:
    # sent at 0, four pieces of a token each at 100, 120, 140, 160 ms; 10 prompt tokens, 4 of them cached
    found = figures(
        sample(
            intended_ns=BEGIN - 50 * MS,
            prompt_tokens=10,
            cached_tokens=4,
            server_prompt_ms=60.0,
            server_output_ms=80.0,
            server_load_ms=5.0,
        )
    )
    assert found == pytest.approx(
        {
            "ttft": 0.100,
            "ttft_text": 0.100,
            "ttft_intended": 0.150,
            "e2e": 0.160,
            "e2e_intended": 0.210,
            "tpot": 0.060 / 3,
            "itl_request": 0.060 / 3,
            "decode_tps": 3 / 0.060,
            "prefill_tps": 6 / 0.100,
            "server_prompt_tps": 6 / 0.060,
            "server_decode_tps": 4 / 0.080,
            "server_load": 0.005,
            "prompt_tokens": 10,
            "output_tokens": 4,
        }
    )


def test_reasoning_is_the_first_token_and_text_is_apart() -> None:
    found = figures(sample(reasoning_ns=BEGIN + 70 * MS))
    assert (found["ttft"], found["ttft_text"]) == pytest.approx((0.07, 0.1))
    only = figures(sample(reasoning_ns=BEGIN + 100 * MS, text=""))
    assert "ttft_text" not in only
    assert only["ttft"] == pytest.approx(0.1)


def test_several_tokens_in_the_first_piece_are_no_gaps() -> None:
    # 7 tokens, 4 of them at 100 ms: the other 3 took 60 ms
    found = figures(sample(tokens=7, first_tokens=4))
    assert found["itl_request"] == pytest.approx(0.060 / 3)
    assert found["tpot"] == pytest.approx(0.060 / 6), "TPOT is (E2E - TTFT) / (n - 1) whatever the first piece held"


def test_gaps_are_pooled_and_tokens_are_not_pieces() -> None:
    # gaps 20, 60 ms with 2 and 3 tokens: per token 10, 10, 20, 20, 20
    uneven = sample((100, 120, 180), tokens=6, chunk_tokens=(1, 2, 3), provenance="usage per chunk")
    found = measured(*[uneven] * 6)
    gap, itl = found.metric("gap"), found.metric("itl")
    assert gap is not None
    assert itl is not None
    assert (gap.n, itl.n) == (12, 30)
    assert gap.mean == pytest.approx(0.040)
    assert itl.mean == pytest.approx(0.080 / 5)
    assert itl.percentiles["p50"].value == pytest.approx(0.020, rel=0.006)
    assert itl.percentiles["p50"].low is None, "the pieces of an answer are not independent"
    assert "tokens of the piece" in itl.source


def test_unknown_pieces_give_the_average_of_each_answer() -> None:
    found = measured(sample(tokens=7), sample(tokens=4))
    itl = found.metric("itl")
    assert itl is not None
    assert itl.n == 2
    assert itl.mean == pytest.approx((0.060 / 6 + 0.060 / 3) / 2)
    assert "its average" in itl.source
    as_many = measured(sample(tokens=4)).metric("itl")
    assert as_many is not None
    assert as_many.n == 3, "as many tokens as pieces: one in each"


def test_rates_count_what_came_in_the_window() -> None:
    # two answers of 4 tokens; the second has half of its pieces after the window of 1 s
    late = sample((100, 120, 140, 160), sent=870)
    found = measured(sample(prompt_tokens=10), replace(late, prompt_tokens=20))
    value = {m.name: m.mean for m in found.metrics}
    assert value["output_tps"] == pytest.approx(6, rel=0.01)
    assert value["rps"] == pytest.approx(1.5, rel=0.01)
    assert value["prompt_tps"] == pytest.approx(30, rel=0.01)
    assert value["total_tps"] == pytest.approx(36, rel=0.01)


def test_blocks_of_a_load_give_its_rates_an_interval() -> None:
    windows = [run(1.0, begin=2.0 * i) for i in range(5)]
    answers = [sample(sent=2000 * i + 100 * j) for i in range(5) for j in range(i + 1)]
    rate = measured(*answers, runs=windows).metric("rps")
    assert rate is not None
    # 1, 2, 3, 4, 5 answers a second: mean 3, sd 1.581, t(4) = 2.776
    assert (rate.mean, rate.low, rate.high) == pytest.approx((3, 3 - 1.963, 3 + 1.963), abs=2e-3)


def test_errors_by_class_with_their_interval() -> None:
    found = measured(*[sample()] * 9, lost("cut"), lost("cancelled"))
    rate = found.metric("error_rate")
    assert rate is not None
    assert rate.n == 10, "the cancelled are not waited for"
    assert (rate.mean, rate.low, rate.high) == pytest.approx((0.1, 0.0179, 0.4042), abs=5e-4)
    assert (found.counts.ok, found.counts.failed, found.counts.cancelled) == (9, 1, 1)
    assert found.counts.errors == {"cut": 1}
    assert found.counts.examples == {"cut": "why"}
    assert found.counts.finish == {"length": 9}


def test_failures_alone_give_no_numbers() -> None:
    found = measured(*[lost("connect")] * 3)
    assert [m.name for m in found.metrics] == ["error_rate"]
    assert found.metrics[0].mean == 1


def test_goodput_keeps_every_limit_and_counts_failures_as_misses() -> None:
    slow = sample((300, 320, 340, 360))
    found = measured(sample(), slow, lost(), goals={"ttft": 0.2, "tpot": 0.05})
    value = {m.name: m.mean for m in found.metrics}
    assert value["goodput"] == pytest.approx(1)
    assert value["good_share"] == pytest.approx(1 / 3)
    with pytest.raises(BadUsage, match="no such figure: ttf"):
        Collector(["t"], goals={"ttf": 1})


def test_percentiles_only_where_n_allows() -> None:
    labels = {n: set(measured(*[sample()] * n).metric("ttft").percentiles) for n in (5, 6, 71, 72, 368)}  # type: ignore[union-attr]
    assert labels[5] == set()
    assert labels[6] == {"p50"}
    assert "p95" not in labels[71]
    assert "p95" in labels[72]
    assert labels[368] == {"p50", "p75", "p90", "p95", "p99"}


def test_percentiles_are_numpys_and_their_intervals_are_order_statistics() -> None:
    times = np.random.default_rng(3).integers(50, 900, 100)
    ttft = measured(*[sample((int(t), int(t) + 10)) for t in times]).metric("ttft")
    assert ttft is not None
    for label, q in ttft.percentiles.items():
        assert q.value == pytest.approx(np.quantile(times / 1e3, float(label[1:]) / 100))
    middle, ordered = ttft.percentiles["p50"], sorted(times / 1e3)
    assert (middle.low, middle.high) == pytest.approx((ordered[39], ordered[60]))
    assert ttft.sd == pytest.approx(np.std(times / 1e3, ddof=1))


def test_cached_prompts_are_told() -> None:
    hit = measured(sample(prompt_tokens=1000, cached_tokens=900))
    assert hit.metric("cached_share").mean == pytest.approx(0.9)  # type: ignore[union-attr]
    assert "90.0% of the prompt tokens" in hit.warnings[0]
    template = measured(sample(prompt_tokens=100, cached_tokens=4))
    assert template.warnings == (), "the opening of a chat template is no hit"
    system = measured(sample(prompt_tokens=56, cached_tokens=14))
    assert len(system.warnings) == 1, "the words of a system's message are one"


def test_counted_pieces_are_told() -> None:
    found = measured(sample(provenance="chunks"), sample(), sample(tokens=None, provenance="none"))
    assert any("pieces were counted" in w for w in found.warnings)
    assert found.counts.provenance == {"chunks": 1, "none": 1, "server timings": 1}
    assert found.counts.uncounted == 1


def test_a_server_that_counts_in_every_piece_is_read_so() -> None:
    counted = [
        {"choices": [{"delta": {"content": t}}], "usage": {"completion_tokens": n}} for t, n in (("a", 2), ("b", 5))
    ]
    end = [{"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"completion_tokens": 6}}]
    pieces = [Piece((i + 1) * MS, 0, b"data: " + json.dumps(v).encode() + b"\n\n") for i, v in enumerate(counted + end)]
    got = read(Raw(Call(b""), 0, 0, 0, 3 * MS, 200, pieces), "openai-chat")
    assert (got.chunk_tokens, got.output_tokens) == ((2, 3), 6)
    uncounted = read(Raw(Call(b""), 0, 0, 0, 3 * MS, 200, [*pieces[2:], *pieces[:1]]), "openai-chat")
    assert uncounted.ok


def test_figures_by_name() -> None:
    found = measured(*[sample()] * 6)
    assert found.figure("ttft_p50").value == pytest.approx(0.1)  # type: ignore[union-attr]
    assert found.figure("ttft_mean").value == pytest.approx(0.1)  # type: ignore[union-attr]
    assert found.figure("error_rate").value == 0  # type: ignore[union-attr]
    assert found.figure("ttft_p99") is None
    assert found.figure("nope") is None


def test_the_names_of_vllm() -> None:
    theirs = vllm(measured(*[sample(prompt_tokens=10)] * 6), 1.0)
    assert (theirs["completed"], theirs["total_input_tokens"], theirs["total_output_tokens"]) == (6, 60, 24)
    assert theirs["median_ttft_ms"] == pytest.approx(100)
    assert theirs["mean_itl_ms"] == pytest.approx(20)
    assert "p99_ttft_ms" not in theirs
    assert theirs["request_goodput"] is None


def test_shards_merge_to_the_whole() -> None:
    samples = [sample((100 + i, 130 + i, 150 + i), tokens=3, sent=i) for i in range(60)] + [lost()] * 3
    whole = measured(*samples)
    parts = [Collector(["t"], origin_ns=BEGIN) for _ in range(3)]
    for i, s in enumerate(samples):
        parts[i % 3](s)
    parts = [pickle.loads(pickle.dumps(part)) for part in parts]  # as they come from other processes
    for other in parts[1:]:
        parts[0].merge(other)
    merged = metrics(parts[0], run())[0]
    assert merged.counts == whole.counts
    for a, b in zip(whole.metrics, merged.metrics, strict=True):
        assert (a.name, a.n, a.percentiles) == (b.name, b.n, b.percentiles)
        assert a.mean == pytest.approx(b.mean, rel=1e-3)


def test_samples_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    with Collector(["t"], samples=path, origin_ns=BEGIN) as collector:
        collector(sample())
        collector(lost("http"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["target"], r["error"]) for r in rows] == [("t", ""), ("t", "http")]
    assert "text" not in rows[0]
    with pytest.raises(BadUsage, match="No such file"):
        Collector(["t"], samples=tmp_path / "no" / "x.jsonl")


def test_memory_does_not_grow_with_requests() -> None:
    answers = [
        sample(tuple(range(100 + i, 400, 20)), tokens=30, prompt_tokens=9, server_prompt_ms=1.0, server_output_ms=1.0)
        for i in range(10)
    ]
    collector, process, sizes = Collector(["t"], origin_ns=BEGIN), psutil.Process(), []
    for number in range(100_000):
        if number in (2_000, KEEP + 5_000):
            sizes.append(process.memory_info().rss)
        collector(answers[number % 10])
    sizes.append(process.memory_info().rss)
    assert sizes[2] - sizes[0] < 24 << 20
    assert sizes[2] - sizes[1] < 8 << 20, "the figures of the last 45,000 requests are 8 bytes each at most"
    found = metrics(collector, run(0.4))[0]
    assert found.metric("gap").n == 1_400_000  # type: ignore[union-attr]
    assert found.metric("ttft").n == 100_000  # type: ignore[union-attr]
    assert found.metric("ttft").error > 0  # type: ignore[union-attr]
    assert "p99.9" in found.metric("ttft").percentiles  # type: ignore[union-attr]


def test_every_metric_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "bench-metrics.md").read_text(encoding="utf-8")
    for name, (unit, _, text) in DEFINITIONS.items():
        assert f"| `{name}` | {unit} | {text} |" in page, name
