"""The plots of a report as SVG: they take the page's own text colour, so that light and dark both read well."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from miyabi_llm import plots
from miyabi_llm.bench.study import Curve, Level, Study, best_percentile

# Distinct for most colour-blind eyes, and clear of both a white and a near-black page.
COLORS: Final = ("#3b82f6", "#e8890c", "#10a37f", "#d946a0", "#8b5cf6", "#dc4c3f", "#7c8a12", "#0ea5b7")
FONT: Final = "system-ui, -apple-system, 'Segoe UI', 'Hiragino Sans', 'Noto Sans CJK JP', 'Noto Sans JP', sans-serif"
WIDTH, HEIGHT = 400, 230
MOST = len(COLORS)  # lines of one plot: more cannot be told apart
POINTS = 1500  # dots of one plot over time
Rows = list[dict[str, Any]]

_TEXT: Final = {"labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 11, "titleFontSize": 12}
CONFIG: Final[Mapping[str, Any]] = {
    "background": None,
    "font": FONT,
    "view": {"stroke": None},
    "range": {"category": list(COLORS)},
    "axis": {
        **_TEXT,
        "titleFontWeight": "normal",
        "gridColor": "currentColor",
        "gridOpacity": 0.12,
        "domainColor": "currentColor",
        "domainOpacity": 0.4,
        "tickColor": "currentColor",
        "tickOpacity": 0.4,
        "labelOpacity": 0.8,
        "tickCount": 6,
    },
    "legend": {
        **_TEXT,
        "orient": "bottom",
        "title": None,
        "columns": 3,
        "columnPadding": 22,
        "labelLimit": 220,
        "symbolOpacity": 1,
    },
    "header": {"labelColor": "currentColor", "labelFontSize": 12},
    "text": {"color": "currentColor"},
}


def distribution(study: Study, metric: str, title: str) -> dict[str, Any] | None:
    """The share of values that are at most so many milliseconds, a line for each target and load; None without any."""
    curves = [(_series(study, level, c), c) for level in study.levels for c in level.curves if c.metric == metric]
    rows = [{"series": s, "x": x * 1e3, "y": y} for s, c in _few(curves) for x, y in c.points]
    if not rows:
        return None
    return _chart(
        rows,
        {"type": "line", "interpolate": "step-after", "strokeWidth": 2},
        {"field": "x", "type": "quantitative", "title": f"{title} (ms)", "scale": {"zero": False}},
        {
            "field": "y",
            "type": "quantitative",
            "title": "share of values at most that",
            "axis": {"format": "%"},
            "scale": {"domain": [0, 1]},
        },
    )


def over_time(study: Study) -> dict[str, Any] | None:
    """The first token of each answer, by when it was asked for."""
    curves = _few([(_series(study, level, c), c) for level in study.levels for c in level.over_time])
    every = max(1, sum(len(c.points) for _, c in curves) // POINTS)
    rows = [{"series": s, "x": x, "y": y * 1e3} for s, c in curves for x, y in c.points[::every]]
    if not rows:
        return None
    return _chart(
        rows,
        {"type": "point", "filled": True, "size": 22, "opacity": 0.65},
        {"field": "x", "type": "quantitative", "title": "seconds since the load began"},
        {"field": "y", "type": "quantitative", "title": "time to first token (ms)"},
    )


def trade(study: Study) -> dict[str, Any] | None:
    """Throughput against the first token, over the loads; None for one load."""
    rows: Rows = []
    for level in study.levels:
        for m in level.report.measured:
            rate, ttft = m.metric("output_tps"), best_percentile(m, "ttft")
            if level.valid and rate is not None and ttft is not None:
                order = level.report.load.rate or level.report.load.concurrency or 0
                rows.append({"series": m.name, "x": rate.mean, "y": ttft * 1e3, "load": level.label, "order": order})
    if len({row["load"] for row in rows}) < 2:
        return None
    x: dict[str, Any] = {"field": "x", "type": "quantitative", "title": "output tokens/s, all streams"}
    x["scale"] = {"zero": True}
    y = {"field": "y", "type": "quantitative", "title": "time to first token (ms; p95, else p50)"}
    spec = _chart(rows, {"type": "line", "point": {"size": 45, "filled": True}}, x, y)
    spec["encoding"]["order"] = {"field": "order", "type": "quantitative"}
    marked = {
        "mark": {"type": "text", "dy": -11, "fontSize": 11, "color": "currentColor"},
        "encoding": {"x": x, "y": y, "text": {"field": "load"}},
    }
    line = {key: spec.pop(key) for key in ("mark", "encoding")}
    return {**spec, "layer": [line, marked]}


COMPARED: Final = (
    ("ttft", "p50", "TTFT p50 (ms)", 1e3),
    ("itl", "p50", "ITL p50 (ms)", 1e3),
    ("e2e", "p50", "E2E p50 (s)", 1.0),
    ("output_tps", "", "tokens/s", 1.0),
)


def against(study: Study) -> dict[str, Any] | None:
    """Several targets beside each other: medians and rates with their intervals; None for one target."""
    if len(study.targets) < 2:
        return None
    rows: Rows = []
    for level in study.levels if len(study.levels) <= MOST else ():
        for m in level.report.measured:
            for name, p, title, scale in COMPARED:
                found = m.figure(f"{name}_{p}" if p else name) if level.valid else None
                if found is not None and m.metric(name) is not None:
                    low = found.value if found.low is None else found.low
                    high = found.value if found.high is None else found.high
                    row = {"what": title, "target": m.name, "load": level.label, "x": found.value * scale}
                    rows.append({**row, "low": low * scale, "high": high * scale})
    titles = [title for _, _, title, _ in COMPARED if any(row["what"] == title for row in rows)]
    return {"hconcat": [_beside(rows, title, first=i == 0) for i, title in enumerate(titles)]} if titles else None


def _beside(rows: Rows, title: str, *, first: bool) -> dict[str, Any]:
    own = [row for row in rows if row["what"] == title]
    axis = {"title": None, "labelLimit": 160, "labels": first, "ticks": False, "domain": False}
    y = {"field": "load", "type": "nominal", "sort": None, "axis": axis, "scale": {"paddingInner": 0.3}}
    shift = {"field": "target", "type": "nominal", "sort": None}
    color = {"field": "target", "type": "nominal", "sort": None}
    x = {
        "type": "quantitative",
        "title": title,
        "scale": {"domainMin": 0},
        "axis": {"tickCount": 4, "labelOverlap": "greedy", "labelSeparation": 8},
    }
    return {
        "width": 190,
        "height": {"step": 18},
        "data": {"values": own},
        "encoding": {"y": y, "yOffset": shift, "color": color},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.55},
                "encoding": {
                    "x": {"field": "low", **x},
                    "x2": {"field": "high"},
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {"x": {"field": "x", **x}},
            },
        ],
    }


def svg(spec: Mapping[str, Any], name: str) -> str:
    """The plot as SVG for a page of several: `name` keeps its inner references its own."""
    text = plots.svg({**spec, "config": CONFIG})
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)


def paper(spec: Mapping[str, Any]) -> str:
    """A plot as an SVG file of its own, dark on white."""
    return plots.svg({"background": "white", **spec}) + "\n"


def _chart(rows: Rows, mark: Mapping[str, Any], x: Mapping[str, Any], y: Mapping[str, Any]) -> dict[str, Any]:
    several = len({row["series"] for row in rows}) > 1
    color = {"field": "series", "type": "nominal", "sort": None, **({} if several else {"legend": None})}
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "data": {"values": rows},
        "mark": dict(mark),
        "encoding": {"x": dict(x), "y": dict(y), "color": color},
    }


def _series(study: Study, level: Level, curve: Curve) -> str:
    """What tells a line from the others: the target, the load, or both."""
    parts = [curve.target] if len(study.targets) > 1 else []
    parts += [level.label] if len(study.levels) > 1 else []
    return " ".join(parts) or curve.target


def _few(curves: Sequence[tuple[str, Curve]]) -> list[tuple[str, Curve]]:
    """At most as many as there are colours, the first and the last among them."""
    if len(curves) <= MOST:
        return list(curves)
    return [curves[round(i * (len(curves) - 1) / (MOST - 1))] for i in range(MOST)]
