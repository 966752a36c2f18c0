"""Task sets: the shipped ones, and files of the same form; a bad row is named by its line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from miyabi_llm.bench.quality.checks import CHECKERS
from miyabi_llm.bench.quality.values import Question, TaskSet
from miyabi_llm.errors import BadUsage

BUILT_IN = ("code-review", "json", "japanese")
MOST_TOKENS = 32_768
_RULES: dict[str, dict[str, type]] = {
    "review": {"lines": list, "kinds": list},
    "json": {"schema": dict},
    "text": {"answers": list},
}


def load_tasks(names: Sequence[str]) -> tuple[TaskSet, ...]:
    """The task sets of these names, shipped or `.jsonl` files. Raises BadUsage."""
    sets = tuple(_load(name.strip()) for name in names)
    for kind, seen in (("task", [s.name for s in sets]), ("item", [q.id for s in sets for q in s.questions])):
        if double := {name for name in seen if seen.count(name) > 1}:
            raise BadUsage(f"the {kind} {min(double)!r} is there twice")
    return sets


def take(found: TaskSet, limit: int | None) -> tuple[Question, ...]:
    """`limit` items, spread evenly over the set and the same every time; all when it has no more."""
    questions = found.questions
    if limit is None or limit >= len(questions):
        return questions
    return tuple(questions[i * len(questions) // limit] for i in range(limit))


def parse(data: bytes, where: str) -> TaskSet:
    """A task set from the bytes of its file. Raises BadUsage with the line that is wrong."""
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as e:
        raise BadUsage(f"{where}: not UTF-8: {e}") from e
    rows = [(number, _row(line, f"{where}:{number}")) for number, line in enumerate(lines, 1) if line.strip()]
    if len(rows) < 2:
        raise BadUsage(f"{where}: a task set has a head and items", hint="docs/how-to/bench-quality.md shows the form.")
    head, place = rows[0][1], f"{where}:{rows[0][0]}"
    task = TaskSet(
        _text(head, "task", place),
        _text(head, "license", place),
        _text(head, "instruction", place),
        _text(head, "example", place),
        (),
        hashlib.sha256(data).hexdigest(),
    )
    questions = tuple(_question(row, task, f"{where}:{number}") for number, row in rows[1:])
    return TaskSet(task.name, task.license, task.instruction, task.example, questions, task.sha256)


def _load(name: str) -> TaskSet:
    if name in BUILT_IN:
        source = resources.files("miyabi_llm.data") / "quality" / f"{name}.jsonl"
        return parse(source.read_bytes(), name)
    if not name.endswith(".jsonl"):
        raise BadUsage(
            f"no task set is called {name!r}", hint=f"There are {', '.join(BUILT_IN)}, or give a .jsonl file."
        )
    try:
        return parse(Path(name).read_bytes(), name)
    except OSError as e:
        raise BadUsage(f"{name}: {e.strerror}") from e


def _row(line: str, place: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise BadUsage(f"{place}: not JSON: {e}") from e
    if not isinstance(value, dict):
        raise BadUsage(f"{place}: not a JSON object")
    return value


def _text(row: Mapping[str, Any], key: str, place: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise BadUsage(f"{place}: `{key}` must be a text")
    return value


def _question(row: Mapping[str, Any], task: TaskSet, place: str) -> Question:
    rule, most = row.get("check"), row.get("max_tokens", 64)
    kind = rule.get("kind") if isinstance(rule, dict) else None
    if not isinstance(rule, dict) or kind not in CHECKERS:
        raise BadUsage(f"{place}: `check.kind` must be one of {', '.join(CHECKERS)}")
    for key, wanted in _RULES[kind].items():
        if not isinstance(rule.get(key), wanted):
            raise BadUsage(f"{place}: `check.{key}` must be a {wanted.__name__}")
    if not isinstance(most, int) or isinstance(most, bool) or not 0 < most <= MOST_TOKENS:
        raise BadUsage(f"{place}: `max_tokens` must be a number from 1 to {MOST_TOKENS}")
    _check_values(kind, rule, place)
    prompt = _text(row, "prompt", place)
    asked = json.dumps([task.instruction, task.example, prompt, rule, most], sort_keys=True, ensure_ascii=False)
    sha256 = hashlib.sha256(asked.encode()).hexdigest()
    return Question(_text(row, "id", place), task.name, prompt, rule, most, _text(row, "license", place), sha256)


def _check_values(kind: str, rule: Mapping[str, Any], place: str) -> None:
    if kind == "json":
        from jsonschema import Draft202012Validator, SchemaError

        try:
            Draft202012Validator.check_schema(rule["schema"])
        except SchemaError as e:
            raise BadUsage(f"{place}: `check.schema` is no JSON schema: {e.message[:200]}") from e
        if "$ref" in json.dumps(rule["schema"]):
            raise BadUsage(f"{place}: `check.schema` must not refer to others")
        return
    types = {"lines": int, "kinds": str, "answers": str}
    for key in _RULES[kind]:
        if not all(isinstance(v, types[key]) for v in rule[key]):
            raise BadUsage(f"{place}: `check.{key}` must hold {types[key].__name__}s")
