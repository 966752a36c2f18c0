"""What is known of a row once it is tokens: pure, so that the child that renders and the lint that judges share it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Special:
    """The special tokens of a model, by id. `eos` are all that end an answer."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


@dataclass(frozen=True, slots=True)
class Facts:
    """One row as tokens.

    `tokens` in all, `trained` of them; `sha` names the ids and the mask. `lost` are the turns (from 1) whose text is
    not in the rendered one. `bos` and `eos` count those tokens, `double_bos` says that the row begins with two.
    `ends` says that the last trained token that is no blank ends the answer. `unlike` counts tokens of the prompt that
    are not the same when the answer follows. `blank` is an empty text, else what the template said was wrong.
    """

    id: str
    number: int
    tokens: int = 0
    trained: int = 0
    sha: str = ""
    lost: tuple[int, ...] = ()
    bos: int = 0
    eos: int = 0
    double_bos: bool = False
    ends: bool = False
    thought_lost: bool = False
    unlike: int = 0
    error: str = ""

    def json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Facts:
        """The inverse of `json`."""
        return cls(**{**body, "lost": tuple(body["lost"])})


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row's text and its token ids; `prompt` are the ids of the prompt alone, with the words that open an answer.

    `blank` are ids of the row whose text is only white space.
    """

    text: str
    ids: Sequence[int]
    prompt: Sequence[int]
    blank: frozenset[int] = frozenset()

    @property
    def start(self) -> int:
        """Where the trained tokens begin: at the first one that the prompt alone does not have."""
        same = 0
        for a, b in zip(self.prompt, self.ids, strict=False):
            if a != b:
                break
            same += 1
        return same


def digest(ids: Sequence[int], start: int) -> str:
    """A name for token ids and where training begins in them: 16 hex digits."""
    return hashlib.sha256(f"{start}:{','.join(map(str, ids))}".encode()).hexdigest()[:16]


def facts(id_: str, number: int, turns: Sequence[Mapping[str, str]], rendered: Rendered, special: Special) -> Facts:
    """What is known of one rendered row. `turns` are all its messages, the answer last."""
    ids, start = rendered.ids, rendered.start
    trained = [i for i in ids[start:] if i not in rendered.blank]
    return Facts(
        id_,
        number,
        tokens=len(ids),
        trained=len(ids) - start,
        sha=digest(ids, start),
        lost=tuple(i for i, turn in enumerate(turns, 1) if not _in(turn["content"], rendered.text)),
        bos=sum(1 for i in ids if i == special.bos),
        eos=sum(1 for i in ids if i in special.eos),
        double_bos=special.bos is not None and list(ids[:2]) == [special.bos, special.bos],
        ends=bool(trained) and trained[-1] in special.eos,
        thought_lost=any(not _in(t, rendered.text) for turn in turns for t in _THOUGHT.findall(turn["content"])),
        unlike=len(rendered.prompt) - start,
    )


def _in(content: str, text: str) -> bool:
    """Whether a turn is in the rendered text. Templates may cut white space at its ends, and nothing else."""
    return content.strip() in text
