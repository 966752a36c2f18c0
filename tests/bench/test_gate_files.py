"""What a gate reads and writes: baselines, calibrations, JUnit, Markdown, history."""

import json
import math
import re
import threading
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.bench.gate import calibrate, history, shown
from miyabi_llm.bench.gate.baseline import (
    Baseline,
    Conditions,
    conditions,
    read_baseline,
    write_baseline,
)
from miyabi_llm.bench.gate.expr import parse_all
from miyabi_llm.bench.gate.junit import as_junit
from miyabi_llm.bench.gate.markdown import as_markdown
from miyabi_llm.bench.gate.single import Against, judge_report
from miyabi_llm.bench.gate.values import Compared, Judgement, Outcome
from miyabi_llm.bench.report import Asked, Machine, Questions, Report, write_report
from miyabi_llm.bench.stats import Counts, Measured, Metric, Quantile
from miyabi_llm.bench.values import ClientHealth, Load
from miyabi_llm.errors import BadUsage, Corrupt, Missing

HEALTH = ClientHealth(None, None, None, 0.1, 1, 1.0, 1.0, True)
HERE = Machine("Linux x86_64", "A Processor", 4, 16 << 30, (), "f00")
NOISE = {"ttft_p50": 0.02, "output_tps": 0.02}


def report(ttft: float = 0.100, tps: float = 50.0, failed: int = 0, machine: Machine = HERE) -> Report:
    metrics = (
        Metric("ttft", "s", 200, ttft, percentiles={"p50": Quantile(ttft, ttft * 0.99, ttft * 1.01)}),
        Metric("output_tps", "tokens/s", 200, tps, better="higher"),
    )
    measured = Measured("llama", metrics, Counts(requests=200, ok=200 - failed, failed=failed))
    return Report(
        begun="2026-01-02T03:04:05+00:00",
        seconds=60.0,
        targets=(Asked("llama", "http://127.0.0.1:1", "m", "llama-cpp", "openai-chat"),),
        questions=Questions("chat", "ab" * 32, 20),
        load=Load(),
        health=HEALTH,
        machine=machine,
        measured=(measured,),
    )


RULES = parse_all(["ttft_p50 > +5%", "output_tps < -5%", "error_rate > +1%"])


@pytest.mark.parametrize(
    ("now", "outcome"),
    [
        (report(), "pass"),
        (report(ttft=0.125), "fail"),
        (report(tps=40.0), "fail"),
        (report(ttft=0.104), "inconclusive"),
        (report(ttft=0.080, tps=60.0), "pass"),
        (report(failed=40), "fail"),
        (replace(report(), invalid=("the client was late",)), "invalid"),
        (replace(report(), load=Load(concurrency=4)), "invalid"),
        (replace(report(), questions=Questions("chat", "cd" * 32, 20)), "invalid"),
    ],
)
def test_against_a_baseline(now: Report, outcome: str) -> None:
    found = judge_report(now, RULES, "llama", Against(Baseline(report(), noise=NOISE)))
    assert found.outcome == outcome, found.reasons


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (replace(HERE, cpu="Another"), "processor: A Processor then, Another now"),
        (replace(HERE, cores=2), "usable cores: 4 then, 2 now"),
        (replace(HERE, memory=8 << 30), "memory, GiB: 16 then, 8 now"),
        (replace(HERE, gpus=("A Card",)), "accelerators: none then, A Card now"),
        (replace(HERE, fingerprint="f01"), "fingerprint: f00 then, f01 now"),
    ],
)
def test_another_machines_baseline_is_refused_or_widened_loudly(other: Machine, words: str) -> None:
    old = Baseline(report(), noise=NOISE)
    refused = judge_report(report(machine=other), RULES, "llama", Against(old))
    assert refused.outcome == "invalid"
    assert words in "; ".join(refused.reasons)
    widened = judge_report(report(ttft=0.115, machine=other), RULES, "llama", Against(old, widen=True))
    assert widened.outcome == "pass"
    assert "ANOTHER MACHINE'S BASELINE" in widened.notes[0]
    assert "25%" in widened.notes[0]
    same = judge_report(report(ttft=0.125), RULES, "llama", Against(old, widen=True))
    assert same.outcome == "fail", "nothing is widened on the machine itself"


def test_conditions_that_differ() -> None:
    old = Baseline(report(), Conditions("6.1", "performance", 0.0), NOISE)
    slower = judge_report(report(), RULES, "llama", Against(old, Conditions("6.1", "powersave", 0.0)))
    assert (slower.outcome, "governor" in slower.reasons[0]) == ("invalid", True)
    busy = judge_report(report(), RULES, "llama", Against(old, Conditions("6.2", "performance", 1.5)))
    assert busy.outcome == "pass"
    assert [note.split(":")[0] for note in busy.notes] == ["another kernel", "the machine was busy now"]


