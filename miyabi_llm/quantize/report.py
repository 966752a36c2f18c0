"""A quantization as a picture and a page: size against loss, and everything the card says; pure but for the drawing."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

from miyabi_llm import plots
from miyabi_llm.quantize.card import FULL
from miyabi_llm.quantize.values import Made, Measured

MIB = 1 << 20
LEAST = 1e-4  # nats: the logarithmic axis ends here, and with it intervals that reach to zero or below
COLUMNS = (
    "Type", "Size", "Saved", "Bits", "Mean KLD", "95% interval", "99.9% KLD", "Same top", "PPL ratio", "Tokens/s", "",
)  # fmt: skip


def rows(made: Made) -> list[tuple[str, ...]]:
    """A line of texts for each measured file, as COLUMNS. Pure."""
    return [_row(made, m) for m in made.measured]


def _row(made: Made, m: Measured) -> tuple[str, ...]:
    q, planned = m.quality, next((p for p in made.plan.types if p.type == m.type), None)
    return (
        m.type,
        f"{m.size / MIB:.1f} MiB",
        f"{100 * (1 - m.size / made.plan.source_size):.1f}%",
        f"{planned.bits:.2f}" if planned else "",
        f"{q.kld:.6f}",
        f"{q.low:.6f} to {q.high:.6f}",
        f"{q.p999:.4f}" if q.p999 is not None else "",
        f"{q.same_top:.1f}%",
        f"{q.ppl_ratio:.4f}" if q.ppl_ratio is not None else "",
        f"{m.speed.speed:.1f}" if m.speed else "",
        ", ".join(_marks(made, m)),
    )


def _marks(made: Made, m: Measured) -> Iterator[str]:
    if m.type == made.chosen.type:
        yield "chosen"
    if m.best:
        yield "front"
    if m.quality.stopped:
        yield "given up"
    elif m.passed is False:
        yield "too much"


def picture(made: Made) -> dict[str, Any]:
    """The size-quality plot as a Vega-Lite description: intervals, the front, the gate. Pure."""
    values = [_point(made, m) for m in made.measured]
    x = {"field": "size", "type": "quantitative", "title": "Size in MiB", "scale": {"zero": False, "padding": 30}}
    title = "Mean KL divergence in nats, with 95% interval"
    y = {
        "field": "kld",
        "type": "quantitative",
        "title": title,
        "scale": {"type": "log", "nice": False, "padding": 20},
        "axis": {"gridOpacity": 0.4, "tickCount": 4, "format": "~g"},
    }
    colours = {"domain": ["chosen", "front", "measured", "refused"], "range": ["#1b7f5c", "#3366aa", "#888", "#c4472b"]}
    colour = {"field": "state", "type": "nominal", "title": None, "scale": colours}
    front = {"filter": "datum.front"}
    layers: list[dict[str, Any]] = [
        {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": {"x": x, "y": {**y, "field": "low"},
         "y2": {"field": "high"}, "color": colour}},
        {"transform": [front], "mark": {"type": "line", "strokeDash": [4, 3], "color": "#3366aa", "opacity": 0.6},
         "encoding": {"x": x, "y": y, "order": {"field": "size"}}},
        {"mark": {"type": "point", "filled": True, "size": 90, "opacity": 1}, "encoding": {"x": x, "y": y,
         "color": colour}},
        {"mark": {"type": "text", "align": "left", "dx": 9, "dy": -4, "fontSize": 12},
         "encoding": {"x": x, "y": y, "text": {"field": "type"}}},
    ]  # fmt: skip
    if (limit := made.limits.kld) is not None:
        gate = [{"kld": limit, "text": f"gate: {limit:g}"}]
        rule = {"type": "rule", "color": "#c4472b", "strokeDash": [2, 2]}
        layers.append({"data": {"values": gate}, "mark": rule, "encoding": {"y": y}})
        words = {"type": "text", "align": "left", "dx": 4, "dy": -6, "color": "#c4472b"}
        encoding = {"y": y, "x": {"value": 0}, "text": {"field": "text"}}
        layers.append({"data": {"values": gate}, "mark": words, "encoding": encoding})
    lines = [f"against {made.quality.against}; {made.quality.tokens} tokens of the text counted"]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": 620,
        "height": 360,
        "background": "white",
        "title": {"text": f"{_source(made)}: size and loss", "subtitle": lines, "anchor": "start"},
        "data": {"values": values},
        "layer": layers,
        "config": {"font": "sans-serif", "legend": {"orient": "top"}},
    }


def _point(made: Made, m: Measured) -> dict[str, Any]:
    q, chosen = m.quality, m.type == made.chosen.type
    state = "chosen" if chosen else "refused" if m.passed is False or q.stopped else "front" if m.best else "measured"
    return {
        "type": m.type,
        "size": m.size / MIB,
        "kld": max(q.kld, LEAST),
        "low": max(q.low, LEAST),
        "high": max(q.high, LEAST),
        "front": m.best,
        "state": state,
    }


def page(made: Made) -> str:
    """The whole report: one file that loads nothing. Raises Missing without the library that draws."""
    picked = next((i for i, m in enumerate(made.measured) if m.type == made.chosen.type), None)
    parts = [f"<p>{html.escape(_sentence(made))}</p>", *(_note(text) for text in _warnings(made))]
    parts.append(f"<figure>{plots.svg(picture(made))}</figure>")
    parts += ["<h2>What was measured</h2>", plots.table(COLUMNS, rows(made), picked)]
    parts.append(
        "<p>Front: no other measured file is smaller and loses less. The interval is of the mean, over the "
        "tokens of this text; another text loses otherwise.</p>"
    )
    parts += ["<h2>What the file holds</h2>", plots.table(("Tensor", "Type", "Layers"), _tensors(made))]
    parts += ["<h2>How it was made</h2>", f"<dl>{''.join(_facts(made))}</dl>"]
    return plots.page(f"{made.artifact.ref}", parts)


def _source(made: Made) -> str:
    """The source's name as the card says it: of a path only the file's own name, for a report travels."""
    return str(made.card["base"]["ref"]).removeprefix("file:")


def _sentence(made: Made) -> str:
    q = made.quality
    size = f"{made.artifact.size / MIB:.1f} MiB, {100 * (1 - made.artifact.size / made.plan.source_size):.1f}% smaller"
    loss = f"mean KL divergence {q.kld:.6f} nats (95% interval {q.low:.6f} to {q.high:.6f})"
    return f"{made.chosen.type} of {_source(made)}: {size}; {loss} against {q.against}."


def _warnings(made: Made) -> Sequence[str]:
    if made.quality.against == FULL:
        return made.notes
    return (f"The source is no original: {made.plan.provenance.evidence}.", *made.notes)


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def _tensors(made: Made) -> list[tuple[str, ...]]:
    types = made.card.get("tensor_types", {})
    return [(name, kind, layers) for name, kinds in types.items() for kind, layers in kinds.items()]


def _facts(made: Made) -> Iterator[str]:
    card, q = made.card, made.quality
    memory = f"{made.chosen.needed / MIB:.0f} MiB planned at {made.plan.ctx} tokens"
    if made.resident is not None:
        memory += f", {made.resident / MIB:.0f} MiB resident in llama-server"
    facts = {
        "File": f"{made.artifact.files[0].name}, sha256 {made.artifact.files[0].sha256}",
        "Memory": memory,
        "Speed": _speed(made),
        "Perplexity": f"{q.ppl:.4f}, of the source {q.base_ppl:.4f}" if q.ppl and q.base_ppl else "",
        "Text": " ".join(f"{k} {v};" for k, v in card["evaluation"].items() if v not in (None, 0)).rstrip(";"),
        "Importance matrix": str(card.get("imatrix") or "none"),
        "Tool": " ".join(str(card["quantized"][k]) for k in ("tool", "version", "build", "commit")),
        "Command": " ".join(card["quantized"]["argv"]),
        "Source": f"{card['base']['ref']}, {', '.join(card['base']['sha256'].values())}",
    }
    for name, text in facts.items():
        if text:
            yield f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>"


def _speed(made: Made) -> str:
    s = made.speed
    if s is None:
        return ""
    reading = f"{s.prompt_speed:.1f} ± {s.prompt_spread:.1f} reading"
    return f"{s.speed:.1f} ± {s.spread:.1f} tokens/s writing, {reading}, {s.threads} threads (llama-bench)"
