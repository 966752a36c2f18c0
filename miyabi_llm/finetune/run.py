"""The verb `finetune`: every stage of a recipe in its order, each once, in a folder that survives anything."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from miyabi_llm import __version__, engines
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, MiyabiError
from miyabi_llm.finetune import load as loading
from miyabi_llm.finetune import rundir
from miyabi_llm.finetune.context import RunContext, Stage, Verbs
from miyabi_llm.finetune.load import Loaded
from miyabi_llm.finetune.record import Finished, Record, changed, output
from miyabi_llm.finetune.rundir import RunDir
from miyabi_llm.finetune.stages import STAGES
from miyabi_llm.hardware import Hardware
from miyabi_llm.store import Store
from miyabi_llm.types import Event, OnEvent, silent


@dataclass(frozen=True, slots=True)
class World:
    """What a run takes from outside: settings, store, machine, the other verbs."""

    settings: Settings
    store: Store
    machine: Hardware
    verbs: Verbs


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that went through: its folder, and each stage with what it found. `seconds` of this attempt."""

    name: str
    folder: Path
    seconds: float
    stages: Mapping[str, Finished]


def run(
    loaded: Loaded,
    world: World,
    on_event: OnEvent = silent,
    *,
    name: str | None = None,
    table: Sequence[Stage] = STAGES,
) -> Outcome:
    """Do every stage of the recipe that is not done. A run of the same recipe is gone on with.

    Raises BadUsage when a run of that name is of another recipe, or when its data or base changed; RunBusy; and what
    the stages raise. Whatever ends it, what is finished stays.
    """
    place = rundir.place(world.settings.home, name or loaded.name)
    with rundir.held(place):
        _enter(place, loaded)
        return _go(place, loaded, world, on_event, table)


def resume(name: str, world: World, on_event: OnEvent = silent, *, table: Sequence[Stage] = STAGES) -> Outcome:
    """Go on with the run `name`, with the recipe it was begun with. Raises as `run`."""
    place = rundir.place(world.settings.home, name)
    loaded = reopen(place)
    with rundir.held(place):
        return _go(place, loaded, world, on_event, table)


def redo(
    name: str, world: World, stages: Sequence[str], overrides: Sequence[str] = (), on_event: OnEvent = silent
) -> Outcome:
    """Do the named stages of a run that is there, with other values for keys of the section `export`.

    What was made with the same values is not made again. Raises BadUsage for other keys, and as `run`.
    """
    place = rundir.place(world.settings.home, name)
    if other := [o for o in overrides if not o.startswith("export.")]:
        raise BadUsage(f"{other[0]}: only keys of `export` can change in a run that is there")
    loaded = reopen(place)
    if overrides:
        words = (*(o for o in loaded.overrides if o.partition("=")[0] not in {w.partition("=")[0] for w in overrides}),
                 *overrides)  # fmt: skip
        loaded = Loaded(loading.parse(loaded.text, str(place.recipe), words), loaded.path, loaded.text, words)
    with rundir.held(place):
        _write(place, loaded)
        return _go(place, loaded, world, on_event, [s for s in STAGES if s.name in stages])


def reopen(place: RunDir) -> Loaded:
    """The recipe a run was begun with. Raises BadUsage when there is no such run."""
    if not place.resolved.is_file():
        raise BadUsage(f"there is no run {place.name}", hint="`miyabi-llm finetune status` lists the runs.")
    told = _told(place)
    text = place.recipe.read_text(encoding="utf-8")
    recipe = loading.parse(text, str(place.recipe), tuple(told["overrides"]))
    return Loaded(recipe, Path(told["path"]), text, tuple(told["overrides"]))


def _told(place: RunDir) -> dict[str, Any]:
    try:
        told: dict[str, Any] = yaml.safe_load(place.resolved.read_text(encoding="utf-8"))
        if {"sha256", "path", "overrides"} <= told.keys():
            return told
    except (OSError, yaml.YAMLError, AttributeError):
        pass
    raise MiyabiError(f"{place.resolved} cannot be read", hint=f"Remove {place.root}, and begin again.")


