"""How large a difference this machine shows between a server and itself: the noise floor of each metric."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from miyabi_llm.bench.gate import validity
from miyabi_llm.bench.gate.expr import Rule
from miyabi_llm.bench.gate.judge import compare
from miyabi_llm.bench.gate.metrics import series
from miyabi_llm.bench.gate.values import LEVEL, Measure, Round, Series
from miyabi_llm.bench.report import write_text
from miyabi_llm.errors import BadUsage, Corrupt, InvalidMeasurement
from miyabi_llm.types import Event, OnEvent, plain, silent

ROUNDS = 20
RUN = 5  # rounds that stand for one run on its own
KEPT = 10  # calibrations of one server on one machine that are remembered
NAMES = ("the server", "the server again")


@dataclass(frozen=True, slots=True)
class Floor:
    """The noise of one figure, as shares: what a ratio of equals may be off by, at 99%.

    `paired`: the ratio of a whole interleaved comparison. `round`: that of one round. `drift`: that of two runs of
    `RUN` rounds at different times, which is what a stored baseline meets at least.
    """

    paired: float
    round: float
    drift: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """One A/A comparison: `machine` and `server` are its keys, `floors` by figure (`ttft_p50`)."""

    machine: str
    server: str
    begun: str
    rounds: int
    floors: Mapping[str, Floor]


def calibrate(
    measure: Measure, rules: Sequence[Rule], rounds: int = ROUNDS, on_event: OnEvent = silent
) -> dict[str, Floor]:
    """Measure a server against itself, `rounds` times, and take the floor of each rule's figure.

    Raises InvalidMeasurement when the rounds cannot be used.
    """
    kept: list[Round] = []
    for tries in range(2 * rounds):
        r = measure(tries, tries % 2)
        if reasons := validity.broken(r, NAMES):
            raise InvalidMeasurement(f"the calibration must not be used: {'; '.join(reasons)}")
        if r.trouble:
            on_event(Event("warning", "round", f"measured again: {'; '.join(r.trouble)}"))
            continue
        kept.append(r)
        on_event(Event("progress", "rounds", done=len(kept), total=rounds, unit="rounds"))
        if len(kept) == rounds:
            return floors(rules, kept)
    raise InvalidMeasurement(f"only {len(kept)} of {2 * rounds} rounds were undisturbed", hint="use a quieter machine")


def floors(rules: Sequence[Rule], rounds: Sequence[Round]) -> dict[str, Floor]:
    """The floor of each figure that is compared, errors apart, from A/A rounds; what was not measured has none."""
    found = {}
    for rule in rules:
        if rule.kind == "relative" and rule.metric != "error_rate":
            floor = _floor(replace(series(rule, rounds), metric=rule.name))
            if floor is not None:
                found[rule.name] = floor
    return found


def _floor(s: Series) -> Floor | None:
    whole = compare(s)
    if not math.isfinite(whole.low):
        return None
    medians = [(float(np.median(x)), float(np.median(y))) for x, y in zip(s.a, s.b, strict=True) if x and y]
    within = [abs(math.log(y / x)) for x, y in medians]
    runs = [_runs(arm) for arm in (s.a, s.b)]
    between = [abs(math.log(u / v)) for arm in runs for u, v in combinations(arm, 2)]
    paired = max(abs(math.log(whole.low)), abs(math.log(whole.high)))
    return Floor(math.expm1(paired), _top(within), _top(between or within))


def _runs(rounds: Sequence[Sequence[float]]) -> list[float]:
    """The medians of `RUN` rounds each."""
    whole = [rounds[i : i + RUN] for i in range(0, len(rounds) - RUN + 1, RUN)]
    return [float(np.median([v for r in some for v in r])) for some in whole if any(some)]


def _top(logs: Sequence[float]) -> float:
    return math.expm1(float(np.quantile(logs, LEVEL)))


def server_key(url: str, model: str, workload: str, concurrency: int) -> str:
    """What a calibration is for, besides the machine. Pure."""
    return hashlib.sha256(json.dumps([url, model, workload, concurrency]).encode()).hexdigest()[:16]


def keep(folder: Path, calibration: Calibration) -> Path:
    """Add it to those of its machine and server; the last `KEPT` stay. Raises BadUsage, DiskFull, Corrupt."""
    path = _path(folder, calibration.machine, calibration.server)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BadUsage(f"{folder}: {e.strerror}") from e
    everything = [*_read(path), plain(calibration)][-KEPT:]
    write_text(path, json.dumps(everything, allow_nan=False, indent=1) + "\n")
    return path


def known(folder: Path, machine: str, server: str) -> dict[str, Floor]:
    """The largest floors of all calibrations kept: noise that was seen once can come again. Raises Corrupt."""
    found: dict[str, Floor] = {}
    path = _path(folder, machine, server)
    for entry in _read(path):
        try:
            for name, f in entry["floors"].items():
                new = Floor(float(f["paired"]), float(f["round"]), float(f["drift"]))
                old = found.get(name, new)
                pairs = ((old.paired, new.paired), (old.round, new.round), (old.drift, new.drift))
                found[name] = Floor(*(max(p) for p in pairs))
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise _damaged(path) from e
    return found


def _path(folder: Path, machine: str, server: str) -> Path:
    return folder / f"{machine}-{server}.json"


def _read(path: Path) -> list[dict[str, dict[str, dict[str, float]]]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError) as e:
        raise _damaged(path) from e
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror}") from e
    if not isinstance(found, list):
        raise _damaged(path)
    return found


def _damaged(path: Path) -> Corrupt:
    return Corrupt(f"{path} is no calibration", hint="delete it and calibrate again: miyabi-llm bench calibrate")
