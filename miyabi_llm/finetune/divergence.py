"""How far quantized files of a tune are from the one in 16 bits, on its held-out rows: the limit `export.max_kld`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from miyabi_llm.errors import BadUsage, GateFailed
from miyabi_llm.finetune import tools
from miyabi_llm.finetune.context import RunContext
from miyabi_llm.quantize import Order, Source, quality
from miyabi_llm.quantize import run as quantizing
from miyabi_llm.quantize.run import Shop
from miyabi_llm.quantize.values import Quality
from miyabi_llm.tools.quantizing import Window
from miyabi_llm.types import Event

CHUNKS = 16  # windows of 256 tokens at most


def measured(ctx: RunContext, source: Source, files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """The loss of each file, by type. Raises GateFailed for one beyond the limit by the upper end of its interval.

    Rows that fill no two windows are too few: then the text that `quantize` ships is read, with a warning.
    """
    shop = Shop(ctx.store, ctx.settings, tools.programs(tools.needed(ctx), ctx.settings))
    order = Order(tuple(files), max_kld=ctx.recipe.export.max_kld, window=Window(chunks=CHUNKS))
    rows = replace(order, text=_text(ctx))
    try:
        found = quantizing.divergences(source, files, rows, shop, ctx.on_event)
    except BadUsage as e:
        ctx.on_event(Event("warning", "quantize", f"measured on a text of ours, not on the held-out rows: {e.message}"))
        found = quantizing.divergences(source, files, order, shop, ctx.on_event)
    limits = quality.limits(order)
    for kind, loss in found.items():
        if why := quality.failures(loss, limits):
            raise GateFailed(
                f"max_kld: {kind}: {'; '.join(why)}",
                hint="Nothing was published. Take a larger type in export.types, or a larger export.max_kld.",
                type=kind, losses={k: _told(v) for k, v in found.items()},
            )  # fmt: skip
    return {kind: _told(loss) for kind, loss in found.items()}


def _told(q: Quality) -> dict[str, Any]:
    """What the card keeps of a loss."""
    return {
        "kld": q.kld, "low": q.low, "high": q.high, "p999": q.p999, "same_top": q.same_top, "tokens": q.tokens,
        "against": q.against,
    }  # fmt: skip


def _text(ctx: RunContext) -> Path:
    """The held-out rows as `quantize --eval` reads them: conversations, or plain text where the rows are text."""
    rows = [json.loads(line) for line in ctx.run.eval_rows.read_text(encoding="utf-8").splitlines() if line.strip()]
    chat = all(isinstance(row["prompt"], list) for row in rows)
    ctx.run.work.mkdir(parents=True, exist_ok=True)
    place = ctx.run.work / f"held-out.{'jsonl' if chat else 'txt'}"
    place.write_text("\n".join(_lines(rows, chat=chat)), encoding="utf-8")
    return place


def _lines(rows: list[dict[str, Any]], *, chat: bool) -> Iterator[str]:
    for row in rows:
        answer = row.get("completion") or row.get("chosen") or []
        if chat:
            yield json.dumps({"messages": [*row["prompt"], *answer]}, ensure_ascii=False)
        else:
            yield f"{row['prompt']}{answer}"
