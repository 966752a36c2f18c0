"""Rows to learn code review from, made of a git history: what was mended later, and where it had come from.

A commit that says it mends something takes lines away. `git blame` says which commit had brought them: that change,
with the line that was wrong, is the question, and the mending is the answer (the idea of Śliwerski, Zimmermann and
Zeller, MSR 2005). Changes whose lines nobody had to mend are the rows with nothing to say. Both are heuristics: read
the rows.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from miyabi_llm.dataset.git import Commit, Hunk, Repository
from miyabi_llm.types import Event, OnEvent, silent

SYSTEM = (
    "Review the diff. Its lines are numbered. It has at most one defect, in a line that begins with +. "
    "Answer `OK`, or `BUG`, the line's number, then why, and the change that mends it."
)
MENDS = re.compile(
    r"^(bug|hot)?fix\b|^(repair|mend|correct|prevent|avoid)\b|\b(fix(es|ed)?|bugs?|crash(es)?|leak(s|ed)?|overflow|"
    r"off.by.one|regression|deadlock|race condition)\b|修正|不具合|バグ",
    re.IGNORECASE,
)
CODE = frozenset(
    """c cc cpp cs css cu cxx dart ex exs go h hpp hs html java jl js jsx kt lua m ml mm php pl proto ps1 py r rb rs
    scala sh sql swift tf ts tsx vue yaml yml zig toml""".split()  # noqa: SIM905
)
MOST_FILES = 8  # of code in a commit that mends; one with more is a change of another kind
LONGEST = 40  # lines of a diff that are shown
LONGEST_FIX = 24  # lines of a mending that is shown
OLD_ENOUGH = 20  # commits that a change must have lived through to count as sound

Scan = Callable[[str], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Wish:
    """What to make: `commits` looked at, at most; `by` what the held-out rows are parted by; `fraction` of them.

    `sound` is how many rows with nothing to say there are for each with a defect.
    """

    commits: int = 2000
    since: str | None = None
    by: Literal["time", "file"] = "time"
    fraction: float = 0.15
    sound: float = 1.0
    seed: int = 17


@dataclass(frozen=True, slots=True)
class Found:
    """Rows to learn from, rows held out, and what was left out for which reason. `cut` is the time that parts them."""

    learn: tuple[dict[str, Any], ...]
    held: tuple[dict[str, Any], ...]
    left_out: dict[str, int]
    commits: int
    cut: int | None = None


@dataclass(slots=True)
class _Candidate:
    """A row before it is parted: when its question was written, when its answer was known."""

    row: dict[str, Any]
    asked: int
    known: int
    path: str
    bad: bool


@dataclass(slots=True)
class _Tally:
    left_out: dict[str, int] = field(default_factory=dict)

    def add(self, why: str) -> None:
        """One more that is left out."""
        self.left_out[why] = self.left_out.get(why, 0) + 1


def make(repository: Repository, wish: Wish, scan: Scan, on_event: OnEvent = silent) -> Found:
    """Rows of a history; those in which `scan` sees something secret are left out. Raises BadUsage as git does."""
    commits = repository.commits(wish.commits, wish.since)
    by_sha = {c.sha: i for i, c in enumerate(commits)}
    tally = _Tally()
    blamed: set[tuple[str, str]] = set()
    made: list[_Candidate] = []
    mending = [c for c in commits if MENDS.search(c.subject)]
    for number, commit in enumerate(mending, 1):
        on_event(Event("progress", "history", commit.subject[:60], number, len(mending), "commits"))
        made += _mended(repository, commit, commits, by_sha, blamed, tally)
    bad = len(made)
    made += _sound(repository, commits, by_sha, blamed, round(bad * wish.sound), wish.seed, tally)
    clean = _clean(made, scan, tally)
    learn, held, cut = part(clean, wish, tally)
    return Found(tuple(c.row for c in learn), tuple(c.row for c in held), tally.left_out, len(commits), cut)


def _mended(
    repository: Repository,
    commit: Commit,
    commits: list[Commit],
    by_sha: dict[str, int],
    blamed: set[tuple[str, str]],
    tally: _Tally,
) -> Iterator[_Candidate]:
    """The rows of one commit that mends: one for each change it mends a line of."""
    seen: set[tuple[str, str, int]] = set()
    paths = [p for p in repository.changed(commit) if is_code(p)]
    if len(paths) > MOST_FILES:
        tally.add("the mending changes many files")
        return
    for path in paths:
        for fix in repository.hunks(commit.parent, commit.sha, path):
            removed = fix.removed()
            if not removed:
                tally.add("the mending takes no code away")
                continue
            for origin in repository.origins(commit.parent, path, removed):
                blamed.add((origin.sha, origin.path))
                if origin.sha not in by_sha:
                    tally.add("the line is older than the history that is looked at")
                    continue
                source = commits[by_sha[origin.sha]]
                question = _question(repository, source, origin.path, origin.line)
                if question is None:
                    tally.add("the line did not come with its change as blame says")
                elif len(fix.lines) > LONGEST_FIX:
                    tally.add("the mending is too long")
                elif (key := (source.sha, origin.path, question[0].new)) not in seen:
                    seen.add(key)
                    answer = f"BUG {question[1]}: {subject(commit)}\n\n```diff\n" + "\n".join(fix.lines) + "\n```"
                    row = _row(origin.path, question[0], answer, {"from": source.sha[:12], "fix": commit.sha[:12]})
                    yield _Candidate(row, source.at, commit.at, origin.path, True)
                    break


def _question(repository: Repository, source: Commit, path: str, line: int) -> tuple[Hunk, int] | None:
    """The hunk that brought line `line`, and which of its lines that is; a long one is cut to what is around it."""
    for hunk in repository.hunks(source.parent, source.sha, path):
        at = hunk.at(line)
        if at is not None:
            return hunk.around(at, LONGEST)
    return None


def _sound(
    repository: Repository,
    commits: list[Commit],
    by_sha: dict[str, int],
    blamed: set[tuple[str, str]],
    wanted: int,
    seed: int,
    tally: _Tally,
) -> Iterator[_Candidate]:
    """Changes nobody had to mend: of commits that are old enough, and not in files where they were blamed."""
    old = commits[: max(0, len(commits) - OLD_ENOUGH)]
    order = random.Random(seed).sample(old, len(old))
    for commit in order:
        if wanted <= 0:
            return
        for path in repository.changed(commit):
            if not is_code(path) or (commit.sha, path) in blamed:
                continue
            cut = [h.around(len(h.lines) // 2, LONGEST)[0] for h in repository.hunks(commit.parent, commit.sha, path)]
            fine = [h for h in cut if _worth_showing(h)]
            if fine:
                at = commits[min(by_sha[commit.sha] + OLD_ENOUGH, len(commits) - 1)].at
                yield _Candidate(_row(path, fine[0], "OK", {"from": commit.sha[:12]}), commit.at, at, path, False)
                wanted -= 1
                break
    if wanted > 0:
        tally.left_out["sound changes that were not found"] = wanted


def _worth_showing(hunk: Hunk) -> bool:
    marks = [line[0] for line in hunk.lines]
    return marks.count("+") >= 2 and any(line[1:].strip() for line in hunk.lines)


def _row(path: str, hunk: Hunk, answer: str, source: dict[str, str]) -> dict[str, Any]:
    shown = "\n".join(f"{i} | {line}" for i, line in enumerate(hunk.lines, 1))
    turns = [("system", SYSTEM), ("user", f"File {path}\n{shown}"), ("assistant", answer)]
    return {
        "group": path,
        "source": source,
        "messages": [{"role": role, "content": content} for role, content in turns],
    }


def subject(commit: Commit) -> str:
    """What a commit says, without the marks of tools: `fix(api): x (#12)` is `x`."""
    text = re.sub(r"\s*\((#|!)?\d+\)\s*$", "", commit.subject.strip())
    return re.sub(r"^\w+(\([^)]*\))?!?:\s*", "", text) or text


def is_code(path: str) -> bool:
    """Whether a file is code that people write: by its name's end, and not of a folder of other people's code."""
    parts = PurePosixPath(path)
    away = {"vendor", "node_modules", "third_party", "dist", "build", "__snapshots__"}
    return parts.suffix.lstrip(".").lower() in CODE and not away & set(parts.parts) and ".min." not in parts.name


def _clean(made: Iterable[_Candidate], scan: Scan, tally: _Tally) -> list[_Candidate]:
    """Without secrets and without rows that say the same."""
    found, seen = [], set()
    for one in made:
        text = "\n".join(m["content"] for m in one.row["messages"][1:])
        if "\0" in text or "\ufffd" in text:
            tally.add("not text")
        elif any(True for _ in scan(text)):
            tally.add("it holds what looks like a secret or personal data")
        elif text in seen:
            tally.add("said before")
        else:
            seen.add(text)
            found.append(one)
    return found


def part(made: list[_Candidate], wish: Wish, tally: _Tally) -> tuple[list[_Candidate], list[_Candidate], int | None]:
    """Rows to learn from and rows held out.

    By time: the latest are held out, and what was asked before that day but answered after it is left out, so that no
    answer is learned that lies in the future of a question. By file: no file is on both sides.
    """
    if not made or wish.fraction <= 0:
        return made, [], None
    if wish.by == "file":
        paths = sorted({c.path for c in made})
        random.Random(wish.seed).shuffle(paths)
        held_paths: set[str] = set()
        for path in paths[:-1]:
            if sum(c.path in held_paths for c in made) >= wish.fraction * len(made):
                break
            held_paths.add(path)
        return [c for c in made if c.path not in held_paths], [c for c in made if c.path in held_paths], None
    times = sorted(c.asked for c in made)
    cut = times[min(len(times) - 1, int(len(times) * (1 - wish.fraction)))]
    learn = [c for c in made if c.known < cut]
    held = [c for c in made if c.asked >= cut]
    for _ in range(len(made) - len(learn) - len(held)):
        tally.add("asked before the cut and answered after it")
    return learn, held, cut
