"""What a data set is like, as a report with row numbers. Pure: it looks at rows, and at them as tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from miyabi_llm.dataset import alike
from miyabi_llm.dataset.facts import Facts
from miyabi_llm.dataset.values import Problem, Read, Row

Level = Literal["error", "warning", "note"]
SHOWN = 20  # row numbers named in a finding
COPIED_WIDTH = 40  # characters in a row that a held-out answer has in common with rows that are learned
COPIED = 0.5  # share of a held-out answer's such strings that makes it contaminated
BINS = 10
LITTLE = 0.02  # share of trained tokens below which most of the work is for the prompt

Scan = Callable[[str], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Finding:
    """One judgement: `check` is its name, `rows` the first row numbers it is about, `count` how many there are."""

    check: str
    level: Level
    message: str
    rows: tuple[int, ...] = ()
    count: int = 0
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The whole: counts that add up (`total` = `rows` + `bad`), what the tokens are like, and the findings."""

    total: int
    rows: int
    bad: int
    format: str
    learn: int
    held: int
    findings: tuple[Finding, ...]
    tokens: Mapping[str, Any] = field(default_factory=dict)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop a run."""
        return tuple(f for f in self.findings if f.level == "error")


@dataclass(frozen=True, slots=True)
class Looked:
    """All that is looked at: the files as read, the rows of each side, and their facts where a tokenizer was there.

    `near` are pairs of near-duplicates, the earlier one first; `special` is what the render job told of special tokens;
    `max_length` in tokens.
    """

    train: Read
    learn: Sequence[Row]
    held: Sequence[Row]
    eval: Read | None = None
    near: Sequence[tuple[Row, Row]] = ()
    facts: Sequence[Facts] | None = None
    special: Mapping[str, Any] = field(default_factory=dict)
    max_length: int | None = None
    over_length: str = "drop"


def judge(looked: Looked, scan: Scan | None = None) -> Report:
    """Judge a data set. `scan` names the kinds of secrets and personal data in a text; None looks for none."""
    away = [replace(p, message=f"held-out file: {p.message}") for p in (looked.eval.problems if looked.eval else ())]
    problems = [*looked.train.problems, *away]
    rows = [*looked.learn, *looked.held]
    findings = [*_problems(problems), *_copies(rows, looked), *_overlap(looked), *_contaminated(looked)]
    if scan is not None:
        findings += _secrets(rows, scan)
    if looked.facts is not None:
        findings += _tokens(looked, looked.facts)
    total = looked.train.total + (looked.eval.total if looked.eval else 0)
    order = {"error": 0, "warning": 1, "note": 2}
    return Report(
        total, total - len(problems), len(problems), looked.train.format, len(looked.learn), len(looked.held),
        tuple(sorted(findings, key=lambda f: order[f.level])), _figures(looked),
    )  # fmt: skip


def near(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Pairs of rows that are nearly, but not quite, the same; the earlier one first."""
    found = alike.pairs([r.text() for r in rows])
    return [(rows[a], rows[b]) for a, b, _ in found if rows[a].id != rows[b].id]


def finding(check: str, level: Level, message: str, numbers: Iterable[int], fix: str = "") -> Finding:
    """A finding about rows; `{n}` in the message is how many there are."""
    found = sorted(set(numbers))
    rows = "1 row" if len(found) == 1 else f"{len(found):,} rows"
    return Finding(check, level, message.replace("{n}", rows), tuple(found[:SHOWN]), len(found), fix)


