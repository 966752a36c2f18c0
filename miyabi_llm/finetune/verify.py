"""The verb `finetune verify`: is the run still what its card says, and does the gate find what it is there to find?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miyabi_llm.errors import Corrupt, ModelMissing, ServerFailed
from miyabi_llm.finetune import evaluate, export, parity_stage, plant, tools
from miyabi_llm.finetune.context import RunContext
from miyabi_llm.finetune.parity import TOKENS, Expected
from miyabi_llm.finetune.parity_stage import Asked
from miyabi_llm.quantize.gates import failed
from miyabi_llm.refs import ModelRef
from miyabi_llm.types import Event, Finding

SAID = "parity: "  # findings of what the server says; others are of the header


@dataclass(frozen=True, slots=True)
class Planted:
    """One planted fault: what it was, and what found it (empty: nothing did); None where this model cannot have it."""

    fault: str
    failure: int
    words: str
    found: str | None


@dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at again. `planted` is empty without a self-test."""

    name: str
    findings: tuple[Finding, ...]
    planted: tuple[Planted, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all of it holds, and every planted fault was found."""
        return not failed(self.findings) and all(p.found != "" for p in self.planted)


def verify(ctx: RunContext, *, self_test: bool = False) -> Verified:
    """Hash every file again, hold it against the card, and ask the served files again; with `self_test` plant faults.

    Raises Corrupt when there is no card, ServerFailed, BackendMissing.
    """
    body = card(ctx.run.card)
    found = [*hashes(ctx, body), *published(ctx, body)]
    if not failed(found) and ctx.recipe.gates.parity:
        found += parity_again(ctx)
    planted = tuple(try_faults(ctx)) if self_test and not failed(found) else ()
    return Verified(ctx.run.name, tuple(found), planted)


def card(path: Path) -> dict[str, Any]:
    """The card of a run. Raises Corrupt."""
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if body["version"] == 1 and isinstance(body["stages"], dict):
            return body
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise Corrupt(f"{path} is no card", hint="`miyabi-llm finetune resume` finishes a run and writes its card.")


def hashes(ctx: RunContext, body: Mapping[str, Any]) -> Iterator[Finding]:
    """Recipe, base, data and every file of every stage against the hashes in the card."""
    wrong = False
    if ctx.loaded.sha256 != body["recipe"]["resolved_sha256"]:
        yield Finding("recipe", "fail", "the run's recipe is not the card's")
    for name, told in body["base"]["tokenizer"].items():
        path = ctx.base.folder / name
        if not path.is_file() or export.sha256(path) != told:
            yield Finding("base", "fail", f"{name} of the base is not the one that was trained with")
    count = 0
    for stage, done in body["stages"].items():
        for name, told in done["outputs"].items():
            path = ctx.run.root / name
            ctx.on_event(Event("phase", "verify", name))
            count += 1
            if not path.is_file():
                wrong = True
                yield Finding(stage, "fail", f"{name} is gone")
            elif export.sha256(path) != told:
                wrong = True
                yield Finding(stage, "fail", f"{name} changed since {stage} made it")
    if not wrong:
        yield Finding("files", "ok", f"{count} files are what the card says")


def published(ctx: RunContext, body: Mapping[str, Any]) -> Iterator[Finding]:
    """The names in the store still mean these bytes."""
    told = body["stages"].get("publish", {}).get("figures", {}).get("published", {})
    for kind, one in told.items():
        try:
            here = ctx.store.find(ModelRef.parse(one["ref"]))
        except ModelMissing:
            yield Finding("store", "warn", f"{one['ref']} is not in the store any more")
            continue
        same = [f.sha256 for f in here.files] == [one["sha256"]]
        words = f"{one['ref']} is the {kind} file" if same else f"{one['ref']} is another file now"
        yield Finding("store", "ok" if same else "fail", words)


def _asked(ctx: RunContext) -> tuple[dict[str, Any], Expected]:
    told: dict[str, Any] = json.loads(evaluate.proof(ctx, evaluate.PROBES).read_text(encoding="utf-8"))
    return told, parity_stage.expected(ctx, told)


def parity_again(ctx: RunContext) -> Iterator[Finding]:
    """Every finished file in the real server again, against what the trainer said."""
    told, want = _asked(ctx)
    for kind, path in export.finished(ctx).items():
        ctx.on_event(Event("phase", "verify", f"{kind} in llama-server"))
        asked = Asked(told, want, tools.kitchen(ctx), evaluate.template(ctx), evaluate.context(ctx, TOKENS))
        table = parity_stage.look(kind, path, asked, ctx.on_event)
        yield from (Finding(f"{kind}: {f.name}", f.level, f.message) for f in failed(table.findings))
        if table.passed:
            words = f"{len(table.probes)} probes; worst {table.delta:.3g} nats, mean divergence {table.kl:.1e}"
            yield Finding(f"{kind}: parity", "ok", words)


def try_faults(ctx: RunContext) -> Iterator[Planted]:
    """Each fault planted in a copy of the smallest finished file, and what of the gate found it."""
    told, want = _asked(ctx)
    kind, path = min(export.finished(ctx).items(), key=lambda item: item[1].stat().st_size)
    target = ctx.run.work / "planted.gguf"
    for fault in plant.FAULTS:
        ctx.on_event(Event("phase", "self-test", fault.words))
        try:
            if not plant.plant(path, target, fault):
                yield Planted(fault.name, fault.failure, fault.words, None)
                continue
            asked = Asked(told, want, tools.kitchen(ctx), evaluate.template(ctx), evaluate.context(ctx, TOKENS))
            wrong = failed(parity_stage.look(kind, target, asked, ctx.on_event, whole=True).findings)
            header = next((f"header, {f.name}: {f.message}" for f in wrong if not f.name.startswith(SAID)), "")
            answer = next(
                (f"server, {f.name.removeprefix(SAID)}: {f.message}" for f in wrong if f.name.startswith(SAID)), ""
            )
            yield Planted(fault.name, fault.failure, fault.words, "; ".join(t for t in (header, answer) if t))
        except ServerFailed as e:  # a file that no server takes is found too
            yield Planted(fault.name, fault.failure, fault.words, f"server: {e.message}")
        finally:
            target.unlink(missing_ok=True)
