"""The stage `parity`: every finished file in the real llama-server beside what the trainer said."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from miyabi_llm.errors import GateFailed
from miyabi_llm.finetune import evaluate, export, parity, tools
from miyabi_llm.finetune.context import RunContext, StageResult, made_by
from miyabi_llm.finetune.parity import Expected, Parity
from miyabi_llm.finetune.rundir import write_json
from miyabi_llm.finetune.server import serving
from miyabi_llm.quantize import original
from miyabi_llm.quantize.gates import failed
from miyabi_llm.tools.moment import Kitchen
from miyabi_llm.types import Event, OnEvent, plain, silent

TABLE = "parity.json"


def inputs(ctx: RunContext) -> Mapping[str, str]:
    """The finished files, and what the trainer said."""
    return {**made_by(ctx, "gguf", "quantize", "evaluate-adapter", "merge"), "gate": str(ctx.recipe.gates.parity)}


def left_out(ctx: RunContext) -> str:
    """Why there is no gate."""
    return "" if ctx.recipe.gates.parity else "gates.parity is false"


def run(ctx: RunContext) -> StageResult:
    """The table of every file. It is written down before it is judged. Raises GateFailed."""
    told = json.loads(evaluate.proof(ctx, evaluate.PROBES).read_text(encoding="utf-8"))
    files = {export.FULL: export.full_file(ctx)} | export.finished(ctx)
    want = expected(ctx, told)
    tables = {}
    for kind, path in files.items():
        ctx.on_event(Event("phase", "parity", f"{kind} in llama-server"))
        asked = Asked(told, want, tools.kitchen(ctx), evaluate.template(ctx), evaluate.context(ctx, parity.TOKENS))
        tables[kind] = look(kind, path, asked, ctx.on_event)
    place = evaluate.proof(ctx, TABLE)
    write_json(place, {kind: plain(asdict(table)) for kind, table in tables.items()})
    refuse(tables, place)
    words = "; ".join(f"{kind} at most {t.delta:.2g} nats off, mean {t.kl:.1e}" for kind, t in tables.items())
    return StageResult({"told": words, "tables": {kind: figures(t) for kind, t in tables.items()}}, (place,))


def expected(ctx: RunContext, told: Mapping[str, Any]) -> Expected:
    """What every header must say."""
    folder = {p.name: p for p in ctx.run.merged.iterdir()}
    keys = parity.header_of(export.full_file(ctx)).kv
    return Expected(original.read_promise(folder), told["template"], keys)


class Asked:
    """What is asked, and with what: the trainer's words, what headers must say, a kitchen, the template's words."""

    __slots__ = ("ctx", "kitchen", "told", "want", "words")

    def __init__(
        self, told: Mapping[str, Any], want: Expected, kitchen: Kitchen, words: Mapping[str, Any], ctx: int
    ) -> None:
        self.told, self.want, self.kitchen, self.words, self.ctx = told, want, kitchen, words, ctx


def look(kind: str, path: Path, asked: Asked, on_event: OnEvent = silent, *, whole: bool = False) -> Parity:
    """The table of one file. A header that is wrong is told without a server, but for a `whole` look.

    Raises ServerFailed, Corrupt.
    """
    started = time.monotonic()
    trainer = parity.trainer(asked.told)
    static = parity.static(parity.header_of(path), asked.want)
    if failed(static) and not whole:
        table = parity.judge(kind, {}, {}, static)
        return replace(table, seconds=round(time.monotonic() - started, 2))
    with serving(path, asked.kitchen, asked.ctx, asked.words) as one:
        got = parity.server(one, asked.told["asked"], trainer, on_event)
        begin = one.moment.begin()
    table = parity.judge(kind, trainer, got, static, begin, str(asked.told.get("arithmetic", "float32")))
    return replace(table, seconds=round(time.monotonic() - started, 2))


def refuse(tables: Mapping[str, Parity], place: Path) -> None:
    """Raise GateFailed for the first file that is not the trained model."""
    wrong = {kind: failed(t.findings) for kind, t in tables.items() if not t.passed}
    if not wrong:
        return
    kind, findings = next(iter(wrong.items()))
    more = sum(map(len, wrong.values())) - 1
    raise GateFailed(
        f"{kind} is not the model that was trained: {findings[0].name.removeprefix('parity: ')}: {findings[0].message}"
        + (f" (and {more} more)" if more else ""),
        hint=f"Nothing was published. The whole table is in {place}.",
        gates=plain({k: list(v) for k, v in wrong.items()}),
    )  # fmt: skip


def figures(table: Parity) -> dict[str, Any]:
    """The numbers of a table that the card keeps."""
    return {
        "probes": len(table.probes), "places": table.places, "delta": table.delta, "kl": table.kl, "top": table.top,
        "limits": asdict(table.limits), "warnings": [f.message for f in table.findings if f.level == "warn"],
        "seconds": table.seconds,
    }  # fmt: skip
