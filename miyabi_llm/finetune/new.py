"""A recipe to start from, made of one's own rows: what can be seen in them is filled in, the rest are good defaults."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from miyabi_llm.dataset import KINDS, Read, Reading, forms, read
from miyabi_llm.errors import BadUsage
from miyabi_llm.finetune import load as loading
from miyabi_llm.finetune.recipe import Recipe

METHODS = {"sft": "sft", "preference": "dpo", "unpaired": "kto"}
LETTERS_PER_TOKEN = 2.5  # fewer than usual, for room: English has about 4, Japanese about 1.5
ROWS_SEEN = 600  # rows a tune should see at least, over all epochs
_ROLE = re.compile(r"data\.roles\.(?P<name>[^=]+)=(?P<role>\w+)")


@dataclass(frozen=True, slots=True)
class Seen:
    """What rows are like: how many can be read, their form, roles that are not ours, and the longest in letters."""

    rows: int
    bad: int
    form: str
    longest: int
    roles: Mapping[str, str] = field(default_factory=dict)
    thinking: bool = False
    first_problem: str = ""


@dataclass(frozen=True, slots=True)
class Answers:
    """What was asked of a person: the rows, the base, the name, and how weights are trained."""

    data: Path
    base: str = "qwen2.5-coder:1.5b"
    name: str = "my-tune"
    lora: str = "qlora"
    system: str | None = None


def look(path: Path) -> Seen:
    """Read a file of rows as it is; unknown roles are taken for what they most likely mean, and told.

    Raises BadUsage for what is no file of rows.
    """
    reading = Reading(thinking="keep")
    found = read(path, reading)
    roles: dict[str, str] = {}
    for _ in range(len(forms.MEANT) + 4):
        more = {m["name"]: m["role"] for p in found.problems if (m := _ROLE.search(p.fix)) and m["name"] not in roles}
        if not more:
            break
        roles |= more
        found = read(path, replace(reading, roles=roles))
    return _seen(found, roles)


def _seen(found: Read, roles: Mapping[str, str]) -> Seen:
    longest = max((len(r.text()) for r in found.rows), default=0)
    thinking = any("<think>" in m["content"] for r in found.rows for a in r.answers for m in a)
    first = str(found.problems[0]) if found.problems else ""
    return Seen(len(found.rows), len(found.problems), found.format, longest, dict(roles), thinking, first)


def compose(answers: Answers, seen: Seen, target: Path) -> str:
    """The text of a recipe for `target`, with what each key means behind it. Raises BadUsage where it is no recipe."""
    if not seen.rows:
        raise BadUsage(f"{answers.data}: no row can be read: {seen.first_problem or 'it is empty'}",
                       hint="`miyabi-llm data lint FILE` names each row and the way out.")  # fmt: skip
    method = METHODS[KINDS[seen.form]]
    try:
        train = os.path.relpath(answers.data.absolute(), target.absolute().parent)
    except ValueError:  # another drive
        train = str(answers.data.absolute())
    length = 128
    while length * LETTERS_PER_TOKEN < seen.longest and length < 8192:
        length *= 2
    values: dict[str, Any] = {
        "base.model": answers.base,
        "data.train": train,
        "data.format": seen.form,
        **({"data.roles": dict(seen.roles)} if seen.roles else {}),
        "data.eval_fraction": 0.2 if seen.rows < 500 else 0.1,
        "data.max_length": length,
        **({"data.bad_rows": "skip"} if seen.bad else {}),
        **({"data.system": answers.system} if answers.system else {}),
        "data.thinking": "keep" if seen.thinking else "none",
        "lora.method": answers.lora,
        "lora.rank": 16,
        "lora.alpha": 32,
        "train.method": method,
        "train.epochs": max(1, min(10, round(ROWS_SEEN / seen.rows))),
        "train.batch_size": 1,
        "train.grad_accum": 8,
        "train.learning_rate": 2e-4 if method == "sft" else 5e-5,
        "train.save_steps": 50,
        "evaluate.metric": "preference" if method in ("dpo", "orpo") else "loss",
        "evaluate.samples": 64,
        "evaluate.forgetting": "builtin",
        "gates.min_gain": 0.0,
        "gates.parity": True,
        "export.name": answers.name,
        "export.types": ["Q8_0", "Q4_K_M"],
    }
    text = _text(values, seen, answers)
    loading.parse(text, str(target))
    return text


def _text(values: Mapping[str, Any], seen: Seen, answers: Answers) -> str:
    known = dict(loading.keys(Recipe))
    lines = [f"# Made by `miyabi-llm finetune new` of {answers.data.name}: {seen.rows:,} rows ({seen.form})."]
    section = ""
    for name, value in values.items():
        head, _, key = name.partition(".")
        if head != section:
            section = head
            lines += ["", f"{head}:"]
        said = f"  {key}: {_yaml(value)}"
        lines.append(f"{said:<40} # {known[name].description}")
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("\n...\n").strip()


def roles_told(seen: Seen) -> str:
    """The roles that were guessed, for a person to look at. Pure."""
    counted = Counter(seen.roles.values())
    return ", ".join(f"{a} = {b}" for a, b in seen.roles.items()) if counted else ""
