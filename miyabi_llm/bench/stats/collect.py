"""Where samples go while a run lasts: counted, sketched and forgotten, so that memory does not grow with requests."""

from __future__ import annotations

import json
import time
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import sub
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from miyabi_llm.bench.stats.column import Column
from miyabi_llm.bench.stats.figures import PER_REQUEST, chunk_tokens, figures, spread
from miyabi_llm.bench.stats.sketch import Sketch
from miyabi_llm.bench.stats.timeline import Timeline
from miyabi_llm.bench.stats.values import Counts
from miyabi_llm.bench.values import Sample
from miyabi_llm.errors import BadUsage, DiskFull
from miyabi_llm.types import plain

BLOCK = 8192  # gaps that are kept before they go into the sketch
OUTPUT, REQUESTS, PROMPT, GOOD = range(4)  # the rows of a tally's timeline


class Tally:
    """All that is kept of one target's samples. `goals`: limits that a good answer keeps, by figure."""

    def __init__(self, goals: Mapping[str, float], origin_ns: int) -> None:
        self.goals = dict(goals)
        self.columns = {name: Column() for name in PER_REQUEST}
        self.gaps, self.itl = Sketch(), Sketch()
        self.itl_requests = self.many = self.good = 0
        self.timeline = Timeline(4, origin_ns)
        self.sums: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.finish: Counter[str] = Counter()
        self.provenance: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self._gaps, self._itl, self._itl_weights = array("q"), array("d"), array("d")
        self._times = array("q")
        self._amounts = tuple(array("d") for _ in range(4))

    def add(self, sample: Sample) -> None:
        """Count one sample."""
        self.sums["requests"] += 1
        if not sample.ok:
            self.errors[sample.error] += 1
            # a server's words may hold halves of characters, which no file takes
            self.examples.setdefault(sample.error, sample.detail[:300].encode("utf-8", "replace").decode())
            return
        self.finish[sample.finish or "unknown"] += 1
        self.provenance[sample.provenance] += 1
        self._sum(sample)
        found = figures(sample)
        for name, value in found.items():
            self.columns[name].add(value)
        good = all(found.get(name, 0.0) <= limit for name, limit in self.goals.items())
        self.good += good
        self._over_time(sample, good=good)
        self._gaps_of(sample)
        if len(self._times) >= BLOCK:
            self.flush()

    def _sum(self, sample: Sample) -> None:
        self.sums["chunks"] += len(sample.times_ns)
        self.sums["output"] += sample.output_tokens or 0
        self.sums["uncounted"] += sample.output_tokens is None
        self.sums["prompt"] += sample.prompt_tokens or 0
        if sample.cached_tokens is not None and sample.prompt_tokens:
            self.sums["cached"] += sample.cached_tokens
            self.sums["cached_of"] += sample.prompt_tokens
            self.sums["cached_answers"] += 1

    def _over_time(self, sample: Sample, *, good: bool) -> None:
        times = sample.times_ns or (sample.end_ns,)
        count = len(times)
        self._times.extend(times)
        output, requests, prompt, goods = self._amounts
        output.extend(spread(sample) or [float(sample.output_tokens or 0)])
        requests.extend([1 / count] * count)
        prompt.append(float(sample.prompt_tokens or 0))
        prompt.extend([0.0] * (count - 1))
        goods.extend([good / count] * count)

    def _gaps_of(self, sample: Sample) -> None:
        times = sample.times_ns
        if len(times) < 2:
            return
        self.many += 1
        gaps = array("q", map(sub, times[1:], times))
        self._gaps.extend(gaps)
        if tokens := chunk_tokens(sample):
            self.itl_requests += 1
            self._itl.extend(gap / k for gap, k in zip(gaps, tokens[1:], strict=True))
            self._itl_weights.extend(tokens[1:])

    def flush(self) -> None:
        """Put what waits into the sketches and the timeline."""
        self.gaps.add(np.array(self._gaps, dtype=np.float64) / 1e9)
        self.itl.add(np.array(self._itl) / 1e9, np.array(self._itl_weights))
        self.timeline.add(np.array(self._times, dtype=np.int64), np.array([np.array(a) for a in self._amounts]))
        del self._gaps[:], self._times[:]
        for waiting in (self._itl, self._itl_weights, *self._amounts):
            del waiting[:]

    def merge(self, other: Tally) -> None:
        """Take in what another process has counted of the same target."""
        self.flush()
        other.flush()
        for name, column in self.columns.items():
            column.merge(other.columns[name])
        self.gaps.merge(other.gaps)
        self.itl.merge(other.itl)
        self.itl_requests += other.itl_requests
        self.many += other.many
        self.good += other.good
        self.timeline.merge(other.timeline)
        self.sums.update(other.sums)
        self.errors.update(other.errors)
        self.finish.update(other.finish)
        self.provenance.update(other.provenance)
        self.examples = other.examples | self.examples

    def counts(self) -> Counts:
        """The counts so far."""
        cancelled = self.errors["cancelled"]
        failed = sum(self.errors.values()) - cancelled
        errors = {k: v for k, v in sorted(self.errors.items()) if k != "cancelled" and v}
        return Counts(
            requests=self.sums["requests"],
            ok=self.sums["requests"] - failed - cancelled,
            failed=failed,
            cancelled=cancelled,
            errors=errors,
            examples={k: v for k, v in self.examples.items() if k in errors},
            finish=dict(sorted(self.finish.items())),
            provenance=dict(sorted(self.provenance.items())),
            prompt_tokens=self.sums["prompt"],
            output_tokens=self.sums["output"],
            cached_tokens=self.sums["cached"],
            cached_of=self.sums["cached_of"],
            uncounted=self.sums["uncounted"],
            chunks=self.sums["chunks"],
        )


