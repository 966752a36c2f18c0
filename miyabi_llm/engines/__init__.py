"""Training engines: the table, and which of them a recipe gets. Nothing here imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from miyabi_llm.errors import BadUsage, MachineLimit

if TYPE_CHECKING:
    from miyabi_llm.engines.base import Engine
    from miyabi_llm.hardware import Hardware

NAMES = ("trl", "unsloth")


def get(name: str) -> Engine:
    """The engine of that name. Raises BadUsage."""
    if name == "trl":
        from miyabi_llm.engines.trl import Trl

        return Trl()
    if name == "unsloth":
        from miyabi_llm.engines.unsloth import Unsloth

        return Unsloth()
    raise BadUsage(f"no engine is called {name!r}", hint=f"There are: auto, {', '.join(NAMES)}.")


def choose(name: str, machine: Hardware, method: str = "sft", processes: int = 1) -> Engine:
    """The engine for `train.engine: name`; `auto` takes unsloth where it can run this method in one process.

    Raises MachineLimit when the named engine cannot run here, with its reason.
    """
    if name == "auto":
        unsloth = get("unsloth")
        return unsloth if unsloth.why_not(machine, method, processes) is None else get("trl")
    engine = get(name)
    if (why := engine.why_not(machine, method, processes)) is not None:
        raise MachineLimit(f"the engine {name} cannot be used here: {why}", hint="Set `train.engine: auto`.")
    return engine
