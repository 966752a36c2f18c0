"""Calls for comparing servers: each question to every one of them, in random order, round by round."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from miyabi_llm.bench.speech import read
from miyabi_llm.bench.values import Call, Raw, Sample, Target
from miyabi_llm.bench.workload.load import Workload
from miyabi_llm.bench.workload.prompts import Maker, nonce
from miyabi_llm.bench.workload.questions import Options, Orders, same_before


@dataclass(frozen=True, slots=True)
class Pair:
    """One question's answers, by target; `number` counts questions from 0 over all rounds."""

    round: int
    number: int
    item: int
    samples: tuple[Sample, ...]


def drop(pair: Pair) -> None:
    """A sink of pairs that keeps nothing."""


@dataclass(slots=True)
class Paired(Options):
    """A `Source` for A against B (or more): `rounds` rounds of `per_round` questions, without end when None.

    Every target gets the same prompt, one after the other on the same stream, in an order drawn anew for each
    question; targets that are the same server get different numbers of equal length. The options are those of
    `Questions`; of conversations the first turn only is asked, as later prompts would differ with the answers. Each
    sample goes to `sink`, each question answered by all targets to `pairs`. Raises BadUsage.
    """

    workload: Workload
    targets: Sequence[Target]
    rounds: int | None = field(default=None, kw_only=True)
    per_round: int = field(default=1, kw_only=True)
    pairs: Callable[[Pair], None] = field(default=drop, kw_only=True)
    _maker: Maker = field(init=False, repr=False)
    _random: random.Random = field(init=False, repr=False)
    _orders: Orders = field(init=False, repr=False)
    _same: tuple[int, ...] = field(init=False)
    _count: int = field(init=False, default=0)
    _queues: dict[int, deque[tuple[int, int, str]]] = field(init=False, default_factory=dict)
    _numbers: dict[int, int] = field(init=False, default_factory=dict)
    _parts: dict[int, dict[int, Sample]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._maker = self.maker(self.workload, self.targets)
        self._orders = Orders(len(self.workload.items), self.order, self.seed)
        self._same = same_before(self.targets)
        self._random = random.Random(f"{self.seed}:{self.shard}:order:{self.first}")

    @property
    def ordered(self) -> bool:
        """No answer is needed for the next call."""
        return False

    def next(self, stream: int) -> Call | None:
        """The next call of a stream; None after the last round."""
        # streams of an open loop never come back: there the targets share one queue
        queue = self._queues.setdefault(0 if self.open_loop else stream, deque())
        if not queue:
            self._fill(queue)
        if not queue:
            return None
        number, target, mark = queue.popleft()
        item = self._item(number)
        call = Call(self._maker.data(target, item, mark), target, item, 0, mark)
        self._numbers[id(call)] = number
        return call

    def finished(self, raw: Raw) -> None:
        """Read an answer and hand it on; with the last of its question, the pair too."""
        sample = read(raw, self.targets[raw.call.target].speech)
        number = self._numbers.pop(id(raw.call))
        parts = self._parts.setdefault(number, {})
        parts[raw.call.target] = sample
        self.sink(sample)
        if len(parts) == len(self.targets):
            del self._parts[number]
            samples = tuple(parts[t] for t in range(len(self.targets)))
            self.pairs(Pair(number // self.per_round, number, raw.call.item, samples))

    def _fill(self, queue: deque[tuple[int, int, str]]) -> None:
        number = self.first + self._count * self.shards + self.shard
        if self.rounds is not None and number >= self.first + self.rounds * self.per_round:
            return
        self._count += 1
        order = list(range(len(self.targets)))
        self._random.shuffle(order)
        queue.extend((number, target, self._mark(number, target)) for target in order)

    def _item(self, number: int) -> int:
        round_, place = divmod(number, len(self.workload.items))
        return self._orders.item(round_ % (self.passes or round_ + 1), place)

    def _mark(self, number: int, target: int) -> str:
        if not self.nonce and self.phase == "measure":
            return ""
        return nonce(self.phase, self.seed, self.salt, number, self._same[target])
