"""What can be said of a measurement while it runs: values only, a face draws them."""

from __future__ import annotations

import statistics
from array import array
from collections import deque
from dataclasses import dataclass

from miyabi_llm.bench.stats.figures import first_ns
from miyabi_llm.bench.values import Sample

WINDOW_NS = 5_000_000_000  # of the rate that is shown
RECENT = 1000  # first tokens whose median is shown
KEEP = 4000  # points of a plot over time; of more, every second one, then every fourth


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How a measurement stands. `tokens_per_s` is of the last five seconds, `ttft_p50` of the last 1,000 answers."""

    target: str
    load: str
    done: int = 0
    failed: int = 0
    tokens: int = 0
    tokens_per_s: float = 0.0
    ttft_p50: float | None = None

    @property
    def words(self) -> str:
        """What a log says of it."""
        parts = [f"{self.tokens_per_s:.1f} tokens/s"]
        parts += [f"TTFT p50 {self.ttft_p50 * 1e3:.0f} ms so far"] if self.ttft_p50 is not None else []
        parts += [f"{self.failed} failed"] if self.failed else []
        return ", ".join(parts)


class Live:
    """A sink of samples that remembers little; ask `snapshot` at any time."""

    def __init__(self, target: str, load: str) -> None:
        self._target, self._load = target, load
        self._done = self._failed = self._tokens = 0
        self._ends: deque[tuple[int, int]] = deque()  # (when, tokens)
        self._ttft: deque[float] = deque(maxlen=RECENT)
        self._begin = 0

    def __call__(self, sample: Sample) -> None:
        """One more."""
        self._done += 1
        self._begin = self._begin or sample.sent_ns
        if not sample.ok:
            self._failed += sample.error != "cancelled"
            return
        tokens = sample.output_tokens or 0
        self._tokens += tokens
        self._ends.append((sample.end_ns, tokens))
        if first := first_ns(sample):
            self._ttft.append((first - sample.sent_ns) / 1e9)

    def snapshot(self, now_ns: int) -> Snapshot:
        """How it stands."""
        while self._ends and self._ends[0][0] < now_ns - WINDOW_NS:
            self._ends.popleft()
        window = min(WINDOW_NS, max(1, now_ns - self._begin))
        rate = sum(tokens for _, tokens in self._ends) / (window / 1e9)
        median = statistics.median(self._ttft) if self._ttft else None
        return Snapshot(self._target, self._load, self._done, self._failed, self._tokens, rate, median)


class Trace:
    """A sink of samples for a plot over time: when each answer was asked for, and how long its first token took."""

    def __init__(self) -> None:
        self._when, self._ttft = array("q"), array("d")
        self._step = self._count = 0

    def __call__(self, sample: Sample) -> None:
        """One more; those that failed have no first token."""
        first = first_ns(sample)
        if not sample.ok or not first:
            return
        self._count += 1
        if self._count & ((1 << self._step) - 1):
            return
        self._when.append(sample.sent_ns)
        self._ttft.append((first - sample.sent_ns) / 1e9)
        if len(self._when) >= KEEP:
            self._when, self._ttft = self._when[::2], self._ttft[::2]
            self._step += 1

    def points(self, origin_ns: int) -> tuple[tuple[float, float], ...]:
        """(seconds since the origin, seconds to the first token), in the order they ended."""
        return tuple(((w - origin_ns) / 1e9, t) for w, t in zip(self._when, self._ttft, strict=True))
