"""The names of `vllm bench serve` for our figures, for scripts that read its JSON. Pure."""

from __future__ import annotations

from miyabi_llm.bench.stats.values import Measured, Metric

# Theirs for ours. Their inter-token latency is the gap between pieces, whatever the tokens in one.
_TIMES = {"ttft": "ttft", "tpot": "tpot", "itl": "gap", "e2el": "e2e"}
_RATES = {
    "request_throughput": "rps",
    "request_goodput": "goodput",
    "output_throughput": "output_tps",
    "total_token_throughput": "total_tps",
}


def vllm(measured: Measured, seconds: float) -> dict[str, float | int | None]:
    """One target's figures under vLLM's names, times in milliseconds; None for what was not measured.

    Percentiles are there only where n allows them. `seconds` is the time of sending: vLLM's rates are over the whole
    run, the wait for the last answers in it, and so are lower for short runs.
    """
    counts = measured.counts
    found: dict[str, float | int | None] = {
        "duration": seconds,
        "completed": counts.ok,
        "failed": counts.failed,
        "total_input_tokens": counts.prompt_tokens,
        "total_output_tokens": counts.output_tokens,
    }
    for theirs, ours in _RATES.items():
        metric = measured.metric(ours)
        found[theirs] = None if metric is None else metric.mean
    for theirs, ours in _TIMES.items():
        found |= _times(theirs, measured.metric(ours))
    return found


def _times(name: str, metric: Metric | None) -> dict[str, float | int | None]:
    if metric is None:
        return {f"mean_{name}_ms": None, f"median_{name}_ms": None, f"std_{name}_ms": None}
    middle = metric.percentiles.get("p50")
    found: dict[str, float | int | None] = {
        f"mean_{name}_ms": metric.mean * 1e3,
        f"median_{name}_ms": None if middle is None else middle.value * 1e3,
        f"std_{name}_ms": None if metric.sd is None else metric.sd * 1e3,
    }
    return found | {f"{p}_{name}_ms": q.value * 1e3 for p, q in metric.percentiles.items()}
