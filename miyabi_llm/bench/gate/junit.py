"""A judgement as JUnit XML, for the test views of CI systems: a test case for each rule. Pure."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from miyabi_llm.bench.gate.shown import headline
from miyabi_llm.bench.gate.values import Compared, Judgement

# What XML 1.0 cannot hold, escaped or not; a server's error message can.
_UNSPEAKABLE = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_junit(judgement: Judgement, *, name: str = "miyabi-llm bench", begun: str = "") -> str:
    """The XML text. A failed rule is a failure, an invalid one an error, one that cannot be told is skipped.

    An invalid measurement has one case more, `measurement`, which is an error: nothing of it shows green. `begun` is
    the time in ISO 8601.
    """
    suite = ElementTree.Element("testsuite", {"name": _text(name)})
    rules = [_case(suite, c, judgement) for c in judgement.metrics]
    if judgement.outcome == "invalid" and "error" not in rules:
        case = ElementTree.SubElement(suite, "testcase", _name("measurement", judgement))
        _say(case, "error", "; ".join(judgement.reasons), "invalid")
        rules.append("error")
    counts = {kind: str(rules.count(kind)) for kind in ("failure", "error", "skipped")}
    suite.attrib |= {
        "tests": str(len(rules)),
        "failures": counts["failure"],
        "errors": counts["error"],
        "skipped": counts["skipped"],
        "time": f"{judgement.seconds:.3f}",
    }
    if begun:
        suite.set("timestamp", _text(begun))
    out = ElementTree.SubElement(suite, "system-out")
    out.text = _text("\n".join([headline(judgement), *judgement.notes]))
    top = ElementTree.Element("testsuites", {k: v for k, v in suite.attrib.items() if k != "timestamp"})
    top.append(suite)
    ElementTree.indent(top)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(top, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, c: Compared, judgement: Judgement) -> str:
    case = ElementTree.SubElement(suite, "testcase", _name(c.rule or c.metric, judgement))
    kind = {"pass": "", "fail": "failure", "invalid": "error", "inconclusive": "skipped"}[c.outcome]
    if kind:
        _say(case, kind, c.reason, c.outcome)
    return kind


def _name(name: str, judgement: Judgement) -> dict[str, str]:
    return {"name": _text(name), "classname": _text(f"bench.{judgement.names[1]}"), "time": "0"}


def _say(case: ElementTree.Element, kind: str, message: str, type_: str) -> None:
    said = ElementTree.SubElement(case, kind, {"message": _text(message)})
    if kind != "skipped":  # the common schema gives it no type
        said.set("type", type_)
    said.text = _text(message)


def _text(text: str) -> str:
    return _UNSPEAKABLE.sub("\N{REPLACEMENT CHARACTER}", text)
