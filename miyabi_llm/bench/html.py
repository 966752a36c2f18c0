"""A measurement as one HTML page without anything from elsewhere: plots, tables, definitions, how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from string import Template

from miyabi_llm.bench import charts
from miyabi_llm.bench.report import Machine, Table, amount, tables
from miyabi_llm.bench.study import Level, Study
from miyabi_llm.bench.values import ClientHealth, Lag

PLOTS = (
    ("ttft", "Time to first token", "Each line is the share of answers whose first token came within so long."),
    ("itl", "Between tokens", "Each line is the share of tokens that came within so long of the one before."),
    ("gap", "Between pieces", "Each line is the share of pieces that came within so long of the one before."),
)
Cells = Sequence[Sequence[str]]


def page(study: Study, extra: Sequence[tuple[str, Table]] = ()) -> str:
    """The whole page; `extra` are further tables under their titles, before the details (a gate's judgement)."""
    style = resources.files("miyabi_llm").joinpath("data", "report.css").read_text(encoding="utf-8")
    shell = resources.files("miyabi_llm").joinpath("data", "report.html").read_text(encoding="utf-8")
    parts = [
        _head(study),
        _block("Result", _summary(study)) if any(level.valid for level in study.levels) else "",
        *(_block(title, _table(t.head, t.rows) + _notes(t.notes)) for title, t in extra),
        _findings(study),
        _plots(study),
        _used(study),
        _details(study),
        _conditions(study),
    ]
    return Template(shell).substitute(title=escape(study.name), style=style, body="\n".join(p for p in parts if p))


def _head(study: Study) -> str:
    state, words = "valid", "valid"
    if study.invalid:
        good = any(level.valid for level in study.levels)
        state, words = ("partly", "partly invalid") if good else ("invalid", "INVALID: these numbers must not be used")
    if study.incomplete:
        state = "partly" if state == "valid" else state
        words += ", INCOMPLETE: interrupted"
    begun = study.levels[0].report.begun if study.levels else ""
    lines = "".join(f"<li>{escape(reason)}</li>" for reason in study.invalid)
    return (
        f"<header><h1>{escape(study.name)}</h1><p><span class='badge {state}'>{escape(words)}</span> "
        f"<time>{escape(begun)}</time></p>" + (f"<ul class='reasons'>{lines}</ul>" if lines else "") + "</header>"
    )


def _summary(study: Study) -> str:
    head = ("load", "target", "n", "TTFT p50", "TTFT p95", "ITL p50", "E2E p50", "tokens/s", "requests/s", "failed")
    rows = []
    for level in study.levels:
        for m in level.report.measured if level.valid else ():
            row = [level.label, m.name, f"{m.counts.ok:,}"]
            for name, p in (("ttft", "p50"), ("ttft", "p95"), ("itl", "p50"), ("e2e", "p50")):
                found = m.metric(name)
                q = found.percentiles.get(p) if found is not None else None
                row.append("n too small" if q is None or found is None else amount(q.value, found.unit))
            for name in ("output_tps", "rps"):
                found = m.metric(name)
                row.append("" if found is None else amount(found.mean, found.unit))
            rows.append([*row, f"{m.counts.failed:,}"])
    return _table(head, rows)


def _findings(study: Study) -> str:
    lines = []
    for first in study.firsts:
        load = f"ready after {first.load_s:.1f} s; " if first.load_s is not None else ""
        said = first.error or (f"first token after {amount(first.ttft_s, 's')}" if first.ttft_s is not None else "")
        lines.append(f"<b>{escape(first.target)}</b>: {escape(load)}its first request: {escape(said)}")
    for k in study.knees:
        found = f"{k.knee.load:g} at once, {k.knee.throughput:.1f} tokens/s; {k.knee.reason}" if k.knee else "not found"
        lines.append(f"Knee of <b>{escape(k.target)}</b>: {escape(found)}")
    for s in study.searches:
        promise = ", ".join(kept.promise for kept in s.trials[0].kept) if s.trials else "the promise"
        found = f"{s.best.load:g} {s.unit}" if s.best else "no load that was tried"
        lines.append(f"<b>{escape(s.target)}</b> keeps {escape(promise)} up to {escape(found)}")
    return _block("Findings", "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>") if lines else ""


def _plots(study: Study) -> str:
    found = [(title, words, charts.distribution(study, metric, title)) for metric, title, words in PLOTS]
    found.append(
        ("First token over time", "Each dot is an answer, at the time it was asked for.", charts.over_time(study))
    )
    words = "Each dot is a load: more to the right is more work done, lower is sooner answered."
    found.append(("Throughput against latency", words, charts.trade(study)))
    figures = [_figure(i, *f) for i, f in enumerate(found) if f[2] is not None]
    words = "Dots are medians and rates; lines are their 95% intervals, where there is one."
    beside = charts.against(study)
    wide = _figure(len(found), "Targets beside each other", words, beside, "wide") if beside else ""
    inner = wide + "".join(figures)
    return _block("Plots", f"<div class='plots'>{inner}</div>") if inner else ""


def _figure(number: int, title: str, words: str, spec: object, kind: str = "") -> str:
    assert isinstance(spec, dict)
    drawn = charts.svg(spec, f"plot{number}")
    caption = f"<figcaption><b>{escape(title)}</b> {escape(words)}</figcaption>"
    return f"<figure class='{kind}' aria-label='{escape(title)}'>{caption}<div class='scroll'>{drawn}</div></figure>"


def _used(study: Study) -> str:
    gib = 1 << 30
    rows, costs = [], []
    for level in study.levels:
        for u in level.used if level.valid else ():
            if (r := u.resources) is not None:
                row = [level.label, u.target, f"{r.memory_peak / gib:.2f} GiB", f"{r.cores:.2f}", f"{r.cpu_s:.1f} s"]
                row.append("" if r.gpu_memory is None else f"{r.gpu_memory / gib:.2f} GiB")
                row.append("" if u.tokens_per_joule is None else f"{u.tokens_per_joule:.2f}")
                rows.append(row)
            for c in u.costs:
                name = f"{c.name}, {c.date}" if c.date else c.name
                price = f"{c.per_million:.4g} {c.currency}".strip()
                costs.append([level.label, u.target, name, price, f"{c.total:.3g} {c.currency}".strip()])
    head = ("load", "target", "memory, peak", "cores in use", "processor time", "GPU memory", "tokens/J")
    parts = _block("What the servers took", _table(head, rows)) if rows else ""
    dear = ("load", "target", "price of", "per million tokens", "these tokens")
    return parts + (_block("Cost, by the prices you gave", _table(dear, costs)) if costs else "")


def _details(study: Study) -> str:
    parts = []
    for level in study.levels:
        if level.valid:
            body = "".join(_table(t.head, t.rows) + _notes(t.notes) for t in tables(level.report))
        else:
            body = _notes(level.report.invalid)
        parts.append(f"<details {'open' if len(study.levels) == 1 else ''}><summary>{escape(level.label)}</summary>")
        parts.append(f"{body}{_counts(level)}</details>")
    return _block("Details, with 95% intervals", "".join(parts)) if parts else ""


def _counts(level: Level) -> str:
    rows = []
    for m in level.report.measured:
        c = m.counts
        errors = ", ".join(f"{n} {kind}" for kind, n in c.errors.items()) or "0"
        ended = ", ".join(f"{n} {why}" for why, n in c.finish.items())
        tokens = ", ".join(f"{n} {origin}" for origin, n in c.provenance.items())
        cached = f"{c.cached_tokens:,} of {c.cached_of:,}" if c.cached_of else "not told"
        rows.append(
            (m.name, f"{c.ok:,}", errors, f"{c.prompt_tokens:,}", f"{c.output_tokens:,}", tokens, ended, cached)
        )
    head = ("target", "whole", "failed", "prompt tokens", "output tokens", "counted by", "ended", "cached tokens")
    return _table(head, rows)


def _conditions(study: Study) -> str:
    if not study.levels:
        return ""
    report = study.levels[0].report
    aims = [(t.name, t.model, t.url, t.backend or "not known", t.speech) for t in report.targets]
    q = report.questions
    nonce = "each made new by a number at its start" if q.nonce else "repeated as they are"
    common = f", {q.prefix_share:.0%} of each common to all" if q.prefix_share else ""
    asked = f"{q.name}: {q.items:,} questions, {nonce}{common}; seed {q.seed}; sha256 {q.sha256}"
    healths = [(level.label, *_health(level.report.health)) for level in study.levels]
    head = ("load", "offered", "achieved", "processor", "read late p50/p99", "sent late p99", "loop late p99", "stamps")
    defined = {name: words for level in study.levels for name, words in level.report.definitions.items()}
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>" for name, words in defined.items())
    again = escape(shlex.join(study.command))
    return "".join(
        (
            _block("What was measured", _table(("target", "model", "address", "backend", "dialect"), aims)
                   + f"<p class='wrap'>{escape(asked)}</p>"),
            _block("Where", _table(("", ""), _machine(report.machine))),
            _block("Was the client in the way?", _table(head, healths)),
            _block("Definitions", f"<dl>{terms}</dl>") if terms else "",
            _block("How to repeat it", f"<pre>{again}</pre><p>{escape(report.made_by)}</p>"),
        )
    )  # fmt: skip


def _machine(m: Machine) -> list[tuple[str, str]]:
    rows = [
        ("system", m.system),
        ("processor", m.cpu),
        ("cores", str(m.cores)),
        ("memory", f"{m.memory / 2**30:.1f} GiB"),
    ]
    return [*rows, *(("card", gpu) for gpu in m.gpus), ("fingerprint", m.fingerprint)]


def _health(h: ClientHealth) -> tuple[str, ...]:
    def late(lag: Lag | None, *names: str) -> str:
        return "" if lag is None else " / ".join(f"{getattr(lag, n) * 1e3:.2f} ms" for n in names)

    return (
        f"{h.offered:.1f}",
        f"{h.achieved:.1f}",
        f"{h.cpu:.0%} of a core",
        late(h.read_lag, "p50", "p99"),
        late(h.send_lag, "p99"),
        late(h.loop_lag, "p99"),
        "kernel" if h.kernel_stamps else "client",
    )


def _block(title: str, inner: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inner}</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    kept = [tuple(row) for row in rows]
    show = [i for i in range(len(head)) if any(row[i] for row in kept)]
    if not kept:
        return ""
    top = "".join(f"<th>{escape(head[i])}</th>" for i in show)
    body = "".join("<tr>" + "".join(_td(row[i]) for i in show) + "</tr>" for row in kept)
    return f"<div class='scroll'><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def _td(text: str) -> str:
    kind = " class='n'" if text[:1].isdigit() else ""
    return f"<td{kind}>{escape(text)}</td>"


def _notes(lines: Iterable[str]) -> str:
    return "".join(f"<p class='note'>{escape(line)}</p>" for line in lines)
