"""The stage `report`: one page that loads nothing. Curves, before and after, answers side by side, parity, the card."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from miyabi_llm import plots
from miyabi_llm.finetune import charts, evaluate, parity_stage
from miyabi_llm.finetune.context import RunContext, StageResult
from miyabi_llm.finetune.measures import UNITS
from miyabi_llm.finetune.rundir import write_text
from miyabi_llm.finetune.verify import card
from miyabi_llm.types import Event

MOST = 600  # letters of an answer that are shown
MIB = 1 << 20
_BREAKS = re.compile(r"\n{3,}")


def inputs(ctx: RunContext) -> Mapping[str, str]:
    """The card."""
    return {"card": str(ctx.run.card)}


def run(ctx: RunContext) -> StageResult:
    """Write the page. Raises Missing without the library that draws."""
    write_text(ctx.run.report, page(ctx))
    ctx.on_event(Event("done", "report", str(ctx.run.report)))
    return StageResult({"told": str(ctx.run.report)}, (ctx.run.report,))


def page(ctx: RunContext) -> str:
    """The whole report."""
    body = card(ctx.run.card)
    figures = {name: s["figures"] for name, s in body["stages"].items()}
    parts = [f"<p>{html.escape(sentence(ctx, figures))}</p>", *_notes(figures)]
    if (drawn := charts.stages(_values(figures), _title(ctx))) is not None:
        parts += ["<h2>Before and after</h2>", f"<figure>{plots.svg(drawn)}</figure>"]
    parts += [_stage_table(figures), f"<p>{html.escape(_explained(ctx))}</p>"]
    parts += _gates(figures)
    told = ctx.record.figures("train")
    if (line := charts.curve(told.get("curve", ()), told.get("evals", ()))) is not None:
        parts += ["<h2>Training</h2>", f"<figure>{plots.svg(line)}</figure>"]
    parts += _answers(ctx)
    parts += _parity(ctx)
    parts += _merge(figures)
    parts += ["<h2>How it was made</h2>", f"<dl>{''.join(_facts(body))}</dl>"]
    return plots.page(f"{ctx.loaded.name}: fine-tuned from {ctx.base.label}", parts)


STAGES = ("Stage", "Metric", "95% interval", "Gain", "95% interval", "Forgot", "95% interval", "")


def _values(figures: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, told["metric"]) for name, told in measured(figures)]


def measured(figures: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each model that was measured, in the order of the road."""
    for name in ("base", "adapter", "merged"):
        if told := figures.get(f"evaluate-{name}"):
            yield name, told
    for kind, told in figures.get("evaluate-gguf", {}).get("stages", {}).items():
        yield f"{kind} in llama-server", told


