"""A load from several processes is one load: its arrivals, its counts, its samples; and no process stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.bench.engine.shards import Shards, merged, wanted
from miyabi_llm.bench.engine.times import arrivals
from miyabi_llm.bench.engine.worker import pack, part, share, unpack
from miyabi_llm.bench.speech import read
from miyabi_llm.bench.values import Call, ClientHealth, Lag, Load, Raw, Sample
from miyabi_llm.errors import MachineLimit
from tests.bench.wire import ASK, OK, Wire, answers, serving

Sink = Callable[[Sample], None]


@dataclass
class Speaking:
    """A source that reads its answers and tells the sink."""

    sink: Sink
    shard: int
    shards: int
    ordered: bool = False
    count: int = 0

    def next(self, stream: int) -> Call | None:
        self.count += 1
        return Call(ASK, item=self.count * self.shards + self.shard)

    def finished(self, raw: Raw) -> None:
        self.sink(read(raw, "openai-chat"))


def make(shard: int, shards: int, sink: Sink) -> Speaking:
    return Speaking(sink, shard, shards)


def broken(shard: int, shards: int, sink: Sink) -> Speaking:
    if shard == 1:
        raise ZeroDivisionError("in the child")
    return make(shard, shards, sink)


def dying(shard: int, shards: int, sink: Sink) -> Speaking:
    os.kill(os.getpid(), signal.SIGKILL)
    return make(shard, shards, sink)


def test_one_load_from_three_processes() -> None:
    env = dict(os.environ)
    with serving(answers) as target, Shards([target], 3, env) as shards:
        got: list[Sample] = []
        run = shards.run(Load(concurrency=8, requests=100), make, got.append)
        assert (run.sent, run.failed, len(got)) == (100, 0, 100)
        assert len({s.item for s in got}) == 100, "no two processes ask the same"
        assert {s.stream for s in got} == set(range(8)), "streams are numbered over all processes"
        assert all(s.ok and s.text == "a" and len(s.times_ns) == 1 for s in got)
        assert (run.health.processes, run.health.offered) == (3, 8)

        got.clear()
        load = Load(concurrency=None, rate=100, requests=60, seed=5)
        run = shards.run(load, make, got.append)
        meant = sorted(s.intended_ns for s in got)
        one = arrivals(100, "poisson", 5)
        times = [next(one) for _ in range(60)]
        assert [round((m - meant[0]) / 1e9, 6) for m in meant] == [round(t - times[0], 6) for t in times]

        got.clear()
        assert shards.run(Load(concurrency=2, requests=2), make, got.append).health.processes == 2
        with pytest.raises(RuntimeError, match="in the child"):
            shards.run(Load(concurrency=3, requests=9), broken, got.append)


def test_stop_and_a_process_that_dies() -> None:
    def slow(wire: Wire) -> None:
        while wire.heard():
            time.sleep(0.02)
            wire.say(OK)

    with serving(slow) as target, Shards([target], 2, dict(os.environ)) as shards:
        got: list[Sample] = []

        def enough(sample: Sample) -> None:
            got.append(sample)
            if len(got) == 10:
                shards.stop("enough")

        run = shards.run(Load(concurrency=4, duration_s=60), make, enough)
        assert run.aborted == "enough"
        assert run.sent == len(got)
        with pytest.raises(MachineLimit, match="of the load generator ended"):
            shards.run(Load(concurrency=2, requests=5), dying, got.append)


def test_no_process_outlives_its_parent(tmp_path: Path) -> None:
    with serving(answers) as target:
        script = tmp_path / "parent.py"
        script.write_text(
            "import os, sys\n"
            "from miyabi_llm.bench.engine.shards import Shards\n"
            "from miyabi_llm.bench.values import Load\n"
            "from tests.bench.test_engine_shards import make\n"
            "from miyabi_llm.bench.values import Target\n"
            "from miyabi_llm.types import Endpoint\n"
            f"with Shards([Target('t', Endpoint({target.endpoint.base_url!r}, 'm'))], 2, dict(os.environ)) as s:\n"
            "    told = []\n"
            "    s.run(Load(concurrency=2, duration_s=60), make, lambda x: told or told.append(print(flush=True)))\n"
        )
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(tmp_path)}
        with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=env) as parent:
            assert parent.stdout is not None
            parent.stdout.readline()
            children = psutil.Process(parent.pid).children(recursive=True)
            assert len(children) >= 4  # a guard and an engine each
            parent.kill()
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive


@given(total=st.integers(0, 1000), shards=st.integers(1, 12))
def test_shares_are_dealt_in_turn(total: int, shards: int) -> None:
    dealt = Counter(i % shards for i in range(total))
    assert [share(total, i, shards) for i in range(shards)] == [dealt[i] for i in range(shards)]


def test_a_part_of_a_load() -> None:
    load = Load(concurrency=5, rate=10, requests=7, duration_s=3, ramp_s=1, seed=9, timeout_s=4)
    assert part(load, 0, 1) == load
    parts = [part(load, i, 2) for i in range(2)]
    assert [(p.concurrency, p.requests, p.rate) for p in parts] == [(3, 4, 5), (2, 3, 5)]
    assert parts[1] == replace(load, concurrency=2, requests=3, rate=5)


def test_samples_cross_unchanged() -> None:
    sample = Sample(1, 2, 3, 4, 5, 6, 7, times_ns=(8, 9, 1 << 62), text="日本", prompt_tokens=None, server_load_ms=0.5)
    assert unpack(pack(sample), 1, 3) == replace(sample, stream=4 * 3 + 1)


def test_health_of_several() -> None:
    a = ClientHealth(None, Lag(10, 1, 2, 3), Lag(5, 1, 1, 1), 0.5, 1, 10.0, 9.0, True, -0.004)
    b = replace(a, read_lag=Lag(20, 0.5, 4, 5), cpu=0.7, achieved=10.0, clock_step=0.001)
    both = merged([a, b])
    assert (both.send_lag, both.read_lag) == (None, Lag(30, 1, 4, 5))
    assert (both.cpu, both.processes, both.offered, both.achieved, both.clock_step) == (0.7, 2, 20.0, 19.0, -0.004)
    assert [wanted(replace(a, cpu=c), 4) for c in (0.1, 0.6, 0.61, 1.0)] == [1, 1, 2, 2]
    assert wanted(replace(a, cpu=0.9, processes=3), 4) == 4
