"""The load generator against a server of known timing: how wrong it is, and how much it carries."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, Literal

from miyabi_llm.bench import mock
from miyabi_llm.bench.engine import Engine
from miyabi_llm.bench.engine.shards import Shards
from miyabi_llm.bench.engine.times import arrivals, dispersion
from miyabi_llm.bench.speech import read, request
from miyabi_llm.bench.values import Call, Item, Load, Raw, Sample, Target
from miyabi_llm.errors import ServerFailed
from miyabi_llm.proc import launch
from miyabi_llm.types import Endpoint, Event, OnEvent, silent

ITEM = Item("mock", ({"role": "user", "content": "Say tok."},), max_tokens=50)
_SENT = re.compile(rb'"sent_ns":(\d+)')
NS = 1e9
SEED = 0  # its draws themselves have an index of 1.00 as planned: what is off is the sending's
SETTLED = 500_000_000  # nanoseconds until all streams are under way
# The package may lie where the interpreter does not look by itself.
ONCE = "import sys; sys.path.insert(0, sys.argv[1]); from miyabi_llm.bench.selftest import once; once(sys.argv[2])"
FULL = 0.85  # of a core; with less, something else set the pace
CLOCK = 0.002  # seconds by which the mock may be late at p99 before what depends on it is not judged


@dataclass(frozen=True, slots=True)
class Plan:
    """How large the self-test is. Seconds, except counts; `processes` are tried one after the other."""

    streams: int = 256
    stream_s: float = 8.0
    ttft: float = 0.02
    itl: float = 0.02
    tokens: int = 50
    one_chunk_streams: int = 32
    one_chunk_s: float = 4.0
    memory_requests: int = 100_000
    rate: float = 400.0
    rate_s: float = 15.0
    processes: tuple[int, ...] = (1, 4, 10)


@dataclass(frozen=True, slots=True)
class Check:
    """One figure beside its limit. `ok` None: the server or the machine was late, not the client alone."""

    name: str
    value: float
    unit: str
    limit: float
    relation: Literal["at most", "at least"]
    ok: bool | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What the self-test found. `facts` are figures without a limit, the mock's own lateness among them."""

    checks: tuple[Check, ...]
    facts: Mapping[str, float]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.ok is not False for check in self.checks)


def self_test(env: Mapping[str, str], plan: Plan | None = None, on_event: OnEvent = silent) -> SelfTest:
    """Run all of it on this machine, against mock servers in processes of their own (about a minute as planned).

    `env` is the environment the processes are started in. Linux and macOS. Raises MachineLimit where there is no fork,
    ServerFailed when a mock does not start.
    """
    plan = plan or Plan()
    checks: list[Check] = []
    facts: dict[str, float] = {}
    parts: tuple[tuple[str, Callable[[Mapping[str, str], Plan], _Part]], ...] = (
        ("first request", _first),
        (f"{plan.streams} streams", _accuracy),
        ("one-chunk requests", _capacity),
        (f"{plan.memory_requests} requests", _memory),
        ("Poisson arrivals", _poisson),
    )
    for name, part in parts:
        on_event(Event("phase", name, f"self-test: {name}"))
        found, more = part(env, plan)
        checks += found
        facts |= more
    return SelfTest(tuple(checks), facts)


_Part = tuple[list[Check], dict[str, float]]


@contextmanager
def mocked(env: Mapping[str, str], *args: str) -> Iterator[Target]:
    """A mock server in a process of its own, which ends with us however we end. Raises ServerFailed."""
    with tempfile.TemporaryDirectory(prefix="miyabi-mock-") as home:
        child = launch([sys.executable, "-I", str(Path(mock.__file__)), *args], env, {}, Path(home) / "log")
        try:
            deadline = time.monotonic() + 20
            while not (said := child.beginning()).endswith("\n"):
                if child.wait(0.01) is not None or time.monotonic() > deadline:
                    raise ServerFailed(f"the mock server did not start: {child.tail()[-300:]}", hint="Try again.")
            yield Target("mock", Endpoint(f"http://127.0.0.1:{int(said.split()[0])}", "mock"))
        finally:
            child.stop(0.2)


def seen(target: Target) -> dict[str, Any]:
    """What the mock saw since its start or its last reset."""
    import httpx

    found: dict[str, Any] = httpx.get(f"{target.endpoint.base_url}/stats", trust_env=False, timeout=30).json()
    return found


