"""The commands `bench ab` and `bench calibrate`: two servers in interleaved rounds, and one against itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from miyabi_llm.cli import bench_gate, bench_live
from miyabi_llm.cli import bench_targets as aims
from miyabi_llm.cli.bench_run import interruptible
from miyabi_llm.errors import BadUsage

if TYPE_CHECKING:
    from miyabi_llm.bench.gate.calibrate import Calibration
    from miyabi_llm.bench.gate.expr import Rule
    from miyabi_llm.bench.gate.values import Judgement, Measure, Plan
    from miyabi_llm.bench.report import Machine
    from miyabi_llm.bench.values import Target
    from miyabi_llm.bench.workload import Workload
    from miyabi_llm.config import Settings
    from miyabi_llm.types import OnEvent


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked, and of what machine."""

    workload: Workload
    machine: Machine
    nonce: bool = True
    in_turn: bool = False


def compare(
    aim: aims.Aim, rules: tuple[Rule, ...], plan: Plan, ask: Ask, settings: Settings, *, as_json: bool
) -> Judgement:
    """Measure two targets in rounds until it can be told. Raises BadUsage, and what starting a server raises."""
    from miyabi_llm.bench.gate.ab import AB

    if len(aim.wanted) != 2:
        raise BadUsage(f"{len(aim.wanted)} targets: a comparison has two", hint="`miyabi-llm bench ab A B`.")
    names = (aim.wanted[0].name, aim.wanted[1].name)
    with bench_live.shown(as_json=as_json) as on_event, _measure(aim, plan, ask, settings, on_event) as found:
        measure, first = found
        noise = {} if first is None else _noise(first, plan, ask, settings)
        return AB(measure, rules, plan, names=names, noise=noise).run(on_event)


@contextmanager
def _measure(
    aim: aims.Aim, plan: Plan, ask: Ask, settings: Settings, on_event: OnEvent
) -> Iterator[tuple[Measure, Target | None]]:
    """What measures a round, and the first target where both are up."""
    from miyabi_llm.bench.gate.measure import InTurn, Prompts, Together

    prompts = Prompts(ask.workload, plan.seed, ask.nonce)
    if ask.in_turn:
        yield InTurn(lambda arm: aims.opened_one(aim.wanted[arm], aim.how, settings, on_event), prompts, plan), None
        return
    with ExitStack() as stack:
        a, b = (stack.enter_context(aims.opened_one(wish, aim.how, settings, on_event)) for wish in aim.wanted)
        measure = stack.enter_context(Together((a, b), prompts, plan, identify=lambda arm: who((a, b)[arm])))
        with interruptible(measure):
            yield measure, a


def who(target: Target) -> str:
    """Which process answers for a target on this machine; empty where that is not to be seen."""
    from miyabi_llm.bench.resources import server_pid
    from miyabi_llm.proc import identify

    pid = server_pid(target.endpoint)
    return "" if pid is None else str(identify(pid))


def _key(target: Target, plan: Plan, workload: Workload) -> str:
    from miyabi_llm.bench.gate.calibrate import server_key

    return server_key(target.endpoint.backend, target.endpoint.model, workload.name, plan.concurrency)


def _noise(target: Target, plan: Plan, ask: Ask, settings: Settings) -> dict[str, float]:
    from miyabi_llm.bench.gate.calibrate import known

    floors = known(bench_gate.calibrations(settings), ask.machine.fingerprint, _key(target, plan, ask.workload))
    return {name: floor.paired for name, floor in floors.items()}


def calibrate(
    aim: aims.Aim, rules: tuple[Rule, ...], plan: Plan, ask: Ask, settings: Settings, *, as_json: bool
) -> Calibration:
    """Measure one target against itself, and remember the noise. Raises InvalidMeasurement."""
    from miyabi_llm.bench.gate import calibrate as verb
    from miyabi_llm.bench.gate.measure import Prompts, Together

    if len(aim.wanted) != 1:
        raise BadUsage(f"{len(aim.wanted)} targets: a calibration compares one with itself")
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    with bench_live.shown(as_json=as_json) as on_event, ExitStack() as stack:
        target = stack.enter_context(aims.opened_one(aim.wanted[0], aim.how, settings, on_event))
        pair = (target, replace(target, name=f"{target.name} again"))
        prompts = Prompts(ask.workload, plan.seed, ask.nonce)
        measure = stack.enter_context(Together(pair, prompts, plan, identify=lambda arm: who(pair[arm])))
        stack.enter_context(interruptible(measure))
        floors = verb.calibrate(measure, rules, plan.rounds, on_event)
    key = _key(target, plan, ask.workload)
    found = verb.Calibration(ask.machine.fingerprint, key, begun, plan.rounds, floors)
    verb.keep(bench_gate.calibrations(settings), found)
    return found
