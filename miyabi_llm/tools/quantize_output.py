"""What llama-quantize, llama-perplexity and llama-bench print, as values: pure parsers that never raise on odd text.

The forms are those of llama.cpp 0c1e570; figures are found by their label, wherever in the text it stands, because the
programs write some lines in pieces and newer builds add lines.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from miyabi_llm.ggml import TYPES

_NUMBER = r"(-?(?:\d{1,15}\.\d{1,15}|nan|inf))"
_TENSOR = re.compile(
    r"^\[ *(\d{1,9})/ *(\d{1,9})\] +(\S.{0,127}?) +- \[([\d, ]{1,80})\], type = +(\w{1,16}), (.*)$", re.M
)
_COUNTER = re.compile(r"^\[ *(\d{1,9})/ *(\d{1,9})\] ", re.M)
_DRY_TYPE = re.compile(r"-> +[\d.]+ MiB \((\w+)\)")
_REAL_TYPE = re.compile(r"converting to (\w+) \.\.")
_QUANT_SIZE = re.compile(r"quant size += +(\d{1,12}\.\d{2}) MiB")
_FALLBACKS = re.compile(r"WARNING: (\d{1,9}) of \d+ tensor\(s\) required fallback")
_IMATRIX = "will require an imatrix"  # printed by a dry run only
_TYPE_LINE = re.compile(r"^ *(?:\d+ +or +)?([A-Z][A-Z0-9_]+) *: *(.*)$", re.M)
_CHUNK_PPL = re.compile(r"\[(\d{1,9})\]\d")
_CHUNKS = re.compile(r"over (\d{1,9}) chunks")
_FINAL = re.compile(rf"Final estimate: PPL = {_NUMBER} \+/- {_NUMBER}")
_PAIR = rf"{_NUMBER} ± *{_NUMBER}"
_ROW = re.compile(
    rf"^ *(\d{{1,9}}) +{_PAIR} +{_PAIR} +{_PAIR} +{_PAIR} % +{_PAIR} %\s*$",
    re.M,
)
BLOCKS = {name: (elements, size) for name, elements, size in TYPES.values()}


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor as the quantizer will write it: `shape` as ggml counts it, `type` by ggml's name in capitals."""

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def nbytes(self) -> int | None:
        """Its exact bytes, None where the type is unknown here or its rows do not divide."""
        if self.type not in BLOCKS:
            return None
        elements, size = BLOCKS[self.type]
        return math.prod(self.shape) // elements * size if self.shape[0] % elements == 0 else None


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a `--dry-run` said. `mib` is the tool's own total, `fallbacks` tensors that get another type than asked."""

    tensors: tuple[PlannedTensor, ...]
    mib: float
    fallbacks: int
    needs_imatrix: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the running table: means over the first `chunk` chunks, with standard errors. `same_top` in %."""

    chunk: int
    mean: float
    error: float
    same_top: float
    same_top_error: float = 0.0


@dataclass(frozen=True, slots=True)
class Divergence:
    """A KL divergence against a base, as printed. `*_error` are standard errors; `same_top` in per cent."""

    mean: float
    mean_error: float
    median: float
    p99: float
    p999: float
    maximum: float
    same_top: float
    same_top_error: float
    ppl: float
    ppl_error: float
    base_ppl: float
    base_ppl_error: float
    ppl_ratio: float
    ppl_ratio_error: float
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Bench:
    """Tokens per second: reading a prompt of `prompt` tokens, and writing `generated`; with standard deviations."""

    prompt: int
    prompt_speed: float
    prompt_spread: float
    generated: int
    speed: float
    spread: float
    threads: int


def parse_types(help_text: str) -> dict[str, str]:
    """Every word that --help accepts as a type -> the type it means (an alias means another). COPY is left out."""
    _, _, listed = help_text.partition("allowed quantization types")
    found = {m[1]: m[2].strip() for m in _TYPE_LINE.finditer(listed) if m[1] != "COPY"}
    return {
        name: text.removeprefix("alias for ") if text.startswith("alias for ") else name for name, text in found.items()
    }


def parse_dry_run(text: str) -> DryRun | None:
    """The plan that `llama-quantize --dry-run` printed; None when it is not whole."""
    tensors, total = [], 0
    for m in _TENSOR.finditer(text):
        to = _DRY_TYPE.search(m[6]) or _REAL_TYPE.search(m[6])
        sizes = [int(n) for n in m[4].replace(" ", "").split(",") if n]
        while len(sizes) > 1 and sizes[-1] == 1:
            sizes.pop()
        tensors.append(PlannedTensor(m[3], tuple(sizes), (to[1] if to else m[5]).upper()))
        total = int(m[2])
    said, fallbacks = _QUANT_SIZE.search(text), _FALLBACKS.search(text)
    if said is None or not tensors or len(tensors) != total or any(0 in t.shape or not t.shape for t in tensors):
        return None
    return DryRun(tuple(tensors), float(said[1]), int(fallbacks[1]) if fallbacks else 0, _IMATRIX in text)


def tensors_done(text: str) -> tuple[int, int] | None:
    """(n, of how many) of the last tensor that llama-quantize has begun; `text` may be the end of its output."""
    found = _COUNTER.findall(text)
    return (int(found[-1][0]), int(found[-1][1])) if found else None


def chunks_done(text: str) -> tuple[int, int] | None:
    """(n, of how many) chunks that llama-perplexity has recorded, of a run that writes a base."""
    of = _CHUNKS.search(text)
    numbers = [int(m[1]) for m in _CHUNK_PPL.finditer(text)]
    return (max(numbers, default=0), int(of[1])) if of else None


def parse_perplexity(text: str) -> tuple[float, float] | None:
    """(perplexity, its standard error) of a run without KL divergence."""
    m = _FINAL.search(text)
    return (float(m[1]), float(m[2])) if m else None


def parse_rows(text: str) -> tuple[Row, ...]:
    """The lines of the running table that are there so far."""
    return tuple(Row(int(m[1]), *(float(m[i]) for i in (6, 7, 10, 11))) for m in _ROW.finditer(text))


def parse_divergence(text: str) -> Divergence | None:
    """The statistics at the end of a `--kl-divergence` run; None when one of them is missing."""
    pairs = {
        "mean": "Mean    KLD",
        "same_top": "Same top p",
        "ppl": r"Mean PPL\(Q\)",
        "base_ppl": r"Mean PPL\(base\)",
        "ppl_ratio": r"Mean PPL\(Q\)/PPL\(base\)",
    }
    singles = {"median": "Median  KLD", "p99": "99.0%   KLD", "p999": "99.9%   KLD", "maximum": "Maximum KLD"}
    found: dict[str, float] = {}
    for name, label in pairs.items():
        m = re.search(rf"{label} *: *{_NUMBER} ± *{_NUMBER}", text)
        if m is None:
            return None
        found[name], found[f"{name}_error"] = float(m[1]), float(m[2])
    for name, label in singles.items():
        m = re.search(rf"{label}: *{_NUMBER}", text)
        if m is None:
            return None
        found[name] = float(m[1])
    return Divergence(rows=parse_rows(text), **found)


def parse_bench(text: str) -> Bench | None:
    """What `llama-bench -o json` printed, other lines around it left out; None when a figure is missing."""
    start, end = text.find("[\n"), text.rfind("]")
    try:
        runs: Any = json.loads(text[start : end + 1])
        reads = next(r for r in runs if r["n_prompt"] and not r["n_gen"])
        writes = next(r for r in runs if r["n_gen"] and not r["n_prompt"])
        return Bench(
            int(reads["n_prompt"]),
            float(reads["avg_ts"]),
            float(reads["stddev_ts"]),
            int(writes["n_gen"]),
            float(writes["avg_ts"]),
            float(writes["stddev_ts"]),
            int(writes["n_threads"]),
        )
    except (ValueError, KeyError, TypeError, StopIteration, OverflowError, RecursionError):
        return None