class Truth:
    """A source of one call over and over that holds each answer against what the server says of itself.

    Keeps milliseconds: `ttft` as we measure it; `added`, of every first token, and `pieces`, of every one, the time
    between its writing and our stamp; `gaps` between tokens by our stamps and `true_gaps` by the server's.
    """

    ordered = False

    def __init__(self, target: Target, *, most: int | None = None) -> None:
        self._call, self._most = Call(request(target, ITEM)), most
        self.asked = self.bad = 0
        self.ttft, self.added, self.pieces = array("d"), array("d"), array("d")
        self.gaps, self.true_gaps = array("d"), array("d")

    def next(self, stream: int) -> Call | None:
        """The call."""
        if self._most is not None and self.asked >= self._most:
            return None
        self.asked += 1
        return self._call

    def finished(self, raw: Raw) -> None:
        """Hold it against the truth."""
        sample = read(raw, "openai-chat")
        if not sample.ok:
            self.bad += 1
            return
        self.ttft.append((sample.first_ns - sample.sent_ns) / 1e6)
        marks = [(piece.at, int(sent)) for piece in raw.pieces for sent in _SENT.findall(piece.data)]
        self.added.append((marks[0][0] - marks[0][1]) / 1e6)
        self.pieces.extend((at - sent) / 1e6 for at, sent in marks)
        for (at, sent), (at2, sent2) in pairwise(marks):
            self.gaps.append((at2 - at) / 1e6)
            self.true_gaps.append((sent2 - sent) / 1e6)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share of `values` lies; 0 without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def _first(env: Mapping[str, str], plan: Plan) -> _Part:
    home = str(Path(mock.__file__).parents[2])
    with (
        mocked(env, "--ttft", "0", "--itl", "0", "--tokens", "1") as target,
        tempfile.TemporaryDirectory(prefix="miyabi-mock-") as log,
    ):
        begin = time.perf_counter_ns()
        command = [sys.executable, "-c", ONCE, home, target.endpoint.base_url]
        child = launch(command, env, {}, Path(log) / "log")
        try:
            child.wait(20)
            came = seen(target)["arrivals"]
        finally:
            child.stop(0.2)
    if not came:
        raise ServerFailed(f"a fresh process sent no request: {child.tail()[-300:]}", hint="Try again.")
    took = (came[0] - begin) / NS
    return [Check("first request after process start", took, "s", 1.0, "at most", took <= 1.0)], {}


def once(url: str) -> None:
    """Send one request to a mock server: what a fresh process does first."""
    target = Target("mock", Endpoint(url, "mock"))
    with Engine([target]) as engine:
        engine.run(Load(concurrency=1, requests=1), Plain(target))


def _accuracy(env: Mapping[str, str], plan: Plan) -> _Part:
    timing = "--ttft", str(plan.ttft), "--itl", str(plan.itl), "--tokens", str(plan.tokens)
    with mocked(env, *timing) as target, Engine([target]) as engine:
        source = Truth(target)
        run = engine.run(Load(concurrency=plan.streams, duration_s=plan.stream_s), source)
        stats = seen(target)
    calm = stats["late_p99"] / NS <= CLOCK
    ttft = quantile(source.ttft, 0.5) - plan.ttft * 1e3
    gap = quantile(source.gaps, 0.99) - plan.itl * 1e3
    added = quantile(source.added, 0.5)
    gap_added = quantile(source.gaps, 0.99) - quantile(source.true_gaps, 0.99)
    wanted = plan.streams * 250 / 256
    at_server = busy(stats, stats["arrivals"][0] + SETTLED, run.end_ns)
    checks = [
        Check("TTFT bias p50, by the stamps of the server", added, "ms", 3.0, "at most", abs(added) <= 3),
        Check(
            "TTFT bias p50, by its configured time", ttft, "ms", 3.0, "at most", _judged(ok=abs(ttft) <= 3, calm=calm)
        ),
        Check("ITL p99 bias, by the stamps of the server", gap_added, "ms", 2.0, "at most", abs(gap_added) <= 2),
        Check("ITL p99 bias, by its configured time", gap, "ms", 2.0, "at most", _judged(ok=abs(gap) <= 2, calm=calm)),
        Check(
            "streams busy at the server", at_server, "", wanted, "at least", _judged(ok=at_server >= wanted, calm=calm)
        ),
        Check("failed requests", source.bad, "", 0, "at most", source.bad == 0),
    ]
    facts = {
        "mock late p50 ms": stats["late_p50"] / 1e6,
        "mock late p99 ms": stats["late_p99"] / 1e6,
        "chunks/s": len(source.pieces) / ((run.end_ns - run.begin_ns) / NS),
        "client CPU share": run.health.cpu,
        "streams busy by our stamps": run.health.achieved,
    }
    if run.health.read_lag is not None:
        facts |= {"read lag p50 ms": run.health.read_lag.p50 * 1e3, "read lag p99 ms": run.health.read_lag.p99 * 1e3}
    return checks, facts


