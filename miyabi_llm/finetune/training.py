"""The stage `train`: the order for the engine's child, the checkpoint to go on from, and what came out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miyabi_llm.engines import checkpoints, environment
from miyabi_llm.errors import MachineLimit
from miyabi_llm.finetune import estimate as estimating
from miyabi_llm.finetune import speed
from miyabi_llm.finetune.context import RunContext, StageResult, digest, listed, made_by, section
from miyabi_llm.finetune.recipe import Recipe
from miyabi_llm.hardware import Hardware
from miyabi_llm.types import Event

# By one key of the recipe. TensorBoard's writer is part of the environment; the others are brought when asked for.
EXTRAS: Mapping[str, tuple[str, ...]] = {"trackio": ("trackio==0.43.0",), "wandb": ("wandb==0.31.0",)}
DEEPSPEED = ("deepspeed==0.19.8",)  # for zero2 and zero3 only; not run where this was built


def inputs(ctx: RunContext) -> Mapping[str, str]:
    """Base, rows, and the sections that decide what is trained."""
    return {
        "base": ctx.base.sha256,
        "recipe": section(ctx, "lora", "train"),
        "max_length": str(ctx.recipe.data.max_length),
        "precision": ctx.precision,
        "engine": ctx.engine.name,
        **made_by(ctx, "data"),
    }


def run(ctx: RunContext) -> StageResult:
    """Train, from the newest whole checkpoint of this very run if there is one."""
    identity = digest(dict(inputs(ctx)))
    resume = _resume(ctx, identity)
    told = dict(ctx.job("train", order(ctx, identity, resume), **launch(ctx)))
    curve = _curve(ctx, told.pop("curve"), resumed=resume is not None)
    figures = {k: v for k, v in told.items() if k != "files"} | {
        "curve": curve,
        "resumed_from": resume.name if resume else None,
        "files": told["files"],
        "estimate": _held_against(ctx, told),
    }
    return StageResult(figures, listed(ctx.run.adapter))


def _held_against(ctx: RunContext, told: Mapping[str, Any]) -> dict[str, Any]:
    """How good the estimate was: measured by estimated. What was reached is kept for the next estimate."""
    form = estimating.shape(json.loads((ctx.base.folder / "config.json").read_text(encoding="utf-8")))
    if told["tokens"] and told["seconds"] > 1:
        way = speed.way(ctx.recipe.lora.method, ctx.precision, form.parameters)
        reached = estimating.work(form, ctx.recipe, int(told["tokens"])) / told["seconds"]
        speed.learn(ctx.machine, way, reached, ctx.settings)
    before = ctx.record.figures("check").get("estimate")
    if not before:
        return {}
    found = {"memory": round(told["memory"] / before["memory_total"], 2)}
    done = told["steps"] - told.get("first_step", 0)
    if before["seconds"] and done:
        found["time"] = round(told["seconds"] / (before["seconds"] * done / before["steps"]), 2)
    said = ", ".join(f"{name} {ratio:g} of what was estimated" for name, ratio in found.items())
    ctx.on_event(Event("log", "estimate", said, data=found))
    return found


def order(ctx: RunContext, identity: str, resume: Path | None) -> dict[str, Any]:
    """What the child `train` is told. Everything of the sections `lora` and `train` goes along."""
    resolved = ctx.loaded.resolved()
    run = ctx.run
    body = {
        "engine": ctx.engine.name,
        "base": str(ctx.base.folder),
        "name": ctx.base.label,
        "rows": str(run.train_rows),
        "eval_rows": str(run.eval_rows) if run.eval_rows.is_file() and run.eval_rows.stat().st_size else None,
        "max_length": resolved["data"]["max_length"],
        "precision": ctx.precision,
        "processes": resolved["train"]["launch"]["processes"] * resolved["train"]["launch"]["nodes"],
        "lora": resolved["lora"],
        "train": resolved["train"],
        "checkpoints": str(run.checkpoints),
        "adapter": str(run.adapter),
        "resume": str(resume) if resume else None,
        "identity": identity,
    }
    return body | more_packages(ctx)


def more_packages(ctx: RunContext) -> dict[str, Any]:
    """A folder with the packages that few recipes ask for, brought if it is not here. Raises Missing, NetworkError."""
    name: str = ctx.recipe.train.tracker
    words = EXTRAS.get(name, ())
    if ctx.recipe.train.launch.strategy in ("zero2", "zero3"):
        name, words = f"{name}-deepspeed", (*words, *DEEPSPEED)
    if not words:
        return {}
    env = ctx.engine.install(ctx.settings, ctx.on_event)
    return {"extra": str(environment.extra(name, words, env, ctx.settings, ctx.on_event))}


def launch(ctx: RunContext) -> dict[str, Any]:
    """How the child is started: processes and their strategy, and the variables of a tracker."""
    wanted = ctx.recipe.train.launch
    variables = {}
    if ctx.recipe.train.tracker == "wandb":
        variables = {k: v for k, v in ctx.settings.env.items() if k.startswith("WANDB_")}
        variables |= {"WANDB_MODE": "offline"} if ctx.settings.offline else {}
        variables |= {"WANDB_DIR": str(ctx.run.work)}
    if ctx.recipe.train.tracker == "tensorboard":
        variables = {"TENSORBOARD_LOGGING_DIR": str(ctx.run.root / "tensorboard")}
    if ctx.recipe.train.tracker == "trackio":
        variables = {"TRACKIO_DIR": str(ctx.run.root / "trackio")}
    more: dict[str, Any] = {"env": variables} if variables else {}
    if (why := cannot_share(ctx.recipe, ctx.machine)) is not None:
        raise MachineLimit(why, hint="Set train.launch.strategy: ddp, which copies the model to each process.")
    if wanted.processes * wanted.nodes > 1:
        address, _, port = (wanted.address or "").rpartition(":")
        more["processes"] = wanted.processes
        more["launch"] = {
            "strategy": wanted.strategy if wanted.strategy != "none" else "ddp",
            "cpu": not ctx.machine.gpus,
            "precision": ctx.precision,
            "machines": wanted.nodes,
            "rank": wanted.node,
            "address": address,
            "port": int(port) if port.isdigit() else None,
        }
    return more


def cannot_share(recipe: Recipe, machine: Hardware) -> str | None:
    """Why the recipe's strategy cannot be used on this machine; None when it can. Pure.

    accelerate 1.15 shares a model out among cards only: told fsdp on a CPU it copies the model and says nothing.
    """
    launch = recipe.train.launch
    if launch.processes * launch.nodes > 1 and launch.strategy in ("fsdp", "zero2", "zero3") and not machine.gpus:
        return f"train.launch.strategy {launch.strategy} shares a model out among cards, and there is none here"
    return None


def _resume(ctx: RunContext, identity: str) -> Path | None:
    """The newest whole checkpoint that this very training made; damaged ones are named and passed over."""
    found, skipped = checkpoints.newest(ctx.run.checkpoints)
    for bad in skipped:
        ctx.on_event(Event("warning", bad.folder.name, f"passed over: {bad.why}"))
    while found is not None and checkpoints.manifest(found).get("identity") != identity:
        ctx.on_event(Event("warning", found.name, "passed over: it is of another training"))
        older = [p for step, p in checkpoints.steps(ctx.run.checkpoints) if step < int(found.name.split("-")[1])]
        found = next((p for p in older if not checkpoints.wrong(p)), None)
    if found is not None:
        ctx.on_event(Event("phase", "resume", found.name))
    return found


def _curve(ctx: RunContext, new: list[dict[str, Any]], *, resumed: bool) -> list[dict[str, Any]]:
    """The curve of the whole training: what earlier attempts told, as far as this one did not do it again."""
    if not resumed or not new:
        return new
    from miyabi_llm.finetune.rundir import heard

    known = {
        e["data"]["step"]: e["data"]
        for e in heard(ctx.run, 1 << 26)
        if e["kind"] == "progress" and e["name"] == "train" and "loss" in e.get("data", {})
    }
    first = new[0]["step"]
    return [known[step] for step in sorted(known) if step < first] + new