def _problems(problems: Sequence[Problem]) -> Iterable[Finding]:
    """Rows that cannot be read, one finding for each kind of trouble."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for p in problems:
        kinds.setdefault((p.message, p.fix), []).append(p.number)
    for (message, fix), numbers in kinds.items():
        yield finding("unreadable", "error", f"{{n}}: {message}", numbers, fix)


def _copies(rows: Sequence[Row], looked: Looked) -> Iterable[Finding]:
    first: dict[str, int] = {}
    same = [r.number for r in rows if first.setdefault(r.id, id(r)) != id(r)]
    if same:
        yield finding("duplicate", "warning", "{n} say what an earlier one says", same, "remove them")
    if looked.near:
        later = [b.number for _, b in looked.near]
        message = f"{{n}} are nearly what an earlier one is (likeness {alike.LIKE} and more)"
        yield finding("near-duplicate", "note", message, later, "they stay on one side of the split")


def _overlap(looked: Looked) -> Iterable[Finding]:
    """Rows that are learned and held out as well."""
    learned = {r.id for r in looked.learn}
    asked = {str(r.prompt) for r in looked.learn}
    both = [r.number for r in looked.held if r.id in learned]
    fix = "leave `data.eval` out to have it split, or remove them from one file"
    if both:
        yield finding("overlap", "error", "{n} of the held-out ones are learned as well", both, fix)
    sides = {r.id for r in looked.held}
    near = [(b if b.id in sides else a).number for a, b in looked.near if (a.id in sides) != (b.id in sides)]
    if near:
        yield finding("overlap", "warning", "{n} held out are nearly what a learned one is", near, fix)
    prompts = [r.number for r in looked.held if r.id not in learned and str(r.prompt) in asked]
    if prompts:
        yield finding("overlap", "warning", "{n} of the held-out ones ask what is asked in a learned one", prompts, fix)


def _contaminated(looked: Looked) -> Iterable[Finding]:
    """Held-out answers of which much stands word for word in rows that are learned."""
    if not looked.held or not looked.learn:
        return
    import numpy as np

    learned = np.unique(np.concatenate([alike.shingles(r.text(), COPIED_WIDTH) for r in looked.learn]))
    copied = []
    for row in looked.held if len(learned) else ():
        answer = "\n".join(m["content"] for m in row.last)
        if len(alike.plain(answer)) < COPIED_WIDTH:
            continue
        own = alike.shingles(answer, COPIED_WIDTH)
        at = np.minimum(np.searchsorted(learned, own), len(learned) - 1)  # isin would sort all of `learned` each time
        if (learned[at] == own).mean() >= COPIED:
            copied.append(row.number)
    if copied:
        message = (
            f"most of the answer in {{n}} held out stands in learned ones, {COPIED_WIDTH} letters and more at once"
        )
        yield finding("contamination", "warning", message, copied, "the evaluation measures what was learned by heart")


def _secrets(rows: Sequence[Row], scan: Scan) -> Iterable[Finding]:
    kinds: dict[str, list[int]] = {}
    for row in rows:
        for kind in set(scan(row.text())):
            kinds.setdefault(kind, []).append(row.number)
    for kind, numbers in sorted(kinds.items()):
        yield finding(
            "secret", "warning", f"what looks like {kind} is in {{n}}", numbers, "a model repeats what it learned"
        )


def _tokens(looked: Looked, facts: Sequence[Facts]) -> Iterable[Finding]:
    """What only shows once rows are tokens."""
    fine = [f for f in facts if not f.error]
    for error in dict.fromkeys(f.error for f in facts if f.error):
        numbers = [f.number for f in facts if f.error == error]
        yield finding("template", "error", f"the model's template refuses {{n}}: {error}", numbers)
    yield from _told(
        [
            ("lost-text", "error", "{n} lose a turn when they are rendered: the template leaves its text out",
             [f.number for f in fine if f.lost and not f.thought_lost], "check the names of the roles"),
            ("lost-thought", "error", "{n} lose their reasoning when they are rendered",
             [f.number for f in fine if f.thought_lost], "say data.thinking: strip, or take another template"),
            ("untrained", "error", "{n} have no trained token", [f.number for f in fine if f.trained == 0], ""),
            ("no-end", "error", "{n} do not train the end of the answer: the model would never stop",
             [f.number for f in fine if f.trained and not f.ends], "its template does not close the last turn"),
            ("double-bos", "error", "{n} begin with two begin tokens", [f.number for f in fine if f.double_bos], ""),
            ("mask", "note", "in {n} the prompt alone is rendered otherwise than before its answer",
             [f.number for f in fine if f.unlike], "training begins where they part"),
            ("little-trained", "note", f"{{n}} train less than {LITTLE:.0%} of their tokens",
             [f.number for f in fine if 0 < f.trained < LITTLE * f.tokens], ""),
        ]
    )  # fmt: skip
    if looked.max_length is not None:
        long = [f.number for f in fine if f.tokens > looked.max_length]
        if long:
            level: Level = "error" if looked.over_length == "fail" else "warning"
            what = "and are refused" if level == "error" else "and are left out"
            message = f"{{n}} have more than {looked.max_length:,} tokens (data.max_length) {what}"
            yield finding("over-length", level, message, long, "an answer is never cut")
    if looked.special.get("pad") is not None and looked.special.get("pad") in looked.special.get("eos", ()):
        yield Finding("pad", "note", "the pad token is an end token; padding is masked by its place, not by its name")


def _told(checks: Iterable[tuple[str, Level, str, Sequence[int], str]]) -> Iterable[Finding]:
    for check, level, message, numbers, fix in checks:
        if numbers:
            yield finding(check, level, message, numbers, fix)


def _figures(looked: Looked) -> Mapping[str, Any]:
    """Counts of tokens: in all, trained, by length, and how often begin and end tokens stand in a row."""
    fine = [f for f in looked.facts or () if not f.error]
    if not fine:
        return {}
    lengths = sorted(f.tokens for f in fine)
    total, trained = sum(lengths), sum(f.trained for f in fine)
    return {
        "total": total,
        "trained": trained,
        "trained_ratio": round(trained / total, 4) if total else 0.0,
        "shortest": lengths[0],
        "median": lengths[len(lengths) // 2],
        "p95": lengths[min(len(lengths) - 1, int(0.95 * len(lengths)))],
        "longest": lengths[-1],
        "histogram": histogram(lengths),
        "bos": _counts(f.bos for f in fine),
        "eos": _counts(f.eos for f in fine),
    }


def histogram(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """`(longest, how many)` of up to ten bins of one width."""
    width = max(1, -(-max(lengths) // BINS))
    found: dict[int, int] = {}
    for n in lengths:
        found[-(-n // width) * width] = found.get(-(-n // width) * width, 0) + 1
    return sorted(found.items())


def _counts(values: Iterable[int]) -> dict[str, int]:
    """How many rows have a token so often."""
    found: dict[str, int] = {}
    for v in sorted(values):
        found[str(v)] = found.get(str(v), 0) + 1
    return found
