"""From what was collected to metrics: percentiles only where n allows them, every figure with its interval. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miyabi_llm.bench.stats import intervals
from miyabi_llm.bench.stats.collect import GOOD, OUTPUT, PROMPT, REQUESTS, Collector, Tally
from miyabi_llm.bench.stats.column import Column
from miyabi_llm.bench.stats.definitions import DEFINITIONS
from miyabi_llm.bench.stats.sketch import ERROR, Sketch
from miyabi_llm.bench.stats.values import Measured, Metric, Quantile
from miyabi_llm.bench.values import Run

CACHED_SHARE = 0.01  # of the prompts may be cached before a run is told not to measure them
LEAST_BLOCKS = 5  # of one load, for an interval of its rates
CACHED_TOKENS = 8.0  # a request; the opening of a chat template is the same in every prompt
_CLIENT = "client clock"
_POOLED = "pieces of one answer depend on each other: no intervals"


def metrics(collector: Collector, run: Run | Sequence[Run]) -> tuple[Measured, ...]:
    """What was measured of each target while `run` sent; several runs are blocks with other work between them."""
    windows = [(r.begin_ns, r.end_ns) for r in ((run,) if isinstance(run, Run) else run)]
    measured = []
    for name, tally in zip(collector.targets, collector.tallies, strict=True):
        tally.flush()
        found = [_ for _ in (*_distributions(tally), *_rates(tally, windows), *_shares(tally)) if _ is not None]
        order = {name: i for i, name in enumerate(DEFINITIONS)}
        found.sort(key=lambda m: order[m.name])
        measured.append(Measured(name, tuple(found), tally.counts(), _warnings(tally)))
    return tuple(measured)


def distribution(name: str, column: Column, source: str = "") -> Metric | None:
    """The metric of one figure over requests; None without a value."""
    if not column.n:
        return None
    if not column.error:
        return _exact(name, np.sort(column.array()), source)
    sketch = column.sketch()
    shares = [p / 100 for p in intervals.PERCENTILES]
    wanted = [s for share in shares for s in (share, *((r - 1) / (sketch.n - 1) for r in _ranks(sketch.n, share)))]
    values = sketch.quantiles(wanted)
    percentiles = {
        _label(p): Quantile(*values[3 * i : 3 * i + 3])
        for i, p in enumerate(intervals.PERCENTILES)
        if sketch.n >= intervals.least_for(p / 100)
    }
    return _metric(name, _moments(sketch) | {"percentiles": percentiles, "source": source, "error": ERROR})


def _exact(name: str, ordered: NDArray[np.float64], source: str) -> Metric:
    n = len(ordered)
    percentiles = {}
    for p in intervals.PERCENTILES:
        if n >= intervals.least_for(p / 100):
            low, high = (float(ordered[r - 1]) for r in _ranks(n, p / 100))
            percentiles[_label(p)] = Quantile(float(np.quantile(ordered, p / 100)), low, high)
    average, sd = float(ordered.mean()), float(ordered.std(ddof=1)) if n > 1 else math.nan
    parts = _centre(n, average, sd) | {"least": float(ordered[0]), "most": float(ordered[-1])}
    return _metric(name, parts | {"percentiles": percentiles, "source": source})


def _ranks(n: int, share: float) -> tuple[int, int]:
    return intervals.ranks(n, share)


def _pooled(name: str, sketch: Sketch, answers: int, source: str) -> Metric | None:
    """Over all pieces of all answers: a percentile needs pieces enough, and answers enough for a median."""
    if not sketch.n:
        return None
    shares = [p for p in intervals.PERCENTILES if sketch.n >= intervals.least_for(p / 100)]
    shares = shares if answers >= intervals.least_for(0.5) else []
    values = sketch.quantiles([p / 100 for p in shares])
    percentiles = {_label(p): Quantile(v) for p, v in zip(shares, values, strict=True)}
    parts = _moments(sketch) | {"low": None, "high": None, "percentiles": percentiles}
    return _metric(name, parts | {"source": source, "error": ERROR, "note": _POOLED})


def _moments(sketch: Sketch) -> dict[str, Any]:
    return _centre(sketch.n, sketch.mean, sketch.sd) | {"least": sketch.least, "most": sketch.most}


def _centre(n: int, average: float, sd: float) -> dict[str, Any]:
    low, high = intervals.mean(average, sd, n) or (None, None)
    return {"n": n, "mean": average, "low": low, "high": high, "sd": None if math.isnan(sd) else sd}


def _metric(name: str, parts: Mapping[str, Any]) -> Metric:
    unit, better, text = DEFINITIONS[name]
    return Metric(name, unit, better=better, definition=text, **parts)


def _label(p: float) -> str:
    return f"p{p:g}"


def _distributions(tally: Tally) -> list[Metric | None]:
    tokens = "tokens: " + _provenance(tally)
    sources = dict.fromkeys(("itl_request", "tpot", "decode_tps"), f"{_CLIENT}; {tokens}")
    sources |= dict.fromkeys(("server_prompt_tps", "server_decode_tps", "server_load"), "the server's own timings")
    sources |= {"prompt_tokens": "the server", "output_tokens": tokens, "prefill_tps": f"{_CLIENT}; prompt: the server"}
    found = [distribution(name, column, sources.get(name, _CLIENT)) for name, column in tally.columns.items()]
    found.append(_pooled("gap", tally.gaps, tally.many, f"{_CLIENT}, per piece"))
    found.append(_itl(tally, tokens))
    return found


def _itl(tally: Tally, tokens: str) -> Metric | None:
    """Token by token where every answer tells the tokens of its pieces, else the answers' own averages."""
    if tally.many and tally.itl_requests == tally.many:
        return _pooled("itl", tally.itl, tally.many, f"{_CLIENT}; each token: gap / tokens of the piece; {tokens}")
    source = f"{_CLIENT}; each answer: its average, the tokens of a piece are not known; {tokens}"
    return distribution("itl", tally.columns["itl_request"], source)


