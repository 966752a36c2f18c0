"""Write code-review.jsonl and preference.jsonl from code-review.txt: each defect once as it is, and once mended."""

from __future__ import annotations

import ast
import json
import random
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
SYSTEM = (
    "Review the diff. Its lines are numbered. It has at most one defect, in a line that begins with +. "
    "Answer `OK`, or `BUG`, the line's number and the kind of defect, then why and what to do."
)
VAGUE = (
    "Looks good to me!", "I would maybe add some comments here.", "Please run the tests before merging this.",
    "Nice change. Consider more descriptive names.", "This could perhaps be written more elegantly.",
    "BUG somewhere, please check again.", "Have you thought about performance?", "I am not sure about this one.",
)  # fmt: skip
KINDS = ("injection", "bounds", "null", "leak", "race", "zero", "logic", "secret", "error")


@dataclass
class Entry:
    """One defect: its kind, the file, the lines of the diff with their marks, and the review."""

    kind: str
    file: str
    lines: list[str] = field(default_factory=list)
    review: str = ""

    def diff(self, *, mended: bool) -> tuple[str, int]:
        """The numbered diff, and the number of the first line that came."""
        marks = "=" if mended else "+!"
        shown = [("+" + line[1:]) if line[0] in marks else line for line in self.lines if line[0] in " -" + marks]
        at = next(i for i, line in enumerate(shown, 1) if line[0] == "+")
        return f"File {self.file}\n" + "\n".join(f"{i} | {line}" for i, line in enumerate(shown, 1)), at

    def code(self, *, mended: bool) -> str:
        """The file's part as it would be after the change."""
        keep = " =" if mended else " +!"
        return textwrap.dedent("\n".join(line[1:] for line in self.lines if line[0] in keep))


def entries() -> list[Entry]:
    """Everything in code-review.txt, checked: known kinds, a defect and its mending, and Python that compiles."""
    found: list[Entry] = []
    for line in (HERE / "code-review.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("### "):
            found.append(Entry(*line[4:].split(" ", 1)))
        elif line.startswith("> "):
            found[-1].review = line[2:]
        elif not line.startswith("#"):
            found[-1].lines.append(line or " ")
    for entry in found:
        assert entry.kind in KINDS, entry
        assert entry.review, entry
        assert {"+", "="} <= {line[0] for line in entry.lines} <= set("+=-! "), entry
        assert entry.code(mended=False) != entry.code(mended=True), entry
        if entry.file.endswith(".py"):
            ast.parse(entry.code(mended=False))
            ast.parse(entry.code(mended=True))
    return found


def line_of(entry: Entry) -> int:
    """The number of the line the review is about: the first one that came and is not in the mended code."""
    good = {line[1:] for line in entry.lines if line[0] in "= "}
    shown = [line for line in entry.lines if line[0] in " -+!"]
    told = [i for i, line in enumerate(shown, 1) if line[0] == "!"]
    bad = told or [i for i, line in enumerate(shown, 1) if line[0] == "+" and line[1:] not in good]
    return bad[0] if bad else entry.diff(mended=False)[1]


def conversations() -> Iterator[tuple[str, list[dict[str, str]], str, str]]:
    """`(group, prompt, good answer, bad answer)` of every row; a defect and its mending are one group."""
    rng = random.Random(11)
    for i, entry in enumerate(entries()):
        for mended in (False, True):
            diff, _ = entry.diff(mended=mended)
            prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": diff}]
            good = "OK" if mended else f"BUG {line_of(entry)} {entry.kind}: {entry.review}"
            if mended:
                bad = f"BUG {entry.diff(mended=True)[1]} {rng.choice(KINDS)}: this may be a problem."
            else:
                bad = rng.choice(("OK", *VAGUE))
            yield f"{i:02}", prompt, good, bad


def texts() -> dict[str, str]:
    """Both files as they should be."""
    rows = list(conversations())
    random.Random(3).shuffle(rows)
    review = [
        {"group": group, "messages": [*prompt, {"role": "assistant", "content": good}]}
        for group, prompt, good, _ in rows
    ]
    pairs = [{"group": group, "prompt": prompt, "chosen": good, "rejected": bad} for group, prompt, good, bad in rows]
    made = {"code-review.jsonl": review, "preference.jsonl": pairs}
    return {name: "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in body) for name, body in made.items()}


if __name__ == "__main__":
    for name, text in texts().items():
        (HERE / name).write_text(text, encoding="utf-8")
