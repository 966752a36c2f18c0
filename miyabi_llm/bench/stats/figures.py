"""What one answer says: its times and rates, each by its definition. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from miyabi_llm.bench.values import Sample

# Distributions over requests, in the order in which reports show them.
PER_REQUEST = (
    "ttft",
    "ttft_text",
    "ttft_intended",
    "itl_request",
    "tpot",
    "e2e",
    "e2e_intended",
    "decode_tps",
    "prefill_tps",
    "server_prompt_tps",
    "server_decode_tps",
    "server_load",
    "prompt_tokens",
    "output_tokens",
)
NS = 1e9


def figures(sample: Sample) -> dict[str, float]:
    """The figures of a whole answer by name, in the units of their definitions; none of one that failed."""
    if not sample.ok:
        return {}
    found: dict[str, float] = {}
    last = sample.last_ns or sample.end_ns
    found["e2e"] = (last - sample.sent_ns) / NS
    found["e2e_intended"] = (last - sample.intended_ns) / NS
    tokens = sample.output_tokens
    if tokens is not None:
        found["output_tokens"] = float(tokens)
    if sample.prompt_tokens is not None:
        found["prompt_tokens"] = float(sample.prompt_tokens)
    if first := first_ns(sample):
        _first(found, sample, first)
        _decode(found, sample, (last - first) / NS)
    _server(found, sample)
    return found


def first_ns(sample: Sample) -> int:
    """When the first reasoning or text came; 0 when neither did."""
    return min((t for t in (sample.first_ns, sample.reasoning_ns) if t), default=0)


def _first(found: dict[str, float], sample: Sample, first: int) -> None:
    found["ttft"] = (first - sample.sent_ns) / NS
    found["ttft_intended"] = (first - sample.intended_ns) / NS
    # an answer of reasoning alone has its first piece in both fields and no text at all
    if sample.text and sample.first_ns:
        found["ttft_text"] = (sample.first_ns - sample.sent_ns) / NS
    processed = (sample.prompt_tokens or 0) - (sample.cached_tokens or 0)
    if processed > 0 and found["ttft"] > 0:
        found["prefill_tps"] = processed / found["ttft"]


def _decode(found: dict[str, float], sample: Sample, seconds: float) -> None:
    tokens = sample.output_tokens
    if tokens is None:
        return
    if tokens > 1:
        found["tpot"] = seconds / (tokens - 1)
    if (later := tokens - sample.first_tokens) > 0 and len(sample.times_ns) > 1:
        found["itl_request"] = seconds / later
        if seconds > 0:
            found["decode_tps"] = later / seconds


def _server(found: dict[str, float], sample: Sample) -> None:
    processed = (sample.prompt_tokens or 0) - (sample.cached_tokens or 0)
    if sample.server_prompt_ms and processed > 0:
        found["server_prompt_tps"] = processed / sample.server_prompt_ms * 1e3
    if sample.server_output_ms and sample.output_tokens:
        found["server_decode_tps"] = sample.output_tokens / sample.server_output_ms * 1e3
    if sample.server_load_ms is not None:
        found["server_load"] = sample.server_load_ms / 1e3


def chunk_tokens(sample: Sample) -> Sequence[int]:
    """The tokens of each piece where they are known: counted by the server, or as many tokens as pieces."""
    pieces = len(sample.times_ns)
    if len(sample.chunk_tokens) == pieces:
        return sample.chunk_tokens
    # text comes from a token at least: as many tokens as pieces are one for each
    if sample.output_tokens == pieces and sample.provenance not in ("chunks", "none"):
        return (1,) * pieces
    return ()


def spread(sample: Sample) -> list[float]:
    """The output tokens at each of the pieces' times: as counted, else evenly over the pieces after the first."""
    pieces, tokens = len(sample.times_ns), sample.output_tokens or 0
    known = chunk_tokens(sample)
    if known:  # what is left over had no text of its own: the end of the answer, as a rule
        return [*map(float, known[:-1]), float(known[-1] + max(0, tokens - sum(known)))]
    if pieces < 2:
        return [float(tokens)] * pieces
    first = min(sample.first_tokens, tokens)
    return [float(first), *[(tokens - first) / (pieces - 1)] * (pieces - 1)]
