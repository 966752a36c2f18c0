"""Where an engine takes its calls from: a workload's questions in seeded order, each prompt new to the server."""

from __future__ import annotations

import random
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from miyabi_llm.bench.speech import read
from miyabi_llm.bench.values import Call, Phase, Raw, Sample, Target
from miyabi_llm.bench.workload.load import Workload
from miyabi_llm.bench.workload.prompts import Maker, common, nonce
from miyabi_llm.errors import BadUsage

Sink = Callable[[Sample], None]
Order = Literal["seeded", "file"]


def forget(sample: Sample) -> None:
    """A sink that keeps nothing: for warm-up."""


@dataclass(slots=True)
class _Talk:
    """A conversation that goes on."""

    target: int
    item: int
    turn: int
    nonce: str
    messages: tuple[Mapping[str, Any], ...]
    data: bytes = b""


@dataclass(slots=True, kw_only=True)
class Options:
    """How questions are asked; see `Questions`."""

    seed: int = 0
    shard: int = 0
    shards: int = 1
    nonce: bool = True
    prefix_share: float = 0.0
    order: Order = "seeded"
    passes: int | None = None
    first: int = 0
    phase: Phase = "measure"
    open_loop: bool = False
    salt: str = field(default_factory=lambda: secrets.token_hex(8))
    sink: Sink = forget

    def maker(self, workload: Workload, targets: Sequence[Target]) -> Maker:
        """What writes the requests. Raises BadUsage where the workload cannot be asked like this."""
        check(workload, targets, self.prefix_share)
        prefixes: tuple[str, ...] = ()
        if self.prefix_share:
            number = nonce("prefix", self.seed, self.salt, self.phase)
            prefixes = common(workload.items, self.prefix_share, number)
        return Maker(workload.items, targets, prefixes)


@dataclass(slots=True)
class Questions(Options):
    """A `Source` over a workload, without end unless `passes` says how often it is gone through.

    Calls are numbered over all `shards` processes together; each asks every `shards`-th, and with several targets the
    same question goes to one after the other. `first` is the question to begin with, counted over all passes, so that
    a block of a load goes on where the last one ended. `order` "seeded" shuffles each pass by `seed`. With `nonce`
    each prompt begins with a number that is used once: drawn from `seed` and `salt`, which is new for each run
    (processes of one run get the same) so that a second run does not find the first one's prompts in a cache.
    `prefix_share` (0 to below 1) is how much of each prompt is the same in all, in characters, put before the number.
    Prompts of the phase "warm-up" always have a number, never one of "measure". `open_loop`: streams count calls, so
    that a later turn of a conversation is asked on the next call there is. Each sample goes to `sink`. Raises
    BadUsage.
    """

    workload: Workload
    targets: Sequence[Target]
    _maker: Maker = field(init=False, repr=False)
    _count: int = field(init=False, default=0)
    _orders: Orders = field(init=False, repr=False)
    _ordered: bool = field(init=False)
    _same: tuple[int, ...] = field(init=False)
    _talks: dict[int, _Talk] = field(init=False, default_factory=dict)
    _waiting: deque[_Talk] = field(init=False, default_factory=deque)
    _open: dict[int, _Talk] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._maker = self.maker(self.workload, self.targets)
        self._orders = Orders(len(self.workload.items), self.order, self.seed)
        self._ordered = any(item.more for item in self.workload.items)
        self._same = same_before(self.targets)

    @property
    def ordered(self) -> bool:
        """Whether answers are needed for what is asked next: a workload of conversations."""
        return self._ordered

    def next(self, stream: int) -> Call | None:
        """The next call of a stream; None after the last pass."""
        if self.open_loop and self._waiting:
            self._talks[stream] = self._waiting.popleft()
        if (talk := self._talks.pop(stream, None)) is not None:
            return self._begun(talk, Call(talk.data, talk.target, talk.item, talk.turn, talk.nonce))
        number = self._count * self.shards + self.shard
        self._count += 1
        index, target = divmod(number, len(self.targets))
        index += self.first
        round_, place = divmod(index, len(self.workload.items))
        if self.passes is not None and round_ >= self.passes:
            return None
        item = self._orders.item(round_, place)
        mark = self._mark(index, target)
        call = Call(self._maker.data(target, item, mark), target, item, 0, mark)
        if not self.workload.items[item].more:
            return call
        return self._begun(_Talk(target, item, 0, mark, self._maker.item(target, item, mark).messages), call)

    def finished(self, raw: Raw) -> None:
        """Read an answer, hand its sample on, and go on with its conversation."""
        sample = read(raw, self.targets[raw.call.target].speech)
        talk = self._open.pop(id(raw.call), None)
        if talk is not None and sample.ok:
            self._go_on(talk, sample, raw.stream)
        self.sink(sample)

    def _begun(self, talk: _Talk, call: Call) -> Call:
        if talk.turn < len(self.workload.items[talk.item].more):
            self._open[id(call)] = talk
        return call

    def _go_on(self, talk: _Talk, sample: Sample, stream: int) -> None:
        later = self.workload.items[talk.item].more[talk.turn]
        # halves of a character that came in two pieces make one again; a half that stays alone cannot be sent
        text = sample.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        answer = {"role": "assistant", "content": text}
        messages = (*talk.messages, answer, {"role": "user", "content": later})
        data = self._maker.later(talk.target, talk.item, messages)
        onward = _Talk(talk.target, talk.item, talk.turn + 1, talk.nonce, messages, data)
        if self.open_loop:
            self._waiting.append(onward)
        else:
            self._talks[stream] = onward

    def _mark(self, index: int, target: int) -> str:
        if not self.nonce and self.phase == "measure":
            return ""
        return nonce(self.phase, self.seed, self.salt, index, self._same[target])


def check(workload: Workload, targets: Sequence[Target], prefix_share: float) -> None:
    """Raise BadUsage where a workload cannot be asked like this."""
    if not targets:
        raise BadUsage("no target to ask", hint="Name a model, or give --url.")
    if not 0 <= prefix_share < 1:
        raise BadUsage(f"a share of {prefix_share:g} of the prompt cannot be common", hint="From 0 to below 1.")
    talks = [item.id for item in workload.items if item.more]
    if talks and any(t.speech == "openai-completions" for t in targets):
        raise BadUsage(f"{talks[0]} is a conversation: plain completions have no turns", hint="Use the chat dialect.")


class Orders:
    """The order of so many items in each pass: shuffled by `seed`, or as in the file. Keeps one pass."""

    def __init__(self, count: int, order: Order, seed: int) -> None:
        self._count, self._order, self._seed = count, order, seed
        self._pass: tuple[int, list[int]] = (-1, [])

    def item(self, round_: int, place: int) -> int:
        """The item at a place of a pass."""
        if self._pass[0] != round_:
            indices = list(range(self._count))
            if self._order == "seeded":
                random.Random(f"{self._seed}:{round_}").shuffle(indices)
            self._pass = round_, indices
        return self._pass[1][place]


def same_before(targets: Sequence[Target]) -> tuple[int, ...]:
    """For each target how many earlier ones are the same server: one prompt twice there would be found in its cache."""
    places = [_place(t.endpoint.base_url) for t in targets]
    return tuple(places[:i].count(place) for i, place in enumerate(places))


def _place(base_url: str) -> tuple[str | None, int | None, str]:
    url = urlsplit(base_url)
    host = "localhost" if url.hostname in ("127.0.0.1", "::1") else url.hostname
    return host, url.port, url.path
