"""The stage `data`: the rows of a run, written once; files that change afterwards are not trained on in secret."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from miyabi_llm.engines import checkpoints
from miyabi_llm.finetune import data
from miyabi_llm.finetune.context import RunContext, StageResult, digest, section
from miyabi_llm.types import plain


def inputs(ctx: RunContext) -> Mapping[str, str]:
    """The hash of every file the recipe names, the base (its tokenizer counts tokens), and the section `data`."""
    recipe = ctx.recipe
    found = {"base": ctx.base.sha256, "recipe": section(ctx, "data"), "method": recipe.train.method}
    for key, source in (
        ("data.train", recipe.data.train),
        ("data.eval", recipe.data.eval),
        ("evaluate.forgetting", recipe.evaluate.forgetting),
    ):
        if source is not None:
            found[key] = _known(ctx.loaded.file(source), source)
    return found


def _known(path: Path, source: str) -> str:
    """The hash of a file, or of all files of a folder; of what lies elsewhere only its name is known."""
    if path.is_file():
        return checkpoints.sha256(path)
    if path.is_dir():
        return digest({str(p.relative_to(path)): checkpoints.sha256(p) for p in sorted(path.rglob("*")) if p.is_file()})
    return source


def run(ctx: RunContext) -> StageResult:
    """Read, judge, split, write. Raises BadUsage for rows that must not be trained on."""
    tools = data.Tools(ctx.engine, ctx.settings, ctx.base.folder)
    found = data.prepare(ctx.loaded, ctx.run.data, tools, ctx.on_event)
    made = [ctx.run.train_rows, ctx.run.eval_rows, ctx.run.forget_rows, ctx.run.data / "lint.json"]
    told = f"{len(found.learn):,} rows to learn from, {len(found.held):,} held out"
    return StageResult({"told": told, **plain(data.figures(found))}, tuple(p for p in made if p.is_file()))
