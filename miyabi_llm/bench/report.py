"""A measurement as a value and as a file: what it takes to read it later, and what it must not be used for."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit, urlunsplit

from miyabi_llm import __version__
from miyabi_llm.bench.stats.values import Measured, Metric, Quantile
from miyabi_llm.bench.values import ClientHealth, Load, Target
from miyabi_llm.errors import BadUsage, Corrupt, DiskFull, Missing
from miyabi_llm.hardware import Hardware
from miyabi_llm.types import plain

SCHEMA = 1
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Machine:
    """What a measurement was made on, as far as it changes numbers. Memory in bytes.

    `fingerprint` is equal for machines that may be compared: same system, processor, usable cores, memory to the
    GiB, accelerators and their driver.
    """

    system: str
    cpu: str
    cores: int
    memory: int
    gpus: tuple[str, ...] = ()
    fingerprint: str = ""


def machine(found: Hardware) -> Machine:
    """The machine of a report. Pure."""
    gpus = tuple(f"{g.name} {g.memory_total or 0} {g.driver}".strip() for g in found.gpus)
    seen = (found.system, found.machine, found.cpu, found.usable_cores, round(found.ram_total / _GIB), gpus)
    digest = hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]
    system = f"{found.system} {found.machine}"
    return Machine(system, found.cpu, found.usable_cores, found.ram_total, gpus, digest)


@dataclass(frozen=True, slots=True)
class Asked:
    """Who was measured: a target's name and where it was, without its key."""

    name: str
    url: str
    model: str
    backend: str
    speech: str


def asked(target: Target) -> Asked:
    """A target as reports hold it: no key, and no name or password in its address. Pure."""
    url = urlsplit(target.endpoint.base_url)
    clean = urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment=""))
    return Asked(target.name, clean, target.endpoint.model, target.endpoint.backend, target.speech)


@dataclass(frozen=True, slots=True)
class Questions:
    """What was asked: the workload by hash, and how its prompts were made."""

    name: str
    sha256: str
    items: int
    license: str = ""
    seed: int = 0
    nonce: bool = True
    prefix_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """One load on one or more targets.

    `begun` is the UTC time in ISO 8601, `seconds` the time of sending. `invalid` says why the numbers must not be
    used, empty when they may; `aborted` why the run ended early, empty when it did not.
    """

    begun: str
    seconds: float
    targets: tuple[Asked, ...]
    questions: Questions
    load: Load
    health: ClientHealth
    machine: Machine
    measured: tuple[Measured, ...]
    invalid: tuple[str, ...] = ()
    aborted: str = ""
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA
    made_by: str = field(default=f"miyabi-llm {__version__}")

    def of(self, target: str) -> Measured:
        """What was measured of a target. Raises BadUsage when there is none of that name."""
        for found in self.measured:
            if found.name == target:
                return found
        raise BadUsage(f"the report has no target {target}", hint=f"It has {', '.join(m.name for m in self.measured)}.")

    def figure(self, name: str, target: str | None = None) -> Quantile | None:
        """One figure ("ttft_p50", "error_rate") of a target, of the first when None; None when it was not measured."""
        found = self.of(target) if target is not None else next(iter(self.measured), None)
        return None if found is None else found.figure(name)

    @property
    def definitions(self) -> Mapping[str, str]:
        """What each metric of the report is, by name."""
        return {m.name: m.definition for target in self.measured for m in target.metrics}


def as_json(report: Report) -> str:
    """The report as JSON text; read it again with `parse_report`."""
    return json.dumps(plain(report), ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def write_report(report: Report, path: Path) -> None:
    """Write it as JSON, whole or not at all. Raises BadUsage, DiskFull."""
    write_text(path, as_json(report))


def read_report(path: Path) -> Report:
    """Read a report. Raises Missing when there is none, Corrupt when the file is not a whole report of this schema."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as e:
        raise Missing(f"no report at {path}", hint="Write one with `miyabi-llm bench --json FILE`.") from e
    except UnicodeDecodeError as e:
        raise Corrupt(f"{path} is not a report: not UTF-8 text") from e
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror}") from e
    return parse_report(text, str(path))


def parse_report(text: str, where: str = "the report") -> Report:
    """Read a report's JSON, or that of a whole measurement with one load, which holds one.

    Raises Corrupt that names the field which is wrong, BadUsage when there are several loads.
    """
    hint = "Measure again, or take the file from where it was first written."
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as e:
        raise Corrupt(f"{where} is not a report: {e}", hint=hint) from e
    value = _of_one_load(value, where)
    if not isinstance(value, dict) or "schema" not in value:
        raise Corrupt(f"{where} is not a report: it says no schema", hint=hint)
    if value["schema"] != SCHEMA:
        newer = "Update miyabi-llm to read it." if _is_newer(value["schema"]) else hint
        raise Corrupt(f"{where} has schema {value['schema']!r}; this version reads {SCHEMA}", hint=newer)
    try:
        report = _read(Report, value, "")
    except ValueError as e:
        raise Corrupt(f"{where} is damaged: {e}", hint=hint) from e
    assert isinstance(report, Report)
    return report


def _of_one_load(value: Any, where: str) -> Any:
    levels = value.get("levels") if isinstance(value, dict) and "schema" not in value else None
    if not isinstance(levels, list) or not all(isinstance(level, dict) for level in levels):
        return value
    if len(levels) > 1:
        labels = ", ".join(str(level.get("label")) for level in levels)
        raise BadUsage(f"{where} holds {len(levels)} loads ({labels})", hint="Measure one load: `--concurrency 4`.")
    return levels[0].get("report") if levels else value


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _is_newer(schema: object) -> bool:
    return isinstance(schema, int) and schema > SCHEMA


def _read(kind: Any, value: Any, at: str) -> Any:
    """`value` as the type `kind` says; ValueError names the place where it is not."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _read_fields(kind, value, at)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None and type(None) in inner else _read(inner[0], value, at)
    if origin is Literal:
        return _fits(value in inner, value, at, " or ".join(map(str, inner)))
    if origin is tuple:
        _fits(isinstance(value, list), value, at, "a list")
        return tuple(_read(inner[0], v, f"{at}[{i}]") for i, v in enumerate(value))
    if origin is not None:  # a mapping of text
        _fits(isinstance(value, dict), value, at, "an object")
        return {k: _read(inner[1], v, f"{at}.{k}") for k, v in value.items()}
    if kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        return float(_fits(fits, value, at, "a number"))
    fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    return _fits(fits, value, at, {str: "text", int: "a whole number", bool: "true or false"}[kind])


def _read_fields(kind: type, value: Any, at: str) -> Any:
    _fits(isinstance(value, dict), value, at, "an object")
    hints, parts = get_type_hints(kind), {}
    for f in dataclasses.fields(kind):
        if f.name in value:
            parts[f.name] = _read(hints[f.name], value[f.name], f"{at}.{f.name}".lstrip("."))
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"{at}.{f.name}".lstrip(".") + " is missing")
    return kind(**parts)


