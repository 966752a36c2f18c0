"""The verb `finetune reproduce`: the same training once more, and whether the adapter comes out byte for byte.

In fp32 on a CPU the bytes are promised to be the same. On a GPU, in bf16 or with several processes they need not be:
then the losses are told beside each other.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from miyabi_llm.errors import GateFailed, InvalidMeasurement
from miyabi_llm.finetune import run as running
from miyabi_llm.finetune import rundir
from miyabi_llm.finetune.context import RunContext
from miyabi_llm.finetune.stages import STAGES
from miyabi_llm.finetune.verify import card
from miyabi_llm.types import Event, OnEvent, silent

AGAIN = "again"
TABLE = tuple(s for s in STAGES if s.name in ("check", "base", "data", "train"))


@dataclass(frozen=True, slots=True)
class Reproduced:
    """The second training beside the first: hashes of what was trained, the losses, whether equal bytes were promised.

    `same` is of the weights; `others` names files beside them that differ (a newer library may write them otherwise).
    """

    name: str
    same: bool
    promised: bool
    first: Mapping[str, str]
    second: Mapping[str, str]
    loss: tuple[float, float]
    seconds: float
    others: tuple[str, ...] = ()


def reproduce(ctx: RunContext, world: running.World, on_event: OnEvent = silent) -> Reproduced:
    """Train again in a folder beside the run, which is removed afterwards.

    Raises InvalidMeasurement when the data or the base is not what it was, GateFailed when equal bytes were promised
    and did not come.
    """
    body = card(ctx.run.card)
    before = _adapter(body["stages"]["train"]["outputs"])
    name = f"{ctx.run.name[:90]}.{AGAIN}"
    place = rundir.place(world.settings.home, name)
    shutil.rmtree(place.root, ignore_errors=True)
    try:
        on_event(Event("phase", "reproduce", f"the training of {ctx.run.name}, from its beginning"))
        done = running.run(ctx.loaded, world, on_event, name=name, table=TABLE)
        _same_ground(body, done.stages)
        outputs = {path: o.sha256 for path, o in done.stages["train"].outputs.items()}
        seconds = done.stages["train"].seconds
        loss = (float(body["stages"]["train"]["figures"]["loss"]), float(done.stages["train"].figures["loss"]))
    finally:
        shutil.rmtree(place.root, ignore_errors=True)
    after = _adapter(outputs)
    others = tuple(sorted(k for k in before.keys() | after.keys() if not _weights(k) and before.get(k) != after.get(k)))
    first, second = ({k: v for k, v in side.items() if _weights(k)} for side in (before, after))
    promised = ctx.precision == "fp32" and not ctx.machine.gpus and ctx.recipe.train.launch.processes == 1
    found = Reproduced(ctx.run.name, first == second, promised, first, second, loss, seconds, others)
    if promised and not found.same:
        raise GateFailed(
            f"the second training gave other bytes (loss {loss[1]:.6f}, the first {loss[0]:.6f})",
            hint="Compare the versions in the card with those of this machine.", first=first, second=second,
        )  # fmt: skip
    return found


def _adapter(outputs: Mapping[str, str]) -> dict[str, str]:
    """Hashes of the files of the adapter; its manifest holds the hashes of the others."""
    return {k: v for k, v in outputs.items() if k.startswith("adapter/") and not k.endswith("/manifest.json")}


def _weights(name: str) -> bool:
    return name.endswith(".safetensors")


def _same_ground(body: Mapping[str, Any], stages: Mapping[str, Any]) -> None:
    """Raise InvalidMeasurement unless base and rows are those of the card."""
    if stages["base"].figures["sha256"] != body["base"]["sha256"]:
        raise InvalidMeasurement("the base is not the one of the card", hint="Pull or make the same base again.")
    made = {path: o.sha256 for path, o in stages["data"].outputs.items()}
    for path, told in body["stages"]["data"]["outputs"].items():
        if path.endswith(".jsonl") and made.get(path) != told:
            raise InvalidMeasurement(f"{path} is not what the card says: the data changed since")
