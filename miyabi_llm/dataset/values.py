"""The values of a data set: a row as every stage after reading sees it, and what is wrong with one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

Kind = Literal["sft", "preference", "unpaired"]
Message = Mapping[str, str]
Messages = tuple[Message, ...]

# form of the file -> what its rows become
KINDS: dict[str, Kind] = {
    "messages": "sft", "sharegpt": "sft", "alpaca": "sft", "prompt-completion": "sft",
    "preference": "preference", "unpaired": "unpaired",
}  # fmt: skip
NEEDED: dict[str, Kind] = {"sft": "sft", "dpo": "preference", "orpo": "preference", "kto": "unpaired"}


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with row `number` (a line of the file, or its record); `fix` is what to do, where one is known."""

    number: int
    message: str
    fix: str = ""

    def __str__(self) -> str:
        return f"row {self.number}: {self.message}" + (f" ({self.fix})" if self.fix else "")


@dataclass(frozen=True)
class Row:
    """One row, normalized: `prompt` is all before the last answer.

    `answers` is one answer (sft, unpaired), or the chosen and the rejected one. `label` says whether an unpaired
    answer was good. `number` is its place in the file, `group` what the split keeps together.
    """

    kind: Kind
    prompt: Messages
    answers: tuple[Messages, ...]
    number: int
    label: bool | None = None
    group: str | None = None

    @cached_property
    def id(self) -> str:
        """12 hex digits of the sha256 of its content: the same content has the same name wherever it stands."""
        body = {k: v for k, v in self.body().items() if k not in ("id", "row")}
        return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]

    @property
    def last(self) -> Messages:
        """The answer that is learned from: of a pair the chosen one."""
        return self.answers[0]

    def body(self) -> dict[str, Any]:
        """The row as the files of a run hold it, without its id."""
        prompt = [dict(m) for m in self.prompt]
        answers = [[dict(m) for m in a] for a in self.answers]
        if self.kind == "preference":
            return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1], "row": self.number}
        body: dict[str, Any] = {"prompt": prompt, "completion": answers[0], "row": self.number}
        return body | ({"label": self.label} if self.kind == "unpaired" else {})

    def json(self) -> dict[str, Any]:
        """The row as the files of a run hold it."""
        return {"id": self.id} | self.body()

    def text(self) -> str:
        """All it says, for looking for likeness: roles left out."""
        return "\n".join(m["content"] for part in (self.prompt, *self.answers) for m in part)

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Row:
        """A row from the files of a run: the inverse of `json`."""
        kind: Kind = "preference" if "chosen" in body else "unpaired" if "label" in body else "sft"
        answers = (body["chosen"], body["rejected"]) if kind == "preference" else (body["completion"],)
        read = tuple(cast("Messages", tuple(a)) for a in answers)
        return cls(kind, tuple(body["prompt"]), read, int(body["row"]), body.get("label"))


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows are read: the `data` section of a recipe, without its files.

    `roles` maps names of roles to ours; `thinking` is what becomes of reasoning in answers.
    """

    format: str = "auto"
    roles: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None
    group: str | None = None
    thinking: Literal["keep", "strip", "none"] = "none"


@dataclass(frozen=True, slots=True)
class Read:
    """What a file held: `rows` that are fine, `problems` of the others; blank lines are neither.

    `format` is the form that was found; `total` counts rows and problems together.
    """

    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    format: str
    sha256: str = ""

    @property
    def total(self) -> int:
        """Rows in the file."""
        return len(self.rows) + len(self.problems)
