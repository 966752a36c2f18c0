"""`finetune new` and `finetune schema`: a recipe for any rows that can be read, and it loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from miyabi_llm.cli import execute
from miyabi_llm.finetune import load

SHAREGPT = {"conversations": [{"from": "human", "value": "Why?"}, {"from": "chatgpt", "value": "Because."}]}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "method", "form"),
    [
        ({"prompt": "a", "completion": "b"}, "sft", "prompt-completion"),
        ({"instruction": "a", "output": "b" * 3000}, "sft", "alpaca"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "dpo", "preference"),
        ({"prompt": "a", "completion": "b", "label": False}, "kto", "unpaired"),
        (SHAREGPT, "sft", "sharegpt"),
    ],
)
def test_rows_of_any_form_get_a_recipe(
    row: object,
    method: str,
    form: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = write(tmp_path / "my rows: 1.jsonl", row, row)
    target = tmp_path / "made" / "it.yaml"
    code = execute(["finetune", "new", "--data", str(rows), "--name", "it", "-o", str(target), "--json"])
    assert code == 0, capsys.readouterr().err
    loaded = load.load(target)
    assert loaded.file(loaded.recipe.data.train).resolve() == rows.resolve()
    assert (loaded.recipe.train.method, loaded.recipe.data.format) == (method, form)
    assert all("#" in line for line in target.read_text("utf-8").splitlines() if line.startswith("  "))
    again = execute(["finetune", "new", "--data", str(rows), "--name", "it", "-o", str(target), "--json"])
    assert again == 2, "it does not write over a recipe"


def test_unknown_roles_are_proposed_and_long_rows_get_room(tmp_path: Path) -> None:
    from miyabi_llm.finetune import new

    rows = write(tmp_path / "a.jsonl", SHAREGPT, {"conversations": [{"from": "human", "value": "x" * 5000},
                                                                   {"from": "bing", "value": "y"}]})  # fmt: skip
    seen = new.look(rows)
    assert seen.roles == {"chatgpt": "assistant", "bing": "assistant"}
    assert (seen.rows, seen.bad) == (2, 0)
    recipe = load.parse(new.compose(new.Answers(rows), seen, tmp_path / "r.yaml"))
    assert recipe.data.roles == seen.roles
    assert recipe.data.max_length == 2048


def test_rows_that_cannot_be_read_give_no_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write(tmp_path / "a.jsonl", {"text": "rendered"})
    assert execute(["finetune", "new", "--data", str(rows), "-o", str(tmp_path / "r.yaml"), "--json"]) == 2
    assert "row 1" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert execute(["finetune", "new", "--json"]) == 2


def test_the_schema_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["finetune", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["train"]
    assert execute(["finetune", "schema", "-o", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["$schema"]


def test_it_asks_on_a_terminal_what_it_cannot_see(tmp_path: Path) -> None:
    import os
    import pty
    import subprocess
    import sys

    rows = write(tmp_path / "a.jsonl", {"prompt": "a", "completion": "b"})
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "miyabi_llm", "finetune", "new", "--data", str(rows), "-o", str(tmp_path / "r.yaml")]
    child = subprocess.Popen(argv, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE)
    os.close(theirs)
    os.write(ours, b"other:1b\nmine\ndora\n")
    out, _ = child.communicate(timeout=120)
    os.close(ours)
    assert child.returncode == 0
    assert out.decode().strip() == str(tmp_path / "r.yaml")
    recipe = load.load(tmp_path / "r.yaml").recipe
    assert (recipe.base.model, recipe.export.name, recipe.lora.method) == ("other:1b", "mine", "dora")


def test_a_row_is_shown_whole_with_and_without_colour(capsys: pytest.CaptureFixture[str]) -> None:
    from miyabi_llm.cli import finetune_preview as shown

    row = {"pieces": ["[bold]", "question" * 30, "\n", "answer", "<|im_end|>", "\n"], "start": 3}
    assert shown.marked(row) == "[bold]" + "question" * 30 + "\n«answer<|im_end|>\n»"
    shown.coloured(row)
    assert capsys.readouterr().out.replace("⏎", "") == "".join(row["pieces"]) + "\n"
