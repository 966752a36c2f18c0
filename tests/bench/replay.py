"""Servers in simulated time on recorded noise: every piece of their work takes as long as the machine took then."""

from __future__ import annotations

import json
import random
from pathlib import Path

from miyabi_llm.bench.gate.values import Plan, Round
from miyabi_llm.bench.values import Sample

NOISE = Path(__file__).parent.parent / "fixtures" / "noise" / "aa.json"


def recorded() -> list[int]:
    """Microseconds of each unit of work, as they followed each other."""
    values: list[int] = json.loads(NOISE.read_text())
    return values


class Replay:
    """Gives the rounds of two servers of which B is `slower` by a share; `clock` tells the simulated seconds.

    A prompt takes 4 to 12 units of work, the same for both arms, a token one unit of about 12 ms; the recording starts
    at a place that depends on `seed` and goes round. Nothing else is made up: what is replayed is the machine.
    """

    def __init__(self, noise: list[int], plan: Plan, slower: float, seed: int, tokens: int = 16) -> None:
        self._noise, self._plan, self._slower, self._tokens = noise, plan, slower, tokens
        self._random = random.Random(seed)
        self._unit = self._random.randrange(len(noise))
        self._now = 1_000_000_000

    def clock(self) -> float:
        """Simulated seconds."""
        return self._now / 1e9

    def __call__(self, number: int, first: int) -> Round:
        """A round: at concurrency 1 pairs in random order, else a block of each arm, `first` first."""
        samples: tuple[list[Sample], list[Sample]] = ([], [])
        if self._plan.concurrency == 1:
            for i in range(self._plan.pairs):
                units = self._random.randint(4, 12)
                one = self._random.randrange(2)
                for arm in (one, 1 - one):
                    samples[arm].append(self._ask(arm, i, units))
        else:
            prompts = [self._random.randint(4, 12) for _ in range(1000)]
            for arm in (first, 1 - first):
                until = self._now + int(self._plan.block_s * 1e9)
                while self._now < until:
                    i = len(samples[arm])
                    samples[arm].append(self._ask(arm, i, prompts[i]))
        seconds = tuple(sum(s.end_ns - s.sent_ns for s in arm) / 1e9 for arm in samples)
        return Round(
            number,
            (tuple(samples[0]), tuple(samples[1])),
            (seconds[0], seconds[1]),
            first=first,
        )

    def _ask(self, arm: int, item: int, units: int) -> Sample:
        begin, times = self._now, []
        for _ in range(units):
            self._work(arm)
        for i in range(self._tokens):
            if i:
                self._work(arm)
            times.append(self._now)
        self._now += 200_000  # what lies between two requests
        return Sample(
            target=arm,
            item=item,
            turn=0,
            stream=0,
            intended_ns=begin,
            sent_ns=begin,
            end_ns=times[-1],
            first_ns=times[0],
            last_ns=times[-1],
            times_ns=tuple(times),
            text="x" * self._tokens,
            output_tokens=self._tokens,
            prompt_tokens=units,
            provenance="usage",
        )

    def _work(self, arm: int) -> None:
        took = self._noise[self._unit % len(self._noise)] * 1000
        self._unit += 1
        self._now += int(took * (1 + self._slower)) if arm else took
