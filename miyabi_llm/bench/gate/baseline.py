"""A stored measurement to hold later ones against, with the machine and the noise it was made with."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from miyabi_llm.bench.report import Report, as_json, parse_report, write_text
from miyabi_llm.errors import BadUsage, Corrupt, Missing
from miyabi_llm.types import plain

_KIND = "miyabi-llm baseline"
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
BUSY = 0.5  # load per processor before the run from which on others take part in the result


@dataclass(frozen=True, slots=True)
class Conditions:
    """What of a machine changes between two runs: empty, or None, where the system does not tell.

    `load` is the one-minute load average per logical processor, looked at before the run.
    """

    kernel: str = ""
    governor: str = ""
    load: float | None = None


def conditions(governor: Path = _GOVERNOR) -> Conditions:
    """Look now. Never raises."""
    try:
        found = governor.read_text(encoding="utf-8").strip()
    except OSError:
        found = ""
    try:
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
    except (OSError, AttributeError):  # no such thing on Windows
        load = None
    return Conditions(platform.release(), found, load)


@dataclass(frozen=True, slots=True)
class Baseline:
    """`report` with the conditions it was made under and the noise floor between runs, by figure (a share)."""

    report: Report
    conditions: Conditions = field(default_factory=Conditions)
    noise: Mapping[str, float] = field(default_factory=dict)


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write it whole or not at all. Raises BadUsage (an invalid report is no baseline too), DiskFull."""
    if baseline.report.invalid:
        raise BadUsage(f"an invalid measurement is no baseline: {'; '.join(baseline.report.invalid)}")
    body = {
        "kind": _KIND,
        "conditions": plain(baseline.conditions),
        "noise": dict(baseline.noise),
        "report": json.loads(as_json(baseline.report)),
    }
    write_text(path, json.dumps(body, ensure_ascii=False, allow_nan=False, indent=1) + "\n")


def read_baseline(path: Path) -> Baseline:
    """Read a baseline, or a report as one without noise and conditions. Raises Missing, BadUsage, Corrupt."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as e:
        hint = "Write one with `miyabi-llm bench --save-baseline FILE`, or compare two servers with `bench ab`."
        raise Missing(f"no baseline at {path}", hint=hint) from e
    except UnicodeDecodeError as e:
        raise Corrupt(f"{path} is not a baseline: not UTF-8 text") from e
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror}") from e
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise Corrupt(f"{path} is not a baseline: {e}") from e
    if not isinstance(body, dict) or body.get("kind") != _KIND:
        return Baseline(parse_report(text, str(path)))
    return Baseline(
        parse_report(json.dumps(body.get("report")), str(path)),
        _conditions(body.get("conditions"), path),
        _noise(body.get("noise"), path),
    )


def _conditions(value: object, path: Path) -> Conditions:
    if not isinstance(value, dict):
        raise Corrupt(f"{path} is damaged: conditions should be an object")
    kernel, governor, load = (value.get(k) for k in ("kernel", "governor", "load"))
    if not isinstance(kernel, str) or not isinstance(governor, str) or not isinstance(load, int | float | None):
        raise Corrupt(f"{path} is damaged: conditions should hold kernel, governor, load")
    return Conditions(kernel, governor, None if load is None else float(load))


def _noise(value: object, path: Path) -> dict[str, float]:
    if not isinstance(value, dict) or not all(isinstance(v, int | float) and 0 <= v < 100 for v in value.values()):
        raise Corrupt(f"{path} is damaged: noise should hold shares")
    return {str(k): float(v) for k, v in value.items()}


def differences(baseline: Baseline, report: Report, now: Conditions) -> tuple[str, ...]:
    """Why the two come from machines that must not be compared; empty when they may be. Pure."""
    old, new = baseline.report.machine, report.machine
    parts = [
        ("system", old.system, new.system),
        ("processor", old.cpu, new.cpu),
        ("usable cores", old.cores, new.cores),
        ("memory, GiB", round(old.memory / (1 << 30)), round(new.memory / (1 << 30))),
        ("accelerators", ", ".join(old.gpus) or "none", ", ".join(new.gpus) or "none"),
    ]
    if baseline.conditions.governor and now.governor:
        parts.append(("processor governor", baseline.conditions.governor, now.governor))
    found = [f"{what}: {a} then, {b} now" for what, a, b in parts if a != b]
    if not found and old.fingerprint != new.fingerprint:
        found.append(f"machine fingerprint: {old.fingerprint} then, {new.fingerprint} now")
    return tuple(found)


def mismatches(baseline: Baseline, report: Report) -> tuple[str, ...]:
    """Why the two did not measure the same work; empty when they did. Pure."""
    (p, a), (q, b) = ((r.questions, r.load) for r in (baseline.report, report))
    parts = [
        ("workload", f"{p.name} {p.sha256[:12]}", f"{q.name} {q.sha256[:12]}"),
        ("share of common prefix", p.prefix_share, q.prefix_share),
        ("unique prompts", p.nonce, q.nonce),
        ("concurrency", a.concurrency, b.concurrency),
        ("rate", a.rate, b.rate),
        ("context depth", a.depth, b.depth),
    ]
    return tuple(f"{what}: {x} then, {y} now" for what, x, y in parts if x != y)


def remarks(baseline: Baseline, now: Conditions) -> tuple[str, ...]:
    """What to mind though the comparison is made. Pure."""
    found = []
    if baseline.conditions.kernel and baseline.conditions.kernel != now.kernel:
        found.append(f"another kernel: {baseline.conditions.kernel} then, {now.kernel} now")
    for when, load in (("then", baseline.conditions.load), ("now", now.load)):
        if load is not None and load > BUSY:
            found.append(f"the machine was busy {when}: load {load:.1f} per processor before the run")
    return tuple(found)