def _stage_table(figures: Mapping[str, Any]) -> str:
    """The table; without the columns that nothing is known for."""
    rows = list(_stage_rows(figures))
    kept = [i for i in range(len(STAGES)) if i == 0 or any(row[i] for row in rows)]
    return plots.table([STAGES[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _stage_rows(figures: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, told in measured(figures):
        yield (name, *_two(told["metric"]), *_two(told["gain"]), *_two(told["forgot"]),
               f"{told['metric']['rows']} rows")  # fmt: skip


def _two(told: Mapping[str, Any] | None) -> tuple[str, str]:
    if told is None:
        return "", ""
    return f"{told['value']:.4f}", f"{told['low']:.4f} to {told['high']:.4f}"


def _title(ctx: RunContext) -> str:
    metric = ctx.recipe.evaluate.metric
    way = "lower is better" if metric == "loss" else "higher is better"
    return f"{metric} in {UNITS[metric]}, with 95% interval; {way}"


def sentence(ctx: RunContext, figures: Mapping[str, Any]) -> str:
    """What came out, in one sentence."""
    found = list(measured(figures))
    if not found or found[-1][1]["gain"] is None:
        return "Nothing was measured after the training."
    name, told = found[-1]
    gain, metric = told["gain"], ctx.recipe.evaluate.metric
    sure = "outside" if gain["low"] > 0 or gain["high"] < 0 else "inside"
    return (
        f"{name}: {metric} {told['metric']['value']:.4f} ({UNITS[metric]}), "
        f"the base {found[0][1]['metric']['value']:.4f}; "
        f"gain {gain['value']:.4f} (95% interval {gain['low']:.4f} to {gain['high']:.4f}), zero lies {sure} of it."
    )


def _explained(ctx: RunContext) -> str:
    return (
        f"Metric: {ctx.recipe.evaluate.metric} in {UNITS[ctx.recipe.evaluate.metric]}, on held-out rows. Gain: how "
        "much better than the base on the same rows, above 0 is better; the interval is a paired bootstrap over rows. "
        "Forgot: by how many nats per token the loss on the forgetting set rose. base, adapter and merged were "
        "measured in the trainer's libraries, the files in the real llama-server."
    )


def _notes(figures: Mapping[str, Any]) -> list[str]:
    lines = [*figures.get("data", {}).get("warnings", ())]
    for told in figures.get("parity", {}).get("tables", {}).values():
        lines += told["warnings"]
    return [f'<p class="note">{html.escape(text)}</p>' for text in dict.fromkeys(lines)]


def _gates(figures: Mapping[str, Any]) -> list[str]:
    rows = [
        (v["gate"], v["stage"], f"{v['found']['value']:.4f}", f"{v['found']['low']:.4f} to {v['found']['high']:.4f}",
         f"{v['limit']:g}", v["outcome"])
        for v in figures.get("gates", {}).get("verdicts", ())
    ]  # fmt: skip
    header = ("Gate", "File", "Found", "95% interval", "Limit", "Outcome")
    return ["<h2>Gates</h2>", plots.table(header, rows)] if rows else []


def _answers(ctx: RunContext) -> list[str]:
    """The first held-out prompts, what was wanted, and what each stage wrote."""
    rows = {r["id"]: r for r in evaluate.read_rows(evaluate.proof(ctx, "rows.jsonl"))}
    sides = {
        name: {a["id"]: a for a in json.loads(place.read_text(encoding="utf-8"))["answers"]}
        for name in evaluate.names(ctx)
        if (place := evaluate.proof(ctx, f"{name}.json")).is_file()
    }
    if not sides:
        return []
    ids = list(next(iter(sides.values())))[: evaluate.SHOWN]
    parts = ["<h2>Answers side by side</h2>"]
    for key in ids:
        said = rows[key]["prompt"]
        prompt = said if isinstance(said, str) else "\n".join(f"{m['role']}: {m.get('content', '')}" for m in said)
        lines = [("prompt", prompt, ""), ("wanted", next(iter(sides.values()))[key]["want"], "")]
        lines += [(name, told[key]["text"], told[key]["stop"]) for name, told in sides.items() if key in told]
        parts.append(_side_by_side(lines))
    return parts if ids else []


def _side_by_side(lines: Sequence[tuple[str, str, str]]) -> str:
    cells = []
    for name, text, stop in lines:
        told = _BREAKS.sub(lambda m: f"\n[{len(m[0])} line breaks]\n", text).strip("\n")
        shown = html.escape(told[:MOST] + (" ..." if len(told) > MOST else "")) or "<i>nothing</i>"
        ended = {"eos": "ended by itself", "limit": "cut at the limit", "": ""}[stop]
        cells.append(f"<tr><td>{html.escape(name)}</td><td class='text'>{shown}</td><td>{ended}</td></tr>")
    return f'<div class="wide"><table class="texts">{"".join(cells)}</table></div>'


def _parity(ctx: RunContext) -> list[str]:
    place = evaluate.proof(ctx, parity_stage.TABLE)
    if not place.is_file():
        return []
    tables = json.loads(place.read_text(encoding="utf-8"))
    header = ("File", "Probes", "Prompt", "Tokens", "Places", "Same first token", "Worst", "allowed", "Mean divergence",
              "allowed", "End")  # fmt: skip
    rows = [_parity_row(kind, told) for kind, told in tables.items()]
    words = (
        "Trainer and llama-server on the same prompts. Worst: the largest difference of the log-probability of a "
        "likely token, in nats. Divergence: over the 20 likeliest tokens. End: probes whose answer ends for the same "
        "reason."
    )
    return ["<h2>Is the served model the trained one?</h2>", plots.table(header, rows), f"<p>{words}</p>"]


def _parity_row(kind: str, told: Mapping[str, Any]) -> tuple[str, ...]:
    probes, limits = told["probes"], told["limits"]
    answered = [p for p in probes if p["answered"]]
    return (
        kind, str(len(probes)), f"{sum(p['prompt'] for p in probes)} same",
        f"{sum(p['tokens'] > 0 for p in probes)} same",
        str(told["places"]), f"{told['top']:.1%}", f"{told['delta']:.2e}", f"{limits['delta']:g}", f"{told['kl']:.1e}",
        f"{limits['kl']:g}", f"{sum(p['stop'][0] == p['stop'][1] for p in answered)} of {len(answered)}",
    )  # fmt: skip


def _merge(figures: Mapping[str, Any]) -> list[str]:
    told = figures.get("merge")
    if not told:
        return []
    rows = [(kind, f"{m['kld']:.2e}", f"{m['same_top']:.1%}", "taken" if kind == told["base"] else "")
            for kind, m in told["tried"].items()]  # fmt: skip
    rows.append(("as written, read again", f"{told['kld']:.2e}", f"{told['same_top']:.1%}", told["dtype"]))
    words = f"Against the trained model with its adapter beside it, at {told['positions']} places of held-out answers."
    header = ("Merged into the base", "KL divergence in nats", "Same first token", "")
    return ["<h2>Merging</h2>", plots.table(header, rows), f"<p>{words}</p>"]


def _facts(body: Mapping[str, Any]) -> Iterator[str]:
    versions = body["engine"]["versions"]
    shown = ("torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth")
    told = body["stages"].get("publish", {}).get("figures", {}).get("published", {})
    facts = {
        "Base": f"{body['base']['label']}, sha256 {body['base']['sha256']}",
        "Chat template": f"sha256 {body['base']['template_sha256']}",
        "Recipe": f"sha256 {body['recipe']['sha256']}; "
        + (", ".join(body["recipe"]["overrides"]) or "nothing set besides"),
        "Data": "; ".join(f"{n}: {d['rows']} rows, sha256 {d['sha256']}" for n, d in body["data"].items()
                          if isinstance(d, Mapping)),
        "Seeds": ", ".join(f"{k} {v}" for k, v in body["seeds"].items()),
        "Engine": f"{body['engine']['name']}, {body['engine']['precision']}; "
        + ", ".join(f"{n} {versions[n]}" for n in shown if n in versions),
        "Made by": f"{body['made_by']}, {body['machine']['system']}, Python {body['machine']['python']}",
        "Published": "; ".join(f"{t['ref']}: {t['size'] / MIB:.1f} MiB, sha256 {t['sha256']}" for t in told.values()),
        "Time": ", ".join(f"{n} {s['seconds']:.0f} s" for n, s in body["stages"].items() if s["seconds"]),
    }  # fmt: skip
    for name, text in facts.items():
        if text:
            yield f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>"