def _judged(*, ok: bool, calm: bool) -> bool | None:
    """A limit missed while the server itself was late says nothing about the client."""
    return ok or (False if calm else None)


def busy(stats: Mapping[str, Any], begin: int, end: int) -> float:
    """Answers in flight at the mock, in the mean from `begin` to `end`, nanoseconds of `time.perf_counter_ns`. Pure."""

    def inside(times: Sequence[int]) -> int:
        return sum(min(end, max(begin, t)) for t in times)

    running = len(stats["arrivals"]) - len(stats["ends"])
    return (inside(stats["ends"]) + running * end - inside(stats["arrivals"])) / max(1, end - begin)


def _capacity(env: Mapping[str, str], plan: Plan) -> _Part:
    with mocked(env, "--ttft", "0", "--itl", "0", "--tokens", "1") as target, Engine([target]) as engine:
        source = Truth(target)
        run = engine.run(Load(concurrency=plan.one_chunk_streams, duration_s=plan.one_chunk_s), source)
    rate = run.sent / ((run.end_ns - run.begin_ns) / NS)
    share = run.health.cpu
    note = f"with {share:.0%} of a core"
    facts = {"one-chunk requests per second of processor time": rate / max(share, 1e-9)}
    # other programs held the core, or the mock did: what we would do with all of it is then the next best
    held = share < FULL and rate / max(share, 1e-9) >= 9000
    ok = _judged(ok=rate >= 9000, calm=not held)
    return [Check("one-chunk requests/s, one process", rate, "/s", 9000, "at least", ok, note)], facts


def _memory(env: Mapping[str, str], plan: Plan) -> _Part:
    import psutil

    me = psutil.Process()
    with mocked(env, "--ttft", "0", "--itl", "0", "--tokens", "1") as target, Engine([target]) as engine:
        warm = max(1, plan.memory_requests // 10)
        engine.run(Load(concurrency=plan.one_chunk_streams, requests=warm), Plain(target))
        before = me.memory_info().rss
        run = engine.run(Load(concurrency=plan.one_chunk_streams, requests=plan.memory_requests), Plain(target))
        grown = (me.memory_info().rss - before) / 2**20
    note = f"{run.sent} requests, {run.failed} failed"
    return [Check("memory grown", grown, "MiB", 8, "at most", grown <= 8, note)], {}


class Plain:
    """A source of one call over and over that reads each answer and keeps nothing, or hands the sample on."""

    ordered = False

    def __init__(self, target: Target | None = None, sink: Callable[[Sample], None] = lambda sample: None) -> None:
        self._call = Call(request(target or Target("mock", Endpoint("http://127.0.0.1", "mock")), ITEM))
        self._sink = sink

    def next(self, stream: int) -> Call | None:
        """The call."""
        return self._call

    def finished(self, raw: Raw) -> None:
        """Read it."""
        self._sink(read(raw, "openai-chat"))


def plain(shard: int, shards: int, sink: Callable[[Sample], None]) -> Plain:
    """The source of one process of several."""
    return Plain(sink=sink)


def _poisson(env: Mapping[str, str], plan: Plan) -> _Part:
    checks: list[Check] = []
    facts: dict[str, float] = {}
    load = Load(concurrency=None, rate=plan.rate, duration_s=plan.rate_s, seed=SEED)
    drawn = takewhile(lambda t: t < plan.rate_s, arrivals(plan.rate, "poisson", load.seed))
    meant = _index(list(drawn), plan)
    facts["dispersion index of the drawn times"] = meant
    for processes in plan.processes:
        with mocked(env, "--ttft", "0.005", "--itl", "0", "--tokens", "1") as target:
            sent = array("q")
            with Shards([target], processes, env) as shards:
                run = shards.run(load, plain, lambda sample, sent=sent: sent.append(sample.sent_ns))  # type: ignore[misc]
        index = _index([(ns - run.begin_ns) / NS for ns in sorted(sent)], plan)
        name = f"Poisson dispersion index, {processes} process{'es' if processes > 1 else ''}"
        late = run.health.send_lag.p99 if run.health.send_lag is not None else 0.0
        facts[f"send lag p99 ms, {processes}"] = late * 1e3
        ok = _judged(ok=0.9 <= index <= 1.1, calm=late < 2 / plan.rate)
        checks.append(Check(name, index, "", 1.1, "at most", ok, "at least 0.9"))
    return checks, facts


def _index(times: list[float], plan: Plan) -> float:
    """Over windows with ten arrivals each in the mean: much longer than a request is late."""
    return dispersion(times, 10 / plan.rate)
