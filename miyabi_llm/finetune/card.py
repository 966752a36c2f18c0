"""The lineage card: everything a run was made of and everything that was found, in one file that travels with it.

It holds no path of this machine: files go by their names and hashes.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from miyabi_llm import __version__
from miyabi_llm.engines import environment
from miyabi_llm.finetune import evaluate, export
from miyabi_llm.finetune.context import RunContext, StageResult
from miyabi_llm.finetune.rundir import write_json

VERSION = 1
SOURCES = ("train_rows", "eval_rows", "forget_rows")
# Figures of stages that say where something lay or how long a list is, not what it is.
LEFT_OUT = {"base": ("folder",), "train": ("curve", "evals", "files")}


def inputs(ctx: RunContext) -> Mapping[str, str]:
    """Everything: a card is always of the run as it is."""
    return {"now": datetime.now(UTC).isoformat()}


def run(ctx: RunContext) -> StageResult:
    """Write the card."""
    write_json(ctx.run.card, body(ctx))
    return StageResult({"sha256": export.sha256(ctx.run.card)}, (ctx.run.card,))


def body(ctx: RunContext) -> dict[str, Any]:
    """The card as plain JSON."""
    base, recipe = ctx.base, ctx.recipe
    return {
        "version": VERSION,
        "name": ctx.loaded.name,
        "made_by": f"miyabi-llm {__version__}",
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": {
            "sha256": hashlib.sha256(ctx.loaded.text.encode()).hexdigest(), "resolved_sha256": ctx.loaded.sha256,
            "overrides": list(ctx.loaded.overrides), "resolved": ctx.loaded.resolved(),
        },
        "base": {
            "label": base.label, "sha256": base.sha256, "revision": recipe.base.revision, "copied_from": base.gguf,
            "tokenizer": files(base.folder, ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")),
            "template_sha256": _template(ctx),
        },
        "data": {name: file(getattr(ctx.run, name)) for name in SOURCES if getattr(ctx.run, name).is_file()}
        | {"measured_rows": evaluate.asked(ctx)},
        "seeds": {"data": recipe.data.seed, "train": recipe.train.seed, "bootstrap": 0},
        "engine": {"name": ctx.engine.name, "precision": ctx.precision, "versions": versions(ctx)},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(),
            "gpus": [g.name for g in ctx.machine.gpus],
        },
        "stages": {
            name: {
                "seconds": done.seconds, "skipped": done.skipped,
                "outputs": {path: o.sha256 for path, o in done.outputs.items()},
                "figures": {k: v for k, v in done.figures.items() if k not in LEFT_OUT.get(name, ())},
            }
            for name, done in ctx.record.all().items() if name not in ("card", "report")
        },
    }  # fmt: skip


def versions(ctx: RunContext) -> Mapping[str, str]:
    """The packages of the training environment."""
    env = ctx.engine.find(ctx.settings)
    return environment.installed(env) if env is not None else {}


def files(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """sha256 of those files that are there."""
    return {name: export.sha256(folder / name) for name in names if (folder / name).is_file()}


def file(path: Path) -> dict[str, Any]:
    """Hash and number of rows of a data file."""
    return {"sha256": export.sha256(path), "rows": len(evaluate.read_rows(path))}


def _template(ctx: RunContext) -> str | None:
    place = evaluate.proof(ctx, evaluate.PROBES)
    if not place.is_file():
        return None
    found = json.loads(place.read_text(encoding="utf-8"))["template"]
    return str(found) if found else None
