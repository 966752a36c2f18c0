"""What a measurement of quality is made of: task sets, how they are asked, graded answers, scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

SCHEMA = 1  # of a stored report

CheckKind = Literal["review", "json", "text"]


@dataclass(frozen=True, slots=True)
class Question:
    """One item: what is asked, and what an answer is checked against.

    `check` is what `checks.check` takes. `max_tokens` bounds the answer. `sha256` is that of the words asked and of
    the check: two answers are compared only when theirs are the same.
    """

    id: str
    task: str
    prompt: str
    check: Mapping[str, Any]
    max_tokens: int
    license: str
    sha256: str


@dataclass(frozen=True, slots=True)
class TaskSet:
    """A file of items. `instruction` comes before each; `example` is a worked one, for models without a chat template.

    `sha256` is the file's.
    """

    name: str
    license: str
    instruction: str
    example: str
    questions: tuple[Question, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class How:
    """How items are asked.

    `limit` takes so many items of each task, spread evenly. `twice` is how many are asked a second time. `max_tokens`
    replaces the items' own bound. `concurrency` above 1 lets servers batch, which may change what they answer.
    """

    limit: int | None = None
    twice: int = 20
    max_tokens: int | None = None
    concurrency: int = 1
    seed: int = 1
    timeout_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Graded:
    """One answer, judged. `error` says why there is none; `again` is the second answer, where it was asked twice.

    `cut`: it ended at the token limit.
    """

    id: str
    task: str
    sha256: str
    right: bool
    why: str
    answer: str
    error: str = ""
    cut: bool = False
    again: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """Right answers of one task, with the Wilson interval of their share. `cut` of them ended at the token limit."""

    task: str
    n: int
    right: int
    share: float
    low: float
    high: float
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Drift:
    """Of `asked` items asked twice at temperature 0, how many gave the same text, with the Wilson interval."""

    asked: int
    same: int
    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Report:
    """A measurement of one model at one server. `invalid` says why it must not be used, empty when it may.

    `model_sha256` is known for models of the store only. `tasks` maps each task to its file's hash.
    """

    schema: int
    name: str
    model: str
    model_sha256: str | None
    server: str
    date: str
    speech: str
    how: How
    tasks: Mapping[str, str]
    scores: tuple[Score, ...]
    total: Score
    drift: Drift | None
    items: tuple[Graded, ...]
    seconds: float
    invalid: tuple[str, ...] = ()
