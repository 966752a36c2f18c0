"""A git history, read: commits, the changes of one, and who wrote a line. Nothing of a repository's settings is run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.errors import BadUsage, Missing

TIMEOUT = 120.0  # seconds for one question
MOST = 64 << 20  # bytes of one answer
# A repository may name programs in its own settings: none of them is started, and nothing is fetched.
SAFE = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "protocol.allow=never",
        "-c", "core.quotePath=false")  # fmt: skip
PLAIN = ("--no-color", "--no-ext-diff", "--no-textconv")

_SAYS_NOTHING = re.compile(r"\s*($|(import|from|using|use|package)\b|#|//|/?\*|--|\"\"\"|[)\]}]+[;,]?$)")
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit with one parent: its hash, when it was made (seconds since 1970), and the first line of what it says."""

    sha: str
    parent: str
    at: int
    subject: str


@dataclass(frozen=True, slots=True)
class Hunk:
    """A piece of a diff: where it begins in the old and the new file (lines from 1), its lines with their marks."""

    old: int
    new: int
    lines: tuple[str, ...]

    def removed(self) -> list[int]:
        """The numbers in the old file of the lines that go, without blank ones and comments."""
        number, found = self.old, []
        for line in self.lines:
            if line[0] == "-" and not _SAYS_NOTHING.match(line[1:]):
                found.append(number)
            number += line[0] in " -"
        return found

    def around(self, at: int, most: int) -> tuple[Hunk, int]:
        """At most `most` of its lines, with its line `at` (from 1) in their middle, and which line that is then."""
        if len(self.lines) <= most:
            return self, at
        start = min(max(0, at - 1 - most // 2), len(self.lines) - most)
        before = self.lines[:start]
        old = self.old + sum(line[0] in " -" for line in before)
        new = self.new + sum(line[0] in " +" for line in before)
        return Hunk(old, new, self.lines[start : start + most]), at - start

    def at(self, number: int) -> int | None:
        """Which line of the hunk (from 1) is line `number` of the new file, if it came with this change."""
        here = self.new
        for i, line in enumerate(self.lines, 1):
            if line[0] == "+" and here == number:
                return i
            here += line[0] in " +"
        return None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a line came from: the commit, the file's name then, and the line's number there."""

    sha: str
    path: str
    line: int


class Repository:
    """Questions to the repository at `folder`, a copy on this machine."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        """Raises BadUsage when there is no repository, Missing without git. `env` is the environment we were given."""
        self._git = shutil.which("git", path=env.get("PATH")) or ""
        if not self._git:
            raise Missing("git is not installed", hint="On Debian and Ubuntu: `sudo apt-get install git`.")
        self._folder = folder
        self._env = {k: v for k, v in env.items() if not k.startswith("GIT_")}
        self._env |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
        self._env |= {"GIT_CONFIG_GLOBAL": os.devnull}
        if not folder.is_dir() or self.ask("rev-parse", "--git-dir", fine=(0, 128)) == "":
            raise BadUsage(f"{folder}: no git repository", hint="Give a folder that is one: a clone of your own code.")

    def ask(self, *words: str, fine: tuple[int, ...] = (0,)) -> str:
        """What git answers; empty where it fails with a code in `fine`. Raises BadUsage with its words else."""
        try:
            done = subprocess.run(
                (self._git, *SAFE, "-C", str(self._folder), *words),
                capture_output=True, env=self._env, timeout=TIMEOUT, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as e:
            raise BadUsage(f"git {words[0]}: {e}") from e
        if done.returncode not in fine:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise BadUsage(f"git {words[0]}: {said[-1] if said else f'exit code {done.returncode}'}")
        return done.stdout[:MOST].decode("utf-8", "replace") if done.returncode == 0 else ""

    def commits(self, most: int, since: str | None = None) -> list[Commit]:
        """Up to `most` newest commits that have one parent, the oldest first."""
        more = (f"--since={since}",) if since else ()
        text = self.ask("log", "--no-merges", "--min-parents=1", f"--max-count={most}", *more,
                        "--format=%H%x1f%P%x1f%ct%x1f%s%x1e", "HEAD")  # fmt: skip
        found = []
        for record in text.split("\x1e"):
            parts = record.strip("\n").split("\x1f")
            if len(parts) == 4:
                found.append(Commit(parts[0], parts[1].split()[0], int(parts[2]), parts[3]))
        return found[::-1]

    def changed(self, commit: Commit) -> list[str]:
        """The files a commit changed, not those it added, renamed or removed."""
        text = self.ask("diff", *PLAIN, "--name-only", "--diff-filter=M", "-z", commit.parent, commit.sha)
        return [name for name in text.split("\0") if name]

    def hunks(self, before: str, after: str, path: str) -> list[Hunk]:
        """How `path` changed between two commits, with three lines around; nothing for files that are no text."""
        text = self.ask("diff", *PLAIN, "-U3", before, after, "--", path)
        return hunks(text)

    def origins(self, sha: str, path: str, numbers: list[int]) -> list[Origin]:
        """Who wrote lines of `path` as it is at `sha`. Lines older than the history's root are left out."""
        spans = [word for n in numbers for word in ("-L", f"{n},{n}")]
        text = self.ask("blame", "--no-textconv", "--porcelain", "-w", *spans, sha, "--", path, fine=(0, 128))
        found, names = [], {}
        current: tuple[str, int] | None = None
        boundary = False
        for line in text.splitlines():
            if re.match(r"[0-9a-f]{40} \d+ \d+", line):
                current, boundary = (line[:40], int(line.split()[1])), False
            elif line.startswith("filename ") and current:
                names[current[0]] = line[9:]
            elif line == "boundary":
                boundary = True
            elif line.startswith("\t") and current:
                if not boundary:
                    found.append(Origin(current[0], names.get(current[0], path), current[1]))
                current = None
        return found


def hunks(text: str) -> list[Hunk]:
    """The hunks of a diff of one file. Pure; what is no diff of text has none."""
    found: list[Hunk] = []
    lines: list[str] = []
    start: tuple[int, int] | None = None
    for line in text.split("\n"):
        match = _HUNK.match(line)
        if match:
            if start and lines:
                found.append(Hunk(*start, tuple(lines)))
            start, lines = (int(match[1]), int(match[3])), []
        elif start and line[:1] in (" ", "+", "-"):
            lines.append(line.rstrip("\r"))
    if start and lines:
        found.append(Hunk(*start, tuple(lines)))
    return found