def test_without_a_calibration_less_can_be_told_and_it_says_so() -> None:
    found = judge_report(report(ttft=0.106), RULES, "llama", Against(Baseline(report())))
    assert found.outcome == "inconclusive"
    assert "not known" in found.notes[0]


def test_bounds_need_no_baseline_and_changes_do() -> None:
    rules = parse_all(["ttft_p50 > 200ms", "error_rate > 1%"])
    assert judge_report(report(), rules, "llama").outcome == "pass"
    assert judge_report(report(ttft=0.3), rules, "llama").outcome == "fail"
    late = judge_report(report(), parse_all(["ttft_p99 > 200ms"]), "llama")
    assert late.outcome != "pass"
    assert "too few" in late.reasons[0]
    with pytest.raises(BadUsage, match="nothing to compare"):
        judge_report(report(), RULES, "llama")


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    old = Baseline(report(), Conditions("6.1", "performance", 0.25), NOISE)
    write_baseline(path, old)
    assert read_baseline(path) == old
    write_report(report(), path)
    assert read_baseline(path) == Baseline(report())
    with pytest.raises(BadUsage, match="no baseline"):
        write_baseline(path, Baseline(replace(report(), invalid=("late",))))


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"kind": "miyabi-llm baseline"}', "\x00", "[" * 100_000])
def test_a_damaged_baseline_is_explained(tmp_path: Path, text: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(Corrupt):
        read_baseline(path)
    path.unlink()
    with pytest.raises(Missing):
        read_baseline(path)


def test_fields_of_a_baseline_that_are_wrong(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    write_baseline(path, Baseline(report(), noise=NOISE))
    whole = json.loads(path.read_text())
    for key, value in (
        ("conditions", 3),
        ("conditions", {"kernel": 3}),
        ("noise", {"x": -1}),
        ("noise", []),
        ("report", {}),
    ):
        path.write_text(json.dumps(whole | {key: value}))
        with pytest.raises(Corrupt):
            read_baseline(path)


def test_conditions_are_looked_at(tmp_path: Path) -> None:
    assert conditions(tmp_path / "none").governor == ""
    (tmp_path / "governor").write_text("performance\n")
    assert conditions(tmp_path / "governor").governor == "performance"


def test_calibrations_keep_the_largest_noise(tmp_path: Path) -> None:
    def one(size: float) -> calibrate.Calibration:
        return calibrate.Calibration(
            "f00", "abc", "2026-01-02", 20, {"ttft_p50": calibrate.Floor(size, 2 * size, 3 * size)}
        )

    for size in (0.01, 0.03, 0.02):
        path = calibrate.keep(tmp_path / "new", one(size))
    assert calibrate.known(tmp_path / "new", "f00", "abc")["ttft_p50"].drift == pytest.approx(0.09)
    assert calibrate.known(tmp_path / "new", "f00", "other") == {}
    for _ in range(calibrate.KEPT):
        calibrate.keep(tmp_path / "new", one(0.001))
    assert calibrate.known(tmp_path / "new", "f00", "abc")["ttft_p50"].paired == pytest.approx(0.001)
    for text in ("{}", "nope", '[{"floors": 3}]'):
        path.write_text(text)
        with pytest.raises(Corrupt):
            calibrate.known(tmp_path / "new", "f00", "abc")


def judgement(outcome: Outcome, reason: str = "worse: +20%") -> Judgement:
    good = Compared(
        "ttft_p50", "relative", "pass", 1.0, 0.99, 1.01, 0.05, 0.1, 0.1, "s", 8, 64, "fine", rule="ttft_p50 > +5%"
    )
    rate = replace(good, metric="output_tps", outcome=outcome, value=1.25, low=1.2, high=1.3, a=50.0, b=40.0)
    rate = replace(rate, unit="tokens/s", reason=reason, rule="output_tps < -5%")
    bound = replace(good, metric="ttft_p95", kind="absolute", value=0.2, low=0.15, high=0.25, a=math.nan, b=0.2)
    bound = replace(bound, rule="ttft_p95 > 500ms")
    metrics = () if outcome == "invalid" else (good, rate, bound)
    return Judgement(outcome, metrics, (f"output_tps: {reason}",), ("old", "new"), 8, seconds=30.0, requests=(64, 64))


OUTCOMES: tuple[Outcome, ...] = ("pass", "fail", "inconclusive", "invalid")
CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"testcase", "system-out"},
    "testcase": {"failure", "error", "skipped"},
}
NEEDED = {"testsuite": {"name", "tests", "failures", "errors", "time"}, "testcase": {"name", "classname", "time"}}