class Collector:
    """A sink of samples: call it with each. Of any number of them it keeps a few megabytes a target.

    `targets` are their names, in the order the samples number them. `goals` are the limits a good answer keeps, by
    figure, in its unit ({"ttft": 0.5}). `samples` is a file that gets every sample as a line of JSON, its text only
    when `texts`. `origin_ns` is a time before the run's first byte. Raises BadUsage when the file cannot be written.
    """

    def __init__(
        self,
        targets: Sequence[str],
        *,
        goals: Mapping[str, float] | None = None,
        samples: Path | None = None,
        texts: bool = False,
        origin_ns: int | None = None,
    ) -> None:
        unknown = set(goals or ()) - set(PER_REQUEST)
        if unknown:
            raise BadUsage(f"no such figure: {', '.join(sorted(unknown))}", hint=f"One of {', '.join(PER_REQUEST)}.")
        self.targets = tuple(targets)
        origin = time.perf_counter_ns() if origin_ns is None else origin_ns
        self.tallies = tuple(Tally(goals or {}, origin) for _ in self.targets)
        self._texts, self._path = texts, samples
        self._file: IO[str] | None = _opened(samples) if samples else None

    def __call__(self, sample: Sample) -> None:
        """Count it."""
        self.tallies[sample.target].add(sample)
        if self._file is not None:
            self._write(sample)

    add = __call__

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file of samples. Raises DiskFull when its end could not be written."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError as e:
                raise DiskFull(f"{self._path}: {e.strerror}") from e

    def values(self, target: int, name: str) -> Sequence[float]:
        """A figure of every whole answer, in the order they ended; empty past 50,000 of them."""
        return self.tallies[target].columns[name].values

    def merge(self, other: Collector) -> None:
        """Take in what another process has counted of the same targets."""
        for mine, theirs in zip(self.tallies, other.tallies, strict=True):
            mine.merge(theirs)

    def _write(self, sample: Sample) -> None:
        assert self._file is not None
        row = plain(sample)
        row["target"] = self.targets[sample.target]
        if not self._texts:
            del row["text"]
        try:
            self._file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
        except OSError as e:
            raise DiskFull(f"{self._path}: {e.strerror}") from e


def _opened(path: Path) -> IO[str]:
    try:
        return path.open("w", encoding="utf-8", errors="replace")
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror}") from e
