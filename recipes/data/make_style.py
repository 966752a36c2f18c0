"""Write coding-style.jsonl: twelve rules of the house style, each on eight pieces of code. Both sides compile."""

from __future__ import annotations

import ast
import json
import random
from pathlib import Path

HERE = Path(__file__).parent
TARGET = HERE / "coding-style.jsonl"
INSTRUCTION = "Rewrite this in the house style."
# names that stand for $thing, $things, $verb and $field in the code below
NAMES = (
    ("order", "orders", "ship", "total"), ("user", "users", "invite", "email"), ("file", "files", "upload", "size"),
    ("job", "jobs", "start", "priority"), ("ticket", "tickets", "close", "owner"),
    ("sensor", "sensors", "read", "unit"), ("book", "books", "lend", "title"), ("route", "routes", "plan", "length"),
)  # fmt: skip


def rules() -> list[tuple[str, str]]:
    """Pairs of code, before and after."""
    lines = (HERE / "coding-style.txt").read_text(encoding="utf-8").splitlines()
    body = "\n".join(line for line in lines if not line.startswith("#"))
    pairs = [part.strip("\n").split("\n====\n") for part in body.split("\n----\n")]
    return [(before, after) for before, after in pairs]


def named(code: str, names: tuple[str, str, str, str]) -> str:
    """The code with names put in. Raises SyntaxError when it is no Python then."""
    thing, things, verb, field = names
    pairs = {
        "$Thing": thing.capitalize(),
        "$Verb": verb.capitalize(),
        "$things": things,
        "$thing": thing,
        "$verb": verb,
    }
    for mark, word in (pairs | {"$field": field}).items():
        code = code.replace(mark, word)
    ast.parse(code)
    return code


def text() -> str:
    """The file as it should be."""
    rows = [
        {"instruction": INSTRUCTION, "input": named(before, names), "output": named(after, names)}
        for before, after in rules()
        for names in NAMES
    ]
    random.Random(9).shuffle(rows)
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
