"""A git history becomes rows: the change that brought a line, the mending of it, and no answer from the future."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from miyabi_llm.dataset import Reading, git, history, read
from miyabi_llm.errors import BadUsage

BASE = "".join(f"def step_{i}(values):\n    total = 0\n    return total + {i}\n\n\n" for i in range(12))


def run(folder: Path, *words: str, at: int = 0) -> None:
    when = f"{1_700_000_000 + at * 1000} +0000"
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when,
           "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}  # fmt: skip
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *who, "-C", str(folder), *words], check=True, capture_output=True, env=env)


class Story:
    """A repository that grows by one commit at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.at = folder, 0
        folder.mkdir()
        run(folder, "init", "-q")

    def commit(self, says: str, **files: str) -> None:
        for name, text in files.items():
            (self.folder / f"{name}.py").write_text(text)
        self.at += 1
        run(self.folder, "add", ".")
        run(self.folder, "commit", "-q", "-m", says, at=self.at)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve defects that come and go, each in a file's own function, and as many changes nobody had to mend."""
    made = Story(tmp_path_factory.mktemp("git") / "repo")
    text = {"tools": BASE, "other": BASE}
    made.commit("Begin", **text)
    for i in range(12):
        text["tools"] = text["tools"].replace(f"return total + {i}\n", f"return total / len(values[{i}])\n")
        made.commit(f"Divide in step {i}", **text)
        for name in ("a", "b"):
            text["other"] = text["other"].replace(
                f"return total + {i}\n", f"limit_{name} = {i}\n    del limit_{name}\n    return total + {i}\n", 1
            )
            made.commit(f"Add a limit {name} to step {i}", **text)
        text["tools"] = text["tools"].replace(f"values[{i}])\n", f"values[{i}]) if values[{i}] else 0\n")
        made.commit(f"fix(tools): division by zero in step {i} (#{i})", **text)
    return made.folder


def make(folder: Path, **wish: object) -> history.Found:
    return history.make(git.Repository(folder, os.environ), history.Wish(**wish), lambda text: ())  # type: ignore[arg-type]


def test_a_mended_line_leads_to_the_change_that_brought_it(story: Path) -> None:
    found = make(story, fraction=0.0)
    bad = [r for r in found.learn if r["messages"][2]["content"] != "OK"]
    assert len(bad) == 12
    for row in bad:
        diff, answer = row["messages"][1]["content"], row["messages"][2]["content"]
        number = int(answer.split()[1].rstrip(":"))
        line = next(t for t in diff.splitlines() if t.startswith(f"{number} | "))
        assert "| +    return total / len(values[" in line
        assert answer.splitlines()[0].startswith(f"BUG {number}: division by zero in step ")
        assert "(#" not in answer
        assert "if values[" in answer
        assert "if values[" not in line
    sound = [r for r in found.learn if r["messages"][2]["content"] == "OK"]
    assert sound
    assert all(r["group"] == "other.py" for r in sound)


def test_no_answer_is_learned_that_lies_in_the_future_of_a_question(story: Path) -> None:
    found = make(story, fraction=0.3)
    assert found.learn
    assert found.held
    assert found.cut is not None
    told = subprocess.run(
        ["git", "-C", str(story), "log", "--format=%h %ct", "--abbrev=12"], capture_output=True, text=True, check=True
    )
    times = {line.split()[0]: int(line.split()[1]) for line in told.stdout.splitlines()}
    assert all(times[r["source"].get("fix", r["source"]["from"])] < found.cut for r in found.learn)
    assert all(times[r["source"]["from"]] >= found.cut for r in found.held)
    texts = {json.dumps(r["messages"]) for r in found.learn}
    assert not texts & {json.dumps(r["messages"]) for r in found.held}


def test_by_file_no_file_is_on_both_sides(story: Path) -> None:
    found = make(story, by="file", fraction=0.3)
    assert found.learn
    assert not {r["group"] for r in found.learn} & {r["group"] for r in found.held}


def test_rows_with_secrets_are_left_out_and_counted(story: Path) -> None:
    found = history.make(
        git.Repository(story, os.environ), history.Wish(fraction=0), lambda t: ["x"] if "step 3" in t else []
    )
    assert found.left_out["it holds what looks like a secret or personal data"] == 1
    assert not any("step 3" in r["messages"][2]["content"] for r in found.learn)


def test_a_repository_runs_no_program_of_its_own(story: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    bad = tmp_path / "bad"
    subprocess.run(["git", "clone", "-q", str(story), str(bad)], check=True, capture_output=True)
    with (bad / ".git" / "config").open("a") as file:
        file.write(
            f'[core]\n fsmonitor = "touch {trap}"\n pager = "touch {trap}"\n[diff]\n external = "touch {trap}"\n'
        )
        file.write(f'[diff "x"]\n textconv = "touch {trap}; cat"\n')
    (bad / ".gitattributes").write_text("*.py diff=x\n")
    assert make(bad).learn
    assert not trap.exists()


def test_what_is_no_repository_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="no git repository"):
        git.Repository(tmp_path, os.environ)
    with pytest.raises(BadUsage, match="no git repository"):
        git.Repository(tmp_path / "none", os.environ)


def test_a_long_change_is_shown_around_its_line() -> None:
    hunk = git.Hunk(1, 1, tuple(f"+line {i}" for i in range(1, 101)))
    cut, at = hunk.around(70, 40)
    assert (len(cut.lines), cut.lines[at - 1], cut.new) == (40, "+line 70", 50)
    assert hunk.around(2, 40)[1] == 2
    assert hunk.around(100, 40)[0].lines[-1] == "+line 100"


def test_the_command_writes_both_files_and_they_can_be_learned_from(story: Path, tmp_path: Path) -> None:
    from miyabi_llm.cli import execute

    target = tmp_path / "rows.jsonl"
    assert execute(["data", "make", "code-review", "--from", str(story), "-o", str(target), "--json"]) == 0
    learn, held = read(target, Reading(group="group")), read(tmp_path / "rows-eval.jsonl", Reading())
    assert learn.rows
    assert held.rows
    assert not learn.problems
    assert not held.problems