def _fits(fits: bool, value: Any, at: str, wanted: str) -> Any:
    if not fits:
        raise ValueError(f"{at or 'it'} should be {wanted}, not {str(value)[:60]!r}")
    return value


def as_csv(report: Report) -> str:
    """One line per target and metric. Cells without a value are empty: there were too few measurements for it."""
    labels = sorted({p for m in report.measured for x in m.metrics for p in x.percentiles}, key=lambda p: float(p[1:]))
    head = ["target", "metric", "unit", "n", "mean", "mean_low", "mean_high", "sd", "min", "max"]
    head += [column for p in labels for column in (p, f"{p}_low", f"{p}_high")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*head, "source", "invalid"])
    for target in report.measured:
        for m in target.metrics:
            cells = [target.name, m.name, m.unit, m.n, m.mean, m.low, m.high, m.sd, m.least, m.most]
            for p in labels:
                q = m.percentiles.get(p)
                cells += [None] * 3 if q is None else [q.value, q.low, q.high]
            writer.writerow([_cell(c) for c in (*cells, m.source, "; ".join(report.invalid))])
    return out.getvalue()


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)
    # a spreadsheet would run a name that begins like a formula
    return f"'{text}" if isinstance(value, str) and text[:1] in ("=", "+", "-", "@") else text


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises BadUsage, DiskFull."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as e:
        draft.unlink(missing_ok=True)
        kind = DiskFull if e.errno == 28 else BadUsage
        raise kind(f"{path}: {e.strerror}") from e


@dataclass(frozen=True, slots=True)
class Table:
    """What a face shows: a head, rows of equally many cells, and lines to say under it."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


SHOWN = ("ttft", "itl", "gap", "tpot", "e2e", "decode_tps", "server_decode_tps", "prefill_tps", "server_prompt_tps")
SHOWN_RATES = ("output_tps", "total_tps", "rps", "goodput", "good_share", "error_rate", "cached_share")


def tables(report: Report, percentiles: Sequence[str] = ("p50", "p95", "p99")) -> tuple[Table, Table]:
    """Distributions, then rates and shares; a percentile that n does not allow says so. Pure."""
    found = [(t.name, m) for t in report.measured for m in t.metrics]
    spread = sorted((x for x in found if x[1].name in SHOWN), key=lambda x: SHOWN.index(x[1].name))
    single = sorted((x for x in found if x[1].name in SHOWN_RATES), key=lambda x: SHOWN_RATES.index(x[1].name))
    first = Table(
        ("metric", "target", "n", "mean", *percentiles),
        tuple(
            (m.name, target, f"{m.n:,}", amount(m.mean, m.unit), *(_percentile(m, p) for p in percentiles))
            for target, m in spread
        ),
        (*report.invalid, *(f"{t.name}: {w}" for t in report.measured for w in t.warnings)),
    )
    second = Table(("metric", "target", "value"), tuple((m.name, t, _single(m)) for t, m in single))
    return first, second


def _percentile(metric: Metric, p: str) -> str:
    q = metric.percentiles.get(p)
    if q is None:
        return "n too small"
    return amount(q.value, metric.unit) + _interval(q.low, q.high, metric.unit)


def _single(metric: Metric) -> str:
    return amount(metric.mean, metric.unit) + _interval(metric.low, metric.high, metric.unit)


def _interval(low: float | None, high: float | None, unit: str) -> str:
    return "" if low is None or high is None else f" [{amount(low, unit)}, {amount(high, unit)}]"


def amount(value: float, unit: str) -> str:
    """A value for the eye: milliseconds below a second, three digits, shares in percent."""
    if unit == "share":
        return f"{value:.2%}"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
