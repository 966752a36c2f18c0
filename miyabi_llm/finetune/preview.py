"""Looking at a recipe's data without a run: the same reading, splitting and rendering, and nothing kept."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miyabi_llm import dataset, engines
from miyabi_llm.dataset import Reading
from miyabi_llm.finetune import base, data, rundir
from miyabi_llm.finetune import load as loading
from miyabi_llm.finetune.context import RunContext
from miyabi_llm.finetune.data import Prepared
from miyabi_llm.finetune.load import Loaded
from miyabi_llm.finetune.record import Record
from miyabi_llm.finetune.run import World
from miyabi_llm.finetune.rundir import RunDir
from miyabi_llm.types import OnEvent, silent

METHODS = {"sft": "sft", "preference": "dpo", "unpaired": "kto"}


def look(loaded: Loaded, world: World, on_event: OnEvent = silent, *, keep: int = 0, tokens: bool = True) -> Prepared:
    """The data of a recipe as a run would have it, judged; `keep` rows are rendered whole.

    Without `tokens` neither engine nor base is needed. Raises as the stages `base` and `data` do for what cannot be
    looked at; what is wrong with rows is in the report.
    """
    world.settings.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".look-", dir=world.settings.cache) as folder:
        work = Path(folder)
        train = loaded.recipe.train
        engine = engines.choose(train.engine, world.machine, train.method, 1)
        model = None
        if tokens:
            engine.install(world.settings, on_event)
            place = RunDir(work)
            ctx = RunContext(
                loaded, place, Record(place), world.settings, world.store, world.machine, engine, world.verbs, on_event
            )
            model = Path(base.run(ctx).figures["folder"])
        return data.look(loaded, work, data.Tools(engine, world.settings, model), on_event, keep=keep)


def of_file(path: Path, model: str | None, overrides: tuple[str, ...] = ()) -> Loaded:
    """A recipe for looking at one file of rows; `overrides` are keys of a recipe, such as data.roles.human=user.

    The method is what the form of the rows is for. Raises BadUsage.
    """
    text = "base: {model: none}\ndata: {train: none}\n"
    given: tuple[str, ...] = (f"data.train={_quoted(str(path.absolute()))}", f"base.model={_quoted(model or 'none')}")
    recipe = loading.parse(text, str(path), (*given, *overrides))
    if not any(o.startswith("train.method=") for o in overrides) and path.is_file():
        d = recipe.data
        kind = next((dataset.KINDS[f] for f in (_form(path, d.format, d.roles),) if f in dataset.KINDS), "sft")
        given += (f"train.method={METHODS[kind]}",)
        recipe = loading.parse(text, str(path), (*given, *overrides))
    return Loaded(recipe, path.absolute(), text, (*given, *overrides))


def _form(path: Path, form: str, roles: Mapping[str, str]) -> str:
    return dataset.read(path, Reading(form, roles)).format if form == "auto" else form


def _quoted(text: str) -> str:
    """As a text of YAML, whatever it holds."""
    import json

    return json.dumps(text, ensure_ascii=False)


def changed(found: Prepared, loaded: Loaded, world: World) -> tuple[str, ...]:
    """Ids of rows that a run of this name rendered to other tokens: the template or a library is another one now."""
    place = rundir.place(world.settings.home, loaded.name)
    if not place.stages.is_file():
        return ()
    before: Mapping[str, Any] = Record(place).figures("data").get("golden", {})
    return tuple(k for k, sha in found.golden.items() if before.get(k, sha) != sha)