def _enter(place: RunDir, loaded: Loaded) -> None:
    """Write down the recipe of a new run, or see that it is the one of an old run."""
    if place.resolved.is_file():
        told = _told(place)
        if told["sha256"] != loaded.sha256:
            raise BadUsage(
                f"the run {place.name} was begun with another recipe: {_difference(told['recipe'], loaded.resolved())}",
                hint=f"Give this one a name of its own with --name, or remove {place.root}.",
            )
        return
    _write(place, loaded)


def _write(place: RunDir, loaded: Loaded) -> None:
    """The recipe, and every key with its value."""
    rundir.write_text(place.recipe, loaded.text)
    body = {
        "sha256": loaded.sha256,
        "path": str(loaded.path),
        "overrides": list(loaded.overrides),
        "by": f"miyabi-llm {__version__}",
        "began_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": loaded.resolved(),
    }
    rundir.write_json(place.resolved, body)


def _difference(old: Any, new: Any, path: str = "") -> str:
    """The first key whose value differs, with both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(k for k in new if k not in old)]:
            if (found := _difference(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))) != "":
                return found
        return ""
    return "" if old == new else f"{path} was {old!r}, now {new!r}"


def _go(place: RunDir, loaded: Loaded, world: World, on_event: OnEvent, table: Sequence[Stage]) -> Outcome:
    started = time.monotonic()
    current = ["start"]

    def heard(event: Event) -> None:
        rundir.note(place, current[0], event)
        on_event(event)

    ctx = context(place, loaded, world, heard)
    ctx.engine.install(world.settings, heard)
    for number, stage in enumerate(table, 1):
        current[0] = stage.name
        _stage(stage, ctx, f"{number}/{len(table)}")
    return Outcome(place.name, place.root, round(time.monotonic() - started, 1), ctx.record.all())


def context(place: RunDir, loaded: Loaded, world: World, on_event: OnEvent = silent) -> RunContext:
    """What stages look at, of a run that is there. Raises Corrupt, MachineLimit."""
    train = loaded.recipe.train
    processes = train.launch.processes * train.launch.nodes
    engine = engines.choose(train.engine, world.machine, train.method, processes)
    return RunContext(
        loaded, place, Record(place), world.settings, world.store, world.machine, engine, world.verbs, on_event
    )


@contextmanager
def opened(name: str, world: World, on_event: OnEvent = silent) -> Iterator[RunContext]:
    """A run that is there, held meanwhile. Raises BadUsage when there is none of that name, RunBusy."""
    place = rundir.place(world.settings.home, name)
    loaded = reopen(place)
    with rundir.held(place):
        yield context(place, loaded, world, on_event)


def _stage(stage: Stage, ctx: RunContext, count: str) -> None:
    """Do a stage, unless it is done with the same inputs, or this recipe leaves it out."""
    why = stage.left_out(ctx)
    if why:
        ctx.record.put(stage.name, Finished({}, skipped=why))
        ctx.on_event(Event("phase", stage.name, f"left out: {why}", data={"stage": stage.name, "count": count}))
        return
    wanted, done = dict(stage.inputs(ctx)), ctx.record.get(stage.name)
    if done is not None and not done.skipped and not stage.again:
        lost = changed(ctx.run, done)
        if dict(done.inputs) == wanted and not lost:
            ctx.on_event(Event("phase", stage.name, "done before", data={"stage": stage.name, "count": count}))
            return
        if stage.fixed and not lost:
            what = _what(dict(done.inputs), wanted)
            raise BadUsage(
                f"the run {ctx.run.name} cannot go on: {what} changed since {stage.name} was done ({done.finished_at})",
                hint="Undo the change, or begin a new run with --name.",
            )
    ctx.on_event(Event("phase", stage.name, f"stage {count}", data={"stage": stage.name, "count": count}))
    started = time.monotonic()
    made = stage.run(ctx)
    outputs = dict(output(ctx.run, path) for path in made.files)
    ctx.record.put(
        stage.name,
        Finished(
            dict(stage.inputs(ctx)) if stage.again else wanted,
            outputs,
            made.figures,
            round(time.monotonic() - started, 2),
            datetime.now(UTC).isoformat(timespec="seconds"),
        ),
    )


def _what(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    names = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    return " and ".join(names) or "something"
