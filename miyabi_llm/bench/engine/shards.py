"""One load from several processes: when one is full its own slowness would be told as the server's."""

from __future__ import annotations

import pickle
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import miyabi_llm
from miyabi_llm.bench.engine.worker import Factory, unpack
from miyabi_llm.bench.values import ClientHealth, Lag, Load, Run, Sample, Target
from miyabi_llm.errors import MachineLimit
from miyabi_llm.proc import Child, launch
from miyabi_llm.types import Event, OnEvent, silent

START_S = 30.0  # for all processes to be there
LEAD_S = 0.25  # from the order to the common begin: longer than it takes to open connections on one machine
FULL = 0.6  # of a core; from here on another process is better
LOOK_S = 0.05  # between looks at whether we were told to stop
# The package may lie where the interpreter does not look by itself.
START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from miyabi_llm.bench.engine.worker import main; main()"


def wanted(health: ClientHealth, cores: int) -> int:
    """How many processes the load of one run wants: more when one is full, at most one per core. Pure."""
    return max(1, min(cores, -(-round(health.cpu * health.processes * 100) // round(FULL * 100))))


def merged(healths: Sequence[ClientHealth]) -> ClientHealth:
    """The health of processes that ran together: sums of what they achieved, the worst of their delays. Pure."""
    first = healths[0]
    return replace(
        first,
        send_lag=_worst([h.send_lag for h in healths]),
        read_lag=_worst([h.read_lag for h in healths]),
        loop_lag=_worst([h.loop_lag for h in healths]),
        cpu=max(h.cpu for h in healths),
        processes=len(healths),
        offered=sum(h.offered for h in healths),
        achieved=sum(h.achieved for h in healths),
        kernel_stamps=all(h.kernel_stamps for h in healths),
        clock_step=max((h.clock_step for h in healths), key=abs),
    )


def _worst(lags: Sequence[Lag | None]) -> Lag | None:
    known = [lag for lag in lags if lag is not None]
    if not known:
        return None
    highest = (max(getattr(lag, name) for lag in known) for name in ("p50", "p99", "worst"))
    return Lag(sum(lag.n for lag in known), *highest)


class Shards:
    """As many engines as `processes`, each in a process of its own. Use it as a context manager.

    They end with this process, however it ends. `env` is the environment they are started in. Linux and macOS.
    Raises MachineLimit where there is no fork, or when they do not come up.
    """

    def __init__(
        self, targets: Sequence[Target], processes: int, env: Mapping[str, str], *, stamps: bool = True
    ) -> None:
        self._targets, self._processes, self._env, self._stamps = tuple(targets), processes, env, stamps
        self._children: list[Child] = []
        self._parts: list[Connection] = []
        self._stopped = ""

    def __enter__(self) -> Shards:
        self._home = Path(tempfile.mkdtemp(prefix="miyabi-bench-"))
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for part in self._parts:
            part.close()
        for child in self._children:
            child.stop(0.5)
        self._parts, self._children = [], []
        shutil.rmtree(self._home, ignore_errors=True)

    def stop(self, why: str) -> None:
        """End the run in progress, from a signal handler or another thread; within half a second."""
        self._stopped = why

    def run(self, load: Load, factory: Factory, sink: Callable[[Sample], None], on_event: OnEvent = silent) -> Run:
        """Send `load`, shared by the processes. Each asks `factory(shard, shards, sink)` for its source, there.

        `factory` is pickled: a function or value of a module, not of a script. `sink` is told every sample, here.
        Raises MachineLimit when a process died, RuntimeError with the traceback when a source has a bug.
        """
        most = min(load.concurrency or self._processes, load.requests or self._processes)
        parts = self._parts[:most]
        at_ns = time.perf_counter_ns() + int(LEAD_S * 1e9)
        self._stopped = ""
        for shard, part in enumerate(parts):
            part.send(("run", load, factory, at_ns, (shard, len(parts))))
        runs: dict[int, Run] = {}
        done = [0.0] * len(parts)
        while len(runs) < len(parts):
            self._pass_on_stop([p for i, p in enumerate(parts) if i not in runs])
            for ready in wait([p for i, p in enumerate(parts) if i not in runs], LOOK_S):
                assert isinstance(ready, Connection)
                shard = parts.index(ready)
                match self._hear(shard):
                    case ("samples", batch):
                        for values in batch:
                            sink(unpack(values, shard, len(parts)))
                    case ("done", count):
                        done[shard] = count
                        on_event(Event("progress", "requests", done=sum(done), total=load.requests, unit="requests"))
                    case ("run", run):
                        runs[shard] = run
                    case ("bug", text):
                        raise RuntimeError(f"process {shard + 1} of {len(parts)}:\n{text}")
        return _whole([runs[i] for i in range(len(parts))])

    def _pass_on_stop(self, parts: Sequence[Connection]) -> None:
        why, self._stopped = self._stopped, ""
        for part in parts if why else ():
            with suppress(OSError):  # it has ended; `_hear` says so
                part.send(("stop", why))

    def _hear(self, shard: int) -> Any:
        try:
            return self._parts[shard].recv()
        except (EOFError, OSError):
            child = self._children[shard]
            child.wait(1.0)
            raise MachineLimit(
                f"process {shard + 1} of {self._processes} of the load generator ended: {child.tail()[-500:]}",
                hint="Look at the machine's memory, or use fewer processes.",
            ) from None

    def _start(self) -> None:
        path = self._home / "s"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(self._processes)
            listener.settimeout(0.2)
            command = [sys.executable, "-c", START, str(Path(miyabi_llm.__file__).parent.parent), str(path)]
            for number in range(self._processes):
                self._children.append(launch([*command, str(number)], self._env, {}, self._home / f"log-{number}"))
            found = self._accept(listener)
        self._parts = [found[i] for i in range(self._processes)]
        orders = pickle.dumps((self._targets, self._stamps))
        for part in self._parts:
            part.send(sys.path)
            part.send_bytes(orders)
        for shard in range(self._processes):
            self._hear(shard)

    def _accept(self, listener: socket.socket) -> dict[int, Connection]:
        found: dict[int, Connection] = {}
        deadline = time.monotonic() + START_S
        while len(found) < self._processes:
            with suppress(TimeoutError):
                sock, _ = listener.accept()
                sock.setblocking(True)
                part = Connection(sock.detach())
                found[part.recv()] = part
                continue
            dead = next((c for c in self._children if c.poll() is not None), None)
            if dead is not None or time.monotonic() > deadline:
                for part in found.values():
                    part.close()
                words = dead.tail()[-500:] if dead is not None else f"not there after {START_S:g} s"
                raise MachineLimit(f"a process of the load generator did not start: {words}", hint="Use fewer.")
        return found


def _whole(runs: Sequence[Run]) -> Run:
    return Run(
        min(r.begin_ns for r in runs),
        max(r.end_ns for r in runs),
        sum(r.sent for r in runs),
        sum(r.failed for r in runs),
        merged([r.health for r in runs]),
        next((r.aborted for r in runs if r.aborted), ""),
        sum(r.unsent for r in runs),
        sum(r.retried for r in runs),
    )
