"""The pictures of a report as Vega-Lite descriptions: the training's curve, and every stage with its interval. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
BLUE, GREEN, GREY = "#3366aa", "#1b7f5c", "#888888"
POINTS = 600  # of a curve: more is not seen


def curve(steps: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Loss by step, in nats per token, and the loss on held-out rows where it was looked at; None without steps."""
    every = max(1, len(steps) // POINTS)
    values = [{"step": s["step"], "loss": s["loss"], "of": "training rows"} for s in steps[::every] if "loss" in s]
    values += [{"step": s["step"], "loss": s["eval_loss"], "of": "held-out rows"} for s in held_out]
    if not values:
        return None
    kinds = ["training rows", *(["held-out rows"] if held_out else [])]
    scale = {"domain": kinds, "range": [BLUE, GREEN][: len(kinds)]}
    colour = {"field": "of", "type": "nominal", "title": None, "scale": scale}
    return _figure(values, 620, 240, {
        "mark": {"type": "line", "point": len(values) < 60, "strokeWidth": 2},
        "encoding": {
            "x": {"field": "step", "type": "quantitative", "title": "step"},
            "y": {"field": "loss", "type": "quantitative", "title": "loss in nats per token", "scale": {"zero": False}},
            "color": colour,
        },
    })  # fmt: skip


def stages(rows: Sequence[tuple[str, Mapping[str, Any]]], title: str) -> dict[str, Any] | None:
    """One line a stage: its value with the 95% interval; None without any."""
    values = [
        {"stage": name, "value": m["value"], "low": m["low"], "high": m["high"], "of": "before" if i == 0 else "after"}
        for i, (name, m) in enumerate(rows)
    ]
    if not values:
        return None
    y = {"field": "stage", "type": "nominal", "sort": [v["stage"] for v in values], "title": None}
    colour = {"field": "of", "type": "nominal", "title": None, "legend": None,
              "scale": {"domain": ["before", "after"], "range": [GREY, GREEN]}}  # fmt: skip
    x = {"field": "value", "type": "quantitative", "title": title, "scale": {"zero": False, "padding": 20}}
    return _figure(values, 620, 34 * len(values), {
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 3},
             "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}, "color": colour}},
            {"mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
             "encoding": {"y": y, "x": x, "color": colour}},
        ],
    })  # fmt: skip


def _figure(values: Sequence[Mapping[str, Any]], width: int, height: int, body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "$schema": SCHEMA, "width": width, "height": height, "background": "white",
        "data": {"values": list(values)}, **body,
        "config": {"font": "sans-serif", "legend": {"orient": "top"}, "axis": {"labelLimit": 200}},
    }  # fmt: skip
