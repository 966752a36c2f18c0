"""All of it against a server of known timing: what was asked, what came, what is said of it."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from miyabi_llm.bench.engine import Engine
from miyabi_llm.bench.stats import Collector, metrics
from miyabi_llm.bench.values import Load, Target
from miyabi_llm.bench.workload import Paired, Questions, load_workload
from miyabi_llm.types import Endpoint

TTFT, ITL, PIECES, PER_PIECE = 0.010, 0.005, 10, 3


@pytest.fixture
def target() -> Iterator[Target]:
    timing = ("--ttft", str(TTFT), "--itl", str(ITL), "--tokens", str(PIECES), "--per-chunk", str(PER_PIECE))
    argv = [sys.executable, "-m", "miyabi_llm.bench.mock", "--watch", *timing]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        port = int(server.stdout.readline())
        yield Target("mock", Endpoint(f"http://127.0.0.1:{port}", "mock"))
        server.stdin.close()
        server.wait(10)


def test_known_timing_is_found(target: Target) -> None:
    collector = Collector(["mock"])
    source = Questions(load_workload("chat"), [target], seed=1, sink=collector)
    with Engine([target]) as engine:
        engine.run(Load(requests=2), Questions(load_workload("chat"), [target], phase="warm-up"))
        run = engine.run(Load(concurrency=4, requests=40), source)
    found = metrics(collector, run)[0]
    assert (found.counts.ok, found.counts.failed, found.counts.chunks) == (40, 0, 40 * PIECES)
    assert found.counts.output_tokens == 40 * PIECES * PER_PIECE
    ttft, gap, itl, e2e = (found.metric(name) for name in ("ttft", "gap", "itl", "e2e"))
    assert ttft is not None
    assert gap is not None
    assert itl is not None
    assert e2e is not None
    assert ttft.least is not None
    assert ttft.least > TTFT * 0.99
    assert gap.n == 40 * (PIECES - 1)
    assert gap.mean == pytest.approx((e2e.mean - ttft.mean) / (PIECES - 1))
    assert itl.mean == pytest.approx(gap.mean * (PIECES - 1) / (PIECES * PER_PIECE - 1))
    assert "its average" in itl.source, "three tokens a piece, and the server does not say so"


def test_pairs_through_the_engine(target: Target) -> None:
    twice = [target, Target("again", target.endpoint)]
    collector, pairs = Collector(["a", "b"]), []
    source = Paired(load_workload("batch"), twice, rounds=2, per_round=3, pairs=pairs.append, sink=collector)
    with Engine(twice) as engine:
        run = engine.run(Load(concurrency=1), source)
    assert [(p.round, p.number) for p in pairs] == [(n // 3, n) for n in range(6)]
    assert all(s.ok for p in pairs for s in p.samples)
    assert [m.counts.ok for m in metrics(collector, run)] == [6, 6]
