"""What keys of a recipe say about each other: pure judgements that no single key can make."""

from __future__ import annotations

from collections.abc import Iterator

from miyabi_llm.finetune.recipe import Recipe

NEEDED_FORMAT = {"sft": ("messages", "sharegpt", "alpaca", "prompt-completion"), "kto": ("unpaired",),
                 "dpo": ("preference",), "orpo": ("preference",)}  # fmt: skip


def judge(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    """The path of each key that contradicts another, and why."""
    base, data, train = recipe.base, recipe.data, recipe.train
    if (base.model is None) == (base.tiny is None):
        yield ("base",), "give either `model` or `tiny`"
    if base.tiny is not None and base.revision is not None:
        yield ("base", "revision"), "a tiny model is made here and has no revision"
    if data.format != "auto" and data.format not in NEEDED_FORMAT[train.method]:
        wanted = " or ".join(NEEDED_FORMAT[train.method])
        yield ("data", "format"), f"train.method {train.method} learns from {wanted}, not from {data.format}"
    if data.eval is None and data.eval_fraction == 0:
        yield (
            ("data", "eval_fraction"),
            "nothing would be held out to measure on: give `eval`, or more than 0",
        )
    yield from _train(recipe)
    yield from _measured(recipe)


def _train(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    train, launch = recipe.train, recipe.train.launch
    if train.early_stopping is not None and train.eval_steps is None:
        yield ("train", "early_stopping"), "needs `eval_steps`: it looks at the losses on held-out rows"
    if launch.processes * launch.nodes > 1 and launch.strategy == "none":
        yield ("train", "launch", "strategy"), "several processes need one of ddp, fsdp, zero2, zero3"
    if launch.node >= launch.nodes:
        yield ("train", "launch", "node"), f"machines count from 0 to {launch.nodes - 1}"
    if launch.nodes > 1 and launch.address is None:
        yield ("train", "launch", "address"), "several machines need the HOST:PORT of machine 0"
    if train.packing and train.method != "sft":
        yield ("train", "packing"), "only sft packs rows"


def _measured(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    sft = recipe.train.method == "sft"
    if recipe.gates.max_forgetting is not None and recipe.evaluate.forgetting is None:
        yield ("gates", "max_forgetting"), "needs `evaluate.forgetting`: the rows it is measured on"
    if recipe.evaluate.metric == "preference" and recipe.train.method not in ("dpo", "orpo"):
        yield ("evaluate", "metric"), "preference needs pairs of a chosen and a rejected answer"
    if recipe.evaluate.metric in ("exact", "contains", "overlap") and not sft:
        yield ("evaluate", "metric"), f"{recipe.evaluate.metric} compares answers: only for sft"
    if recipe.export.max_kld is not None and not recipe.export.types:
        yield ("export", "max_kld"), "no type is quantized, so nothing is measured"
