"""The gate of `bench`: rules, baselines, what CI is told, and the exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from miyabi_llm.errors import BadUsage

if TYPE_CHECKING:
    from miyabi_llm.bench.gate.baseline import Baseline, Conditions
    from miyabi_llm.bench.gate.expr import Rule
    from miyabi_llm.bench.gate.values import Judgement
    from miyabi_llm.bench.report import Machine, Report
    from miyabi_llm.bench.study import Study
    from miyabi_llm.config import Settings


@dataclass(frozen=True, slots=True)
class Told:
    """Whom to tell of a judgement."""

    junit: Path | None = None
    markdown: Path | None = None
    history: Path | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate on one measurement; `now` is how the machine was before it."""

    rules: tuple[Rule, ...]
    baseline: Baseline | None
    now: Conditions
    widen: bool
    save: Path | None
    told: Told

    @property
    def wanted(self) -> bool:
        """Whether there is anything to judge."""
        return bool(self.rules)


def gate(fail_on: Sequence[str], baseline: Path | None, save: Path | None, told: Told, *, widen: bool) -> Gate:
    """The gate a command line asks for. Raises BadUsage, Missing, Corrupt."""
    from miyabi_llm.bench.gate.baseline import conditions, read_baseline
    from miyabi_llm.bench.gate.expr import parse_all

    rules = parse_all(fail_on) if fail_on or baseline else ()
    if not rules and (told.junit or told.markdown or told.history):
        raise BadUsage(
            "--junit, --markdown and --history tell of a gate, and there is none",
            hint="Say what fails: --fail-on 'ttft_p95 > 500ms', or give --baseline FILE.",
        )
    if any(r.kind == "relative" for r in rules) and baseline is None:
        rule = next(r for r in rules if r.kind == "relative")
        hint = "Give --baseline FILE, compare two with `miyabi-llm bench ab`, or bound it: 'ttft_p50 > 500ms'."
        raise BadUsage(f"--fail-on {rule.text!r} is a change, and there is nothing to compare with", hint=hint)
    return Gate(rules, read_baseline(baseline) if baseline else None, conditions(), widen, save, told)


def check_one(gate: Gate, loads: int, targets: int) -> None:
    """Raises BadUsage where several measurements would have to pass one gate, or be one baseline."""
    if (gate.wanted or gate.save) and (loads != 1 or targets != 1):
        raise BadUsage(
            "a gate and a baseline are for one server at one load",
            hint="Compare two servers with `miyabi-llm bench ab`; give one --concurrency or --rate.",
        )


def judge(gate: Gate, study: Study) -> Judgement | None:
    """The judgement of a study's only load; None without a gate or a measurement."""
    from miyabi_llm.bench.gate.single import Against, judge_report

    if not gate.wanted or not study.levels:
        return None
    report = study.levels[0].report
    against = None if gate.baseline is None else Against(gate.baseline, gate.now, gate.widen)
    return judge_report(report, gate.rules, report.targets[0].name, against)


def tell(judgement: Judgement, told: Told, machine: Machine, name: str) -> None:
    """Write what CI reads. Raises BadUsage, DiskFull."""
    from miyabi_llm.bench.gate import history
    from miyabi_llm.bench.gate.junit import as_junit
    from miyabi_llm.bench.gate.markdown import as_markdown
    from miyabi_llm.bench.report import write_text
    from miyabi_llm.cli import show

    at = datetime.now(UTC).isoformat(timespec="seconds")
    if told.junit is not None:
        write_text(told.junit, as_junit(judgement, name=name, begun=at))
    if told.markdown is not None:
        write_text(told.markdown, as_markdown(judgement, title=name))
    if told.history is not None:
        history.append(told.history, history.entry(judgement, at=at, label=told.label, machine=machine.fingerprint))
    for path in (told.junit, told.markdown, told.history):
        if path is not None:
            show.note(f"wrote {path}")


def render(judgement: Judgement) -> None:
    """The judgement on standard output."""
    from miyabi_llm.bench.gate.shown import headline, table
    from miyabi_llm.cli import bench_show

    found = table(judgement)
    bench_show.print_table(found.head, found.rows)
    print(headline(judgement))
    for note in found.notes:
        print(f"  {note}")


def save(gate: Gate, report: Report, settings: Settings) -> None:
    """Keep a report as a baseline, with the noise that `bench calibrate` found here. Raises BadUsage, DiskFull."""
    from miyabi_llm.bench.gate.baseline import Baseline, write_baseline
    from miyabi_llm.bench.gate.calibrate import known
    from miyabi_llm.cli import show

    if gate.save is None:
        return
    key = server_key(report)
    floors = known(calibrations(settings), report.machine.fingerprint, key)
    write_baseline(gate.save, Baseline(report, gate.now, {name: floor.drift for name, floor in floors.items()}))
    known_noise = "" if floors else "; the noise of this machine is not known: `miyabi-llm bench calibrate` finds it"
    show.note(f"wrote {gate.save}{known_noise}")


def calibrations(settings: Settings) -> Path:
    """Where calibrations are kept."""
    return settings.home / "bench" / "calibrations"


def server_key(report: Report) -> str:
    """What a calibration is for: the program, the model, the work. Its port may change from run to run."""
    from miyabi_llm.bench.gate.calibrate import server_key as key

    asked = report.targets[0]
    return key(asked.backend, asked.model, report.questions.name, report.load.concurrency or 0)
