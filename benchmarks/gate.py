"""How often the gate is wrong: the whole loop, early stopping included, on equals and on planted slowdowns.

    python benchmarks/gate.py [--trials 200] [--concurrency 1,8]     in simulated time, on recorded noise
    python benchmarks/gate.py --live 5                              on two real llama-servers, gemma3:270m

Simulated: two servers whose every piece of work takes as long as the recording of a shared machine says
(tests/fixtures/noise), B's by the share longer. Each trial begins elsewhere in the seven minutes recorded; trials
overlap, so they are not independent. Live: each server has one thread and stands behind a relay that stretches the
time since a request came: by nothing for A, by the share for B; that is the plant, and all else is real.
Exit code 1 when more than 1 of 100 equals fail, fewer than 95 of 100 are found at 10%, or not all at 20%.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

SHARES = (0.0, 0.10, 0.20)
BUDGET_S = 600.0  # of a live trial


def main(argv: list[str]) -> int:
    """Run the trials, print the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--concurrency", default="1,8")
    parser.add_argument("--live", type=int, default=0, metavar="N", help="N trials each on real servers instead")
    parser.add_argument("--relay", nargs=2, metavar=("URL", "FACTOR"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.relay:
        asyncio.run(relay(args.relay[0], float(args.relay[1])))
        return 0
    print(f"{'':<26}{'pass':>6}{'fail':>6}{'open':>6}{'invalid':>9}   rounds (most)   seconds (most)")
    if args.live:
        return live(args.live)
    levels = [int(c) for c in args.concurrency.split(",")]
    return max(simulated(args.trials, level) for level in levels)


class Table:
    """Counts the outcomes of one kind of trial, prints its line."""

    def __init__(self, title: str, share: float) -> None:
        self._title, self._share = title, share
        self._outcomes: Counter[str] = Counter()
        self._rounds: list[int] = []
        self._seconds: list[float] = []

    def add(self, outcome: str, rounds: int, seconds: float) -> None:
        """One trial."""
        self._outcomes[outcome] += 1
        self._rounds.append(rounds)
        self._seconds.append(seconds)

    def done(self) -> bool:
        """Print; whether it is as good as promised."""
        o, n = self._outcomes, len(self._rounds)
        title = f"{self._title}, {f'B {self._share:.0%} slower' if self._share else 'A/A'}"
        counts = f"{o['pass']:>6}{o['fail']:>6}{o['inconclusive']:>6}{o['invalid']:>9}"
        rounds = f"{statistics.median(self._rounds):>6.0f} ({max(self._rounds)})"
        seconds = f"{statistics.median(self._seconds):>12.0f} ({max(self._seconds):.0f})"
        print(f"{title:<26}{counts}{rounds:>14}{seconds}", flush=True)
        found = o["fail"] / n
        return found <= 0.01 if not self._share else found >= (0.95 if self._share < 0.15 else 1.0)


def simulated(trials: int, concurrency: int) -> int:
    """All trials of one concurrency in simulated time."""
    from miyabi_llm.bench.gate.ab import AB
    from miyabi_llm.bench.gate.values import Plan
    from tests.bench.replay import Replay, recorded

    noise, good = recorded(), True
    for share in SHARES:
        table = Table("pairs" if concurrency == 1 else "blocks of 2 s", share)
        for seed in range(trials):
            plan = Plan(concurrency=concurrency, seed=seed)
            measure = Replay(noise, plan, share, seed)
            found = AB(measure, (), plan, clock=measure.clock).run()
            table.add(found.outcome, found.rounds, found.seconds)
        good &= table.done()
    return int(not good)


def live(trials: int) -> int:
    """All trials on real servers; the kinds alternate, so that a slow hour hits all."""
    from miyabi_llm.bench.gate.ab import AB
    from miyabi_llm.bench.gate.measure import Prompts, Together
    from miyabi_llm.bench.gate.values import Plan
    from miyabi_llm.bench.values import Item, Target
    from miyabi_llm.bench.workload import Workload, load_workload
    from miyabi_llm.types import Endpoint

    chat = load_workload("chat")
    short = {"temperature": 0, "ignore_eos": True, "seed": 1}
    asked = sorted((str(i.messages[-1]["content"]) for i in chat.items if i.messages and not i.more), key=len)
    items = tuple(Item(str(n), prompt=text, max_tokens=8, params=short) for n, text in enumerate(asked[:8]))
    tables = {share: Table("llama-server", share) for share in SHARES}
    with ExitStack() as stack:
        urls = [stack.enter_context(server(i)) for i in (0, 1)]
        relays = {
            (arm, share): stack.enter_context(relayed(urls[arm], 1 + share))
            for arm, share in [(0, 0.0), *((1, s) for s in SHARES)]
        }
        for seed in range(trials):
            for share in SHARES:
                plan = Plan(budget_s=BUDGET_S, seed=seed)
                ends = (Endpoint(relays[0, 0.0], "gemma"), Endpoint(relays[1, share], "gemma"))
                targets = (Target("A", ends[0], "openai-completions"), Target("B", ends[1], "openai-completions"))
                with Together(targets, Prompts(Workload(chat.name, items, chat.license, chat.sha256)), plan) as measure:
                    found = AB(measure, (), plan).run()
                tables[share].add(found.outcome, found.rounds, found.seconds)
                words = "; ".join(f"{c.metric} {c.reason}" for c in found.metrics) or "; ".join(found.reasons)
                print(f"  {share:.0%} {found.outcome}, {found.rounds} rounds: {words}", file=sys.stderr, flush=True)
    return max(int(not table.done()) for table in tables.values())


@contextmanager
def server(number: int) -> Iterator[str]:
    """A llama-server of one thread; its address."""
    from miyabi_llm import config, serve
    from miyabi_llm.cli import plans
    from miyabi_llm.config import Settings
    from miyabi_llm.proc import ports
    from miyabi_llm.pull import pull
    from miyabi_llm.refs import ModelRef
    from miyabi_llm.store import Store

    user = config.load()
    store = Store(user.cache / "tests" / "store")
    artifact = pull(ModelRef.parse("gemma3:270m"), store, user)
    with tempfile.TemporaryDirectory() as home, store.lease(artifact):
        (Path(home) / "store").symlink_to(store.root)
        settings = Settings(Path(home), user.cache, user.config, user.user_home, env=user.env)
        port = ports.free(start=18700 + 10 * number)
        wanted = plans.Wanted(port=port, ctx=2048, threads=1, alias="gemma", extra=("-np", "1", "--cache-ram", "0"))
        with serve.running(plans.make(artifact, store, settings, wanted), settings) as endpoint:
            yield endpoint.base_url


@contextmanager
def relayed(url: str, factor: float) -> Iterator[str]:
    """A relay to `url` in a process of its own; its address."""
    words = [sys.executable, __file__, "--relay", url, str(factor)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


async def relay(url: str, factor: float) -> None:
    """Pass bytes on; those of answers when `factor` times as long went by since the request's last byte."""
    host, _, port = url.removeprefix("http://").partition(":")
    loop = asyncio.get_running_loop()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        their_reader, their_writer = await asyncio.open_connection(host, int(port))
        asked = loop.time()

        def later(write: Callable[[], None]) -> None:
            loop.call_at(asked + (loop.time() - asked) * factor, write)

        async def answers() -> None:
            while data := await their_reader.read(1 << 16):
                later(lambda data=data: writer.write(data))  # type: ignore[misc]
            later(writer.close)

        task = asyncio.ensure_future(answers())
        while data := await reader.read(1 << 16):
            asked = loop.time()
            their_writer.write(data)
        their_writer.close()
        await task

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(listening.sockets[0].getsockname()[1], flush=True)
    ended = orphaned(loop)
    async with listening:
        await ended


def orphaned(loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
    """Done when stdin ends: no relay outlives its parent."""
    import threading

    ended: asyncio.Future[None] = loop.create_future()

    def watch() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set_result, None)

    threading.Thread(target=watch, daemon=True).start()
    return ended


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
