"""What a measurement is made of: targets, items, calls, what came back, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from miyabi_llm.types import Endpoint

Speech = Literal["openai-chat", "openai-completions", "ollama", "anthropic"]
Phase = Literal["warm-up", "measure"]
Arrival = Literal["constant", "poisson"]

# Why a request has no answer, from the client's side; a server's own words come with "http" and "refused".
ErrorClass = Literal["connect", "timeout", "broken", "cut", "http", "refused", "garbled", "cancelled"]


@dataclass(frozen=True, slots=True)
class Target:
    """One server to measure, under the name the reports use, and the dialect in which it is asked."""

    name: str
    endpoint: Endpoint
    speech: Speech = "openai-chat"


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a workload. Either `messages` or, for plain completions, `prompt`.

    `max_tokens` bounds the answer. `params` go into the request's body as they are. `more` are the user's later turns
    of a conversation: each is sent with the model's own answers before it.
    """

    id: str
    messages: tuple[Mapping[str, Any], ...] = ()
    prompt: str | None = None
    max_tokens: int = 128
    params: Mapping[str, Any] = field(default_factory=dict)
    more: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """One request, ready to be sent: the bytes of the whole HTTP request, and what it belongs to.

    `target` and `item` are indices; `nonce` is what the prompt was made unique with, empty when it was not.
    """

    data: bytes
    target: int = 0
    item: int = 0
    turn: int = 0
    nonce: str = ""


class Piece(NamedTuple):
    """Some bytes of a body: when we read them, when the kernel had them (0 where it does not tell), and the bytes.

    Both in nanoseconds of `time.perf_counter_ns`.
    """

    read_ns: int
    kernel_ns: int
    data: bytes

    @property
    def at(self) -> int:
        """The best time there is."""
        return self.kernel_ns or self.read_ns


@dataclass(slots=True)
class Raw:
    """What the wire gave for one call, not yet parsed. Times in nanoseconds of `time.perf_counter_ns`.

    `intended_ns` is when the schedule wanted it sent (closed loop: when the stream was free), `sent_ns` when its first
    byte left. `status` 0 when no answer began. `error` is empty when the body came whole.
    """

    call: Call
    stream: int
    intended_ns: int
    sent_ns: int = 0
    end_ns: int = 0
    status: int = 0
    pieces: list[Piece] = field(default_factory=list)
    error: ErrorClass | Literal[""] = ""
    detail: str = ""


class Source(Protocol):
    """Where an engine takes its calls from; `stream` numbers the parallel conversations from 0.

    `ordered` True: a call's result is told before the next call of its stream is asked for (conversations need the
    answer). False: results are told a little later, between other work, so that reading them delays no stamp.
    """

    @property
    def ordered(self) -> bool:
        """Whether `finished` must come before the stream's `next`."""

    def next(self, stream: int) -> Call | None:
        """The next call of that stream; None when it has no more. Open loop: `stream` counts the calls."""

    def finished(self, raw: Raw) -> None:
        """Told each result once; nobody else keeps it. Keep it short."""


Provenance = Literal["chunks", "usage per chunk", "server timings", "usage", "tokenize", "none"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One call, read: what came when, and how many tokens it was. Times in nanoseconds of `time.perf_counter_ns`.

    `first_ns` is the first piece with text, `reasoning_ns` the first with reasoning (0 when there was none), `last_ns`
    the last with either; pieces with a role only do not count. `times_ns` are all of them. `output_tokens` come from
    `provenance`; `first_tokens` of them arrived in the first piece, where that can be told, else 1. `chunk_tokens` has
    the tokens of each of `times_ns` where the server counts in every chunk, else it is empty. The server's own
    milliseconds are None where it does not tell. `error` is empty when the answer is whole, `text` is then all of it.
    """

    target: int
    item: int
    turn: int
    stream: int
    intended_ns: int
    sent_ns: int
    end_ns: int
    error: str = ""
    detail: str = ""
    status: int = 200
    first_ns: int = 0
    reasoning_ns: int = 0
    last_ns: int = 0
    times_ns: tuple[int, ...] = ()
    text: str = ""
    finish: str = ""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    first_tokens: int = 1
    provenance: Provenance = "none"
    server_prompt_ms: float | None = None
    server_output_ms: float | None = None
    server_load_ms: float | None = None
    chunk_tokens: tuple[int, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the answer is whole."""
        return not self.error


@dataclass(frozen=True, slots=True)
class Load:
    """How calls are sent.

    Closed loop (`rate` None): `concurrency` streams, each sends when its last answer is whole. Open loop: `rate` calls
    per second at `arrival` times, over as many connections as are needed, `concurrency` at most when given.
    Ends after `requests` calls or `duration_s` seconds of sending, whichever comes first; then waits for what is in
    flight, `timeout_s` per call at most. `ramp_s` spreads the first sends of a closed loop. `seed` fixes the times.
    `depth` is how many tokens, about, stand before each question.
    """

    concurrency: int | None = 1
    rate: float | None = None
    arrival: Arrival = "poisson"
    requests: int | None = None
    duration_s: float | None = None
    ramp_s: float = 0.0
    seed: int = 0
    timeout_s: float = 300.0
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Lag:
    """Seconds of delay of our own making, at percentiles 50 and 99 and at most; `n` looks."""

    n: int
    p50: float
    p99: float
    worst: float


@dataclass(frozen=True, slots=True)
class ClientHealth:
    """Whether the client could keep up with what it measured.

    `send_lag`: intended to sent (open loop). `read_lag`: kernel to us, per piece, where the kernel tells. `loop_lag`:
    how late a timer of the loop fired. `cpu` is the share of one core, per process. `offered` and `achieved` are calls
    per second (open) or streams (closed), as asked for and as it was.
    """

    send_lag: Lag | None
    read_lag: Lag | None
    loop_lag: Lag | None
    cpu: float
    processes: int
    offered: float
    achieved: float
    kernel_stamps: bool
    clock_step: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """How one run of an engine went. `begin_ns` to `end_ns` is the time of sending, the drain not included.

    `sent` and `failed` count calls. `aborted` says why it ended early, empty when it did not. `unsent` are calls whose
    time had come but that found no free place among `concurrency` until the sending ended. `retried` were sent a second
    time, because the server had closed their kept connection before it heard them.
    """

    begin_ns: int
    end_ns: int
    sent: int
    failed: int
    health: ClientHealth
    aborted: str = ""
    unsent: int = 0
    retried: int = 0
