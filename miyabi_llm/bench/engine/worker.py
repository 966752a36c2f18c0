"""One process of a load that one process cannot carry: run as a child by `shards.py`, told what to do over a socket."""

from __future__ import annotations

import pickle
import sys
import traceback
from array import array
from collections.abc import Callable
from dataclasses import fields
from multiprocessing.connection import Connection
from typing import Any

from miyabi_llm.bench.engine.run import Engine
from miyabi_llm.bench.engine.times import arrivals
from miyabi_llm.bench.values import Load, Sample, Source, Target
from miyabi_llm.types import Event

Factory = Callable[[int, int, Callable[[Sample], None]], Source]
BATCH = 256  # samples that go over the socket together
_FIELDS = [f.name for f in fields(Sample)]
_TIMES, _STREAM = _FIELDS.index("times_ns"), _FIELDS.index("stream")


def pack(sample: Sample) -> tuple[Any, ...]:
    """A sample as its bare values, the times of its pieces as bytes."""
    values = [getattr(sample, name) for name in _FIELDS]
    values[_TIMES] = array("q", sample.times_ns).tobytes()
    return tuple(values)


def unpack(values: tuple[Any, ...], shard: int, shards: int) -> Sample:
    """The sample again; its stream numbered over all processes."""
    fresh = list(values)
    times = array("q")
    times.frombytes(values[_TIMES])
    fresh[_TIMES], fresh[_STREAM] = tuple(times), values[_STREAM] * shards + shard
    return Sample(*fresh)


def share(total: int, shard: int, shards: int) -> int:
    """How many of `total` things one process has when they are dealt in turn."""
    return (total - shard + shards - 1) // shards


def part(load: Load, shard: int, shards: int) -> Load:
    """One process's share of a load; its arrivals are dealt from the one sequence, see `times.arrivals`."""
    return Load(
        concurrency=None if load.concurrency is None else share(load.concurrency, shard, shards),
        rate=None if load.rate is None else load.rate / shards,
        arrival=load.arrival,
        requests=None if load.requests is None else share(load.requests, shard, shards),
        duration_s=load.duration_s,
        ramp_s=load.ramp_s,
        seed=load.seed,
        timeout_s=load.timeout_s,
        depth=load.depth,
    )


class Worker:
    """Answers the parent's orders until its socket ends."""

    def __init__(self, parent: Connection, targets: tuple[Target, ...], *, stamps: bool) -> None:
        self._parent = parent
        self._engine = Engine(targets, stamps=stamps)
        self._batch: list[tuple[Any, ...]] = []

    def work(self) -> None:
        """Run what is ordered."""
        with self._engine:
            self._parent.send(("ready",))
            while True:
                match self._parent.recv():
                    case ("run", load, factory, at_ns, place):
                        try:
                            self._run(load, factory, at_ns, place)
                        except Exception:  # a bug of the source or ours: the parent raises it, with its traceback
                            self._parent.send(("bug", traceback.format_exc()))
                    case _:
                        pass  # told to stop, after the end

    def _run(self, load: Load, factory: Factory, at_ns: int, place: tuple[int, int]) -> None:
        source = factory(*place, self._collect)
        times = None if load.rate is None else arrivals(load.rate, load.arrival, load.seed, *place)
        run = self._engine.run(part(load, *place), source, self._event, times, at_ns=at_ns)
        self._flush()
        self._parent.send(("run", run))

    def _collect(self, sample: Sample) -> None:
        self._batch.append(pack(sample))
        if len(self._batch) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._batch:
            self._parent.send(("samples", self._batch))
            self._batch = []

    def _event(self, event: Event) -> None:
        self._flush()
        self._parent.send(("done", event.done))
        if self._parent.poll():  # the only word the parent says during a run
            self._engine.stop(self._parent.recv()[1])


def main() -> None:
    """Connect to the socket named on the command line, learn where modules lie and what to measure, and work."""
    import socket

    sock = socket.socket(socket.AF_UNIX)
    sock.connect(sys.argv[1])
    parent = Connection(sock.detach())
    try:
        parent.send(int(sys.argv[2]))
        sys.path[:] = parent.recv()
        targets, stamps = pickle.loads(parent.recv_bytes())
        Worker(parent, targets, stamps=stamps).work()
    except (EOFError, OSError):
        pass  # the parent has closed: nothing is left to do


if __name__ == "__main__":
    main()
