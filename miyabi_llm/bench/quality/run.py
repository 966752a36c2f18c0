"""Measure one model's quality: ask every item, check the answers, ask some again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from miyabi_llm.bench.quality.ask import Asked, Asker, silent
from miyabi_llm.bench.quality.checks import check
from miyabi_llm.bench.quality.tasks import take
from miyabi_llm.bench.quality.values import SCHEMA, Drift, Graded, How, Report, Score, TaskSet
from miyabi_llm.bench.stats.intervals import wilson
from miyabi_llm.bench.values import Sample, Target
from miyabi_llm.types import OnEvent
from miyabi_llm.types import silent as say_nothing

ALL = "all"


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a running server and the dialect to ask it in; the model's hash where it is known."""

    target: Target
    model_sha256: str | None = None


def measure(subject: Subject, sets: Sequence[TaskSet], how: How, on_event: OnEvent = say_nothing) -> Report:
    """Ask and grade; never raises for what the server does to single items: they make the report invalid.

    A base model is asked by completions: the dialect of the target says so.
    """
    began, date = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    target = subject.target
    asked: list[Asked] = [(q, s) for s in sets for q in take(s, how.limit)]
    with Asker(target, how, on_event) as asker:
        items = [_graded(one, sample) for one, sample in zip(asked, asker.ask(asked, "items"), strict=True)]
        again = _spread(len(asked), how.twice) if not all(i.error for i in items) else []
        second = asker.ask([asked[i] for i in again], "the same again") if again else []
    for index, sample in zip(again, second, strict=True):
        if sample is not None and (sample.ok or silent(sample)):
            items[index] = replace(items[index], again=sample.text)
    return Report(
        schema=SCHEMA,
        name=target.name,
        model=target.endpoint.model,
        model_sha256=subject.model_sha256,
        server=target.endpoint.backend or target.endpoint.base_url,
        date=date,
        speech=target.speech,
        how=how,
        tasks={s.name: s.sha256 for s in sets},
        scores=tuple(score(s.name, [i for i in items if i.task == s.name]) for s in sets),
        total=score(ALL, items),
        drift=_drift(items),
        items=tuple(items),
        seconds=time.monotonic() - began,
        invalid=_invalid(items),
    )


def score(task: str, items: Sequence[Graded]) -> Score:
    """The share of right answers among those that came."""
    came = [i for i in items if not i.error]
    right = sum(i.right for i in came)
    low, high = wilson(right, len(came))
    return Score(
        task, len(came), right, right / len(came) if came else 0.0, low, high, sum(i.cut and not i.right for i in came)
    )


def _graded(one: Asked, sample: Sample | None) -> Graded:
    question = one[0]
    blank = Graded(question.id, question.task, question.sha256, False, "", "")
    if sample is None:
        return replace(blank, error="not sent: nothing answered")
    if not sample.ok and not silent(sample):
        return replace(blank, error=f"{sample.error}: {sample.detail}"[:300])
    judged = check(sample.text, question.check)
    return replace(
        blank, right=judged.right, why=judged.why, answer=sample.text, cut=sample.finish in ("length", "max_tokens")
    )


def _spread(n: int, wanted: int) -> list[int]:
    """`wanted` of `n` indices, evenly."""
    wanted = min(n, wanted)
    return [i * n // wanted for i in range(wanted)]


def _drift(items: Sequence[Graded]) -> Drift | None:
    twice = [i for i in items if i.again is not None and not i.error]
    if not twice:
        return None
    same = sum(i.again == i.answer for i in twice)
    return Drift(len(twice), same, same / len(twice), *wilson(same, len(twice)))


def _invalid(items: Sequence[Graded]) -> tuple[str, ...]:
    failed = Counter(i.error for i in items if i.error)
    return tuple(f"{n} of {len(items)} items did not run: {error}" for error, n in failed.most_common(5))
