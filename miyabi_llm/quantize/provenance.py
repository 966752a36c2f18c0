"""Whether a model's numbers were ever rounded before: a loss measured against such a base is no loss of quantizing.

Only few numbers are read: runs of 32 weights in each matrix. A 4-bit format gives a run at most 16 values, and Q8_0
gives it multiples of a 127th of the largest; both survive a conversion back to 16 bits, real weights do neither.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from miyabi_llm.gguf import Header, TensorInfo
from miyabi_llm.quantize.values import Provenance

FULL = frozenset({"F32", "F16", "BF16", "F64"})
RUN = 32  # weights that share a scale in every format of up to 5 bits, and in Q8_0
RUNS = 48  # looked at in one tensor
FEW = 16  # values that 4 bits can tell apart
GRID = 0.1  # mean distance from the grid of 127ths, in steps; 0.25 when there is none
_WIDTH = {"F32": 4, "F16": 2, "BF16": 2}


def judge(header: Header, parts: Sequence[tuple[Header, Path]]) -> Provenance:
    """What the weights are, by their types and some of their values; `parts` are the files. Raises OSError.

    Without any only the types tell: unknown where those are 16 or 32 bits wide.
    """
    rounded = {kind: n for kind, (n, _) in header.histogram.items() if kind not in FULL and not kind.startswith("I")}
    rounded |= {kind: n for kind, (n, _) in header.histogram.items() if kind.startswith("IQ")}
    if rounded:
        told = ", ".join(f"{n} {kind}" for kind, n in rounded.items())
        return Provenance("quantized", f"{sum(rounded.values())} of {len(header.tensors)} tensors are stored as {told}")
    if not parts:
        return Provenance("unknown", "its weights are not here: whether they were rounded before was not seen")
    few, grid, looked = list[TensorInfo](), list[TensorInfo](), 0
    for one, path in parts:
        with path.open("rb") as f:
            for tensor in one.tensors:
                if len(tensor.shape) != 2 or tensor.type not in _WIDTH:
                    continue
                runs = _runs(f, one.data_offset + tensor.offset, tensor)
                looked += 1
                if few_values(runs):
                    few.append(tensor)
                elif tensor.type != "BF16" and on_grid(runs):  # BF16 keeps too few digits to see 255 steps
                    grid.append(tensor)
    return _verdict(few, grid, looked)


def _runs(f: BinaryIO, start: int, tensor: TensorInfo) -> list[tuple[float, ...]]:
    """Some runs of a tensor's weights, spread over all of it."""
    width, step = _WIDTH[tensor.type], max(1, tensor.elements // RUN // RUNS)
    runs = []
    for i in range(0, min(RUNS * step, tensor.elements // RUN), step):
        f.seek(start + i * RUN * width)
        runs.append(_numbers(f.read(RUN * width), tensor.type))
    return runs


def _verdict(few: list[TensorInfo], grid: list[TensorInfo], looked: int) -> Provenance:
    if few:
        what = f"in {len(few)} of {looked} matrices ({few[0].name}) no {RUN} weights have more than {FEW} values"
        return Provenance("dequantized", f"the source was 4-bit: {what}")
    if grid:
        what = f"in {len(grid)} of {looked} matrices ({grid[0].name}) weights lie on the grid of Q8_0"
        return Provenance("dequantized", f"the source was 8-bit: {what}")
    return Provenance("full", f"{looked} matrices looked at: no trace of rounding")


def few_values(runs: Sequence[Sequence[float]]) -> bool:
    """Whether no run has more values than 4 bits can tell apart. Runs of nearly one value prove nothing."""
    counts = [len(set(run)) for run in runs if len(run) == RUN]
    telling = [c for c in counts if c > 3]
    return len(telling) >= 8 and max(counts) <= FEW


def on_grid(runs: Sequence[Sequence[float]]) -> bool:
    """Whether weights are whole multiples of a 127th of their run's largest, as Q8_0 leaves them."""
    distances = [d for run in runs for d in _distances(run)]
    return len(distances) >= 8 * RUN and sum(distances) / len(distances) < GRID


def _distances(run: Sequence[float]) -> Iterator[float]:
    largest = max((abs(v) for v in run), default=0.0)
    if largest > 0 and largest < float("inf"):
        for v in run:
            at = v / largest * 127
            if at == at:
                yield abs(at - round(at))


def _numbers(raw: bytes, kind: str) -> tuple[float, ...]:
    count = len(raw) // _WIDTH[kind]
    if kind == "BF16":
        halves = struct.unpack(f"<{count}H", raw[: 2 * count])
        return struct.unpack(f"<{count}f", struct.pack(f"<{count}I", *(h << 16 for h in halves)))
    return struct.unpack(f"<{count}{'e' if kind == 'F16' else 'f'}", raw[: _WIDTH[kind] * count])