def check_shape(element: ElementTree.Element) -> None:
    """The shape that the common JUnit schema (the one of the Jenkins xUnit plug-in) asks for."""
    assert NEEDED.get(element.tag, set()) <= set(element.keys()), element.tag
    for child in element:
        assert child.tag in CHILDREN.get(element.tag, set()), child.tag
        check_shape(child)
    if element.tag in ("testsuite", "testsuites"):
        cases = list(element.iter("testcase"))
        assert int(element.attrib["tests"]) == len(cases)
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(element.attrib[name]) == sum(c.find(tag) is not None for c in cases)


@pytest.mark.parametrize(
    ("outcome", "red", "skipped"), [("pass", 0, 0), ("fail", 1, 0), ("inconclusive", 0, 1), ("invalid", 1, 0)]
)
def test_junit_is_red_when_it_must_be(outcome: Outcome, red: int, skipped: int) -> None:
    top = ElementTree.fromstring(as_junit(judgement(outcome), begun="2026-01-02T03:04:05"))
    check_shape(top)
    assert int(top.attrib["failures"]) + int(top.attrib["errors"]) == red
    assert int(top.attrib["skipped"]) == skipped


@given(st.text(max_size=60))
def test_junit_and_markdown_hold_any_words(reason: str) -> None:
    check_shape(ElementTree.fromstring(as_junit(judgement("fail", reason))))
    text = as_markdown(judgement("fail", reason))
    assert sum(line.startswith("|") for line in text.splitlines()) == 5
    assert "<script" not in as_markdown(judgement("invalid", "<script>alert(1)</script>"))


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_summary_is_short_and_says_how_to_read_it(outcome: Outcome) -> None:
    text = as_markdown(judgement(outcome))
    assert shown.WORDS[outcome] in text.splitlines()[0]
    assert "99%" in text
    assert len(text.splitlines()) < 20
    cells = [line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("|")]
    assert len(set(cells)) <= 1
    if outcome == "fail":
        assert re.search(r"output\\_tps &lt; -5% \| FAIL \| 50 \| 40 \| -20.0% \| -23.1% to -16.7%", text), text


def entry(number: int, outcome: Outcome = "pass") -> history.Entry:
    return history.entry(
        judgement(outcome), at=f"2026-01-02T03:{number:02}:00+00:00", label=f"c{number}", machine="f00"
    )


def test_history_is_appended_and_read(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for number, outcome in enumerate(OUTCOMES):
        history.append(path, entry(number, outcome))
    entries, wrong = history.read(path)
    assert [e.outcome for e in entries] == list(OUTCOMES)
    assert not wrong
    assert entries[1].points["output_tps"].ratio == pytest.approx(1.25)
    assert not entries[3].points, "no figure of an invalid measurement is remembered"
    rows = history.table(entries).rows
    assert rows[1][:3] == ("2026-01-02T03:01:00+00:00", "c1", "FAIL")
    with pytest.raises(Missing):
        history.read(tmp_path / "none")


@pytest.mark.parametrize("torn", ["", "{", '{"schema": 9}', "null", "[]", '{"schema": 1, "outcome": "maybe"}', "\xff"])
def test_a_torn_line_swallows_no_other(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "history.jsonl"
    history.append(path, entry(1))
    with path.open("ab") as file:
        file.write(torn.encode("latin-1"))
    history.append(path, entry(2))
    entries, wrong = history.read(path)
    assert [e.label for e in entries] == ["c1", "c2"]
    assert len(wrong) == bool(torn)
    assert not wrong or wrong[0].startswith("line 2 ")


def _write(path: Path, number: int) -> None:
    for i in range(20):
        history.append(path, replace(entry(1), label=f"{number}-{i}"))


def test_writers_at_once_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    writers = [threading.Thread(target=_write, args=(path, n)) for n in range(3)]
    for w in writers:
        w.start()
    for w in writers:
        w.join()
    entries, wrong = history.read(path)
    assert not wrong
    assert sorted(e.label for e in entries) == sorted(f"{n}-{i}" for n in range(3) for i in range(20))


def test_the_trend_is_a_plot(tmp_path: Path) -> None:
    spec = history.trend([entry(n, o) for n, o in enumerate(OUTCOMES)])
    assert len(spec["data"]["values"]) == 9
    assert json.loads(json.dumps(spec, allow_nan=False)) == spec
    vl_convert = pytest.importorskip("vl_convert", reason="vl-convert-python is not installed: the plot is not drawn")
    drawn = vl_convert.vegalite_to_svg(spec)
    assert "ttft_p50, s" in drawn


def test_the_table_has_a_row_for_each_rule() -> None:
    assert [len(shown.table(judgement(o)).rows) for o in OUTCOMES] == [3, 3, 3, 0]