def _rates(tally: Tally, windows: Sequence[tuple[int, int]]) -> list[Metric | None]:
    """Amounts per second of sending; with blocks enough, the spread between them gives the interval."""
    lengths = np.array([(end - begin) / 1e9 for begin, end in windows])
    counts = tally.counts()
    if not counts.ok or lengths.sum() <= 0:
        return []
    amounts = tally.timeline.within(windows)
    rates = {"rps": (amounts[REQUESTS], counts.ok)}
    if counts.uncounted < counts.ok:
        rates["output_tps"] = (amounts[OUTPUT], counts.ok - counts.uncounted)
    if counts.prompt_tokens:
        rates["prompt_tps"] = (amounts[PROMPT], tally.columns["prompt_tokens"].n)
        if "output_tps" in rates:
            rates["total_tps"] = (amounts[PROMPT] + amounts[OUTPUT], counts.ok)
    if tally.goals:
        rates["goodput"] = (amounts[GOOD], tally.good)
    source = f"{_CLIENT}, {lengths.sum():.3f} s of sending; tokens: {_provenance(tally)}"
    return [_rate(name, amount, lengths, n, source) for name, (amount, n) in rates.items()]


def _rate(name: str, amounts: NDArray[np.float64], lengths: NDArray[np.float64], n: int, source: str) -> Metric:
    rate = float(amounts.sum() / lengths.sum())
    parts: dict[str, Any] = {"n": n, "mean": rate, "source": source}
    if len(lengths) >= LEAST_BLOCKS and lengths.min() > 0:
        between = intervals.mean(rate, float((amounts / lengths).std(ddof=1)), len(lengths))
        parts |= {"low": max(0.0, between[0]), "high": between[1]} if between else {}
        parts["note"] = f"interval from {len(lengths)} blocks"
    return _metric(name, parts)


def _shares(tally: Tally) -> list[Metric | None]:
    counts = tally.counts()
    asked = counts.ok + counts.failed
    found: list[Metric | None] = []
    if asked:
        found.append(_share("error_rate", counts.failed, asked))
        if tally.goals:
            goals = ", ".join(f"{name} <= {limit:g}" for name, limit in tally.goals.items())
            found.append(_share("good_share", tally.good, asked, goals))
    if counts.cached_of:
        share = counts.cached_tokens / counts.cached_of
        parts = {"n": tally.sums["cached_answers"], "mean": share, "source": "the server"}
        found.append(_metric("cached_share", parts))
    return found


def _share(name: str, hits: int, n: int, note: str = "") -> Metric:
    low, high = intervals.wilson(hits, n)
    return _metric(name, {"n": n, "mean": hits / n, "low": low, "high": high, "source": "counted", "note": note})


def _provenance(tally: Tally) -> str:
    whole = sum(tally.provenance.values())
    parts = [(name, count) for name, count in tally.provenance.most_common() if count]
    if len(parts) == 1:
        return parts[0][0]
    return ", ".join(f"{name} {count / whole:.0%}" for name, count in parts) or "none"


def _warnings(tally: Tally) -> tuple[str, ...]:
    counts, said = tally.counts(), []
    answers = tally.sums["cached_answers"]
    if counts.cached_of and counts.cached_tokens > max(CACHED_SHARE * counts.cached_of, CACHED_TOKENS * answers):
        share = counts.cached_tokens / counts.cached_of
        said.append(f"{share:.1%} of the prompt tokens came from the server's cache: time to first token is too good")
    if guessed := tally.provenance["chunks"]:
        said.append(f"{guessed} of {counts.ok} answers came without a token count: their pieces were counted instead")
    if counts.uncounted:
        said.append(f"{counts.uncounted} of {counts.ok} answers have no token count at all")
    return tuple(said)
