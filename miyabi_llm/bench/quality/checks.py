"""Exact checkers: whether an answer is right, and why not. Pure; no text makes them fail."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

MOST = 20_000  # characters of an answer that are looked at

# What a review's answer may call a defect.
DEFECTS = ("injection", "bounds", "null", "leak", "race", "zero", "logic", "secret", "error")

_THOUGHT = re.compile(r"\A\s*<think>.*?(?:</think>|\Z)", re.DOTALL)
_FENCE = re.compile(r"\A```[A-Za-z]*\n(.*?)\n?```\Z", re.DOTALL)
_REVIEW = re.compile(r"BUG +(\d{1,6}) +([a-z]+)\.?")
_LEAD = re.compile(r"\A(?:答え|回答|解答|答|answer)\s*(?:は|:)\s*", re.IGNORECASE)
_AROUND = " \t\u3000。．.、,「」『』\"'`*“”"


class Judged(NamedTuple):
    """Whether an answer is right; `why` not, in a few words, empty when it is."""

    right: bool
    why: str = ""


def check(answer: str, rule: Mapping[str, Any]) -> Judged:
    """Judge `answer` by `rule`, whose `kind` names the checker. Raises KeyError when the rule itself is wrong."""
    return CHECKERS[rule["kind"]](_THOUGHT.sub("", answer[:MOST]).strip(), rule)


def review(answer: str, rule: Mapping[str, Any]) -> Judged:
    """`OK`, or `BUG <line> <kind>`: the first line counts, and must be exactly that.

    `rule`: `lines` (empty for a diff without a defect) and `kinds` that are right.
    """
    line = _first(answer).strip("`*. ")
    if line == "OK":
        return Judged(False, "missed the defect") if rule["lines"] else Judged(True)
    found = _REVIEW.fullmatch(line)
    if found is None or found[2] not in DEFECTS:
        return Judged(False, "not in the form asked for")
    if not rule["lines"]:
        return Judged(False, "a false alarm")
    if int(found[1]) not in rule["lines"]:
        return Judged(False, "another line")
    return Judged(True) if found[2] in rule["kinds"] else Judged(False, "the line, but another kind")


def as_json(answer: str, rule: Mapping[str, Any]) -> Judged:
    """One JSON value, bare or in one fenced block, that follows `rule["schema"]`, which holds the right values too."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    fenced = _FENCE.match(answer)
    try:
        value = json.loads(fenced[1] if fenced else answer, parse_constant=_no_constant)
        wrong = best_match(Draft202012Validator(rule["schema"]).iter_errors(value))
    except (ValueError, RecursionError, OverflowError):
        return Judged(False, "not JSON")
    return Judged(True) if wrong is None else Judged(False, f"{wrong.json_path}: {wrong.validator}")


def text(answer: str, rule: Mapping[str, Any]) -> Judged:
    """The first line is one of `rule["answers"]`, after NFKC, without quotes, full stops and spaces around it."""
    line = unicodedata.normalize("NFKC", _first(answer)).strip(_AROUND)
    said = _plain(_LEAD.sub("", line))
    return Judged(True) if said in {_plain(a) for a in rule["answers"]} else Judged(False, "another answer")


CHECKERS: dict[str, Callable[[str, Mapping[str, Any]], Judged]] = {"review": review, "json": as_json, "text": text}


def _first(answer: str) -> str:
    return next((line.strip() for line in answer.splitlines() if line.strip()), "")


def _plain(said: str) -> str:
    folded = unicodedata.normalize("NFKC", said).casefold()
    return re.sub(r"\s+", "", folded.strip(_AROUND)).replace(",", "")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
