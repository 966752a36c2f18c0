"""A judgement as Markdown, short enough for a pull request and a job's summary. Pure."""

from __future__ import annotations

import html
import re

from miyabi_llm.bench.gate.shown import HEAD, MEANING, headline, row
from miyabi_llm.bench.gate.values import LEVEL, Judgement

_SIGNS = {"pass": "✅", "fail": "❌", "inconclusive": "❔", "invalid": "⚠️"}
_SPECIAL = re.compile(r"([\\`*_{}\[\]|#~])")
LONGEST = 600  # characters of one reason: a server's words can be long


def as_markdown(judgement: Judgement, *, title: str = "Benchmark gate") -> str:
    """Verdict, table, reasons, and how to read it. Append it to the file that `GITHUB_STEP_SUMMARY` names."""
    lines = [f"### {_SIGNS[judgement.outcome]} {_plain(title)}: {_plain(headline(judgement))}", ""]
    lines += [MEANING[judgement.outcome], ""]
    if judgement.metrics:
        lines += [_line(HEAD), _line(["---"] * len(HEAD))]
        lines += [_line([_plain(cell) for cell in row(c)]) for c in judgement.metrics]
        lines.append("")
    if judgement.outcome != "pass":
        lines += [f"- {_plain(reason)}" for reason in judgement.reasons]
        lines.append("")
    lines += [f"> {_plain(note)}" for note in judgement.notes]
    lines += ["", f"<sub>{_how(judgement)}</sub>", ""]
    return "\n".join(lines).replace("\n\n\n", "\n\n")


def _how(judgement: Judgement) -> str:
    if judgement.rounds:
        how = "Both servers got the same prompts in turn, in random order; whole rounds are resampled."
    else:
        how = "One run; its intervals know the noise within it."
    if judgement.outcome == "fail" and any(c.outcome == "inconclusive" for c in judgement.metrics):
        how += " It stopped at the first failure: rules that were open then stayed open."
    return (
        f"{how} The true value lies in the interval {LEVEL:.0%} of the time. A change fails when it is beyond the"
        " tolerance and its interval clear of half of it, passes when the whole interval is within the tolerance."
        f" Seed {judgement.seed}."
    )


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    flat = " ".join(text.split())
    short = flat if len(flat) <= LONGEST else f"{flat[: LONGEST - 1]}…"
    return _SPECIAL.sub(r"\\\1", html.escape(short, quote=False))
