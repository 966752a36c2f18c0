"""The data of a run: every key of `data` does what it says, with the real tokenizer where tokens count."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from miyabi_llm import config, engines
from miyabi_llm.cli import execute
from miyabi_llm.dataset import Row
from miyabi_llm.engines.base import Engine
from miyabi_llm.errors import BadUsage
from miyabi_llm.finetune import data, load
from miyabi_llm.finetune.data import Prepared, Tools
from miyabi_llm.finetune.recipe import Base, Data, Evaluate, Export, Gates, Launch

ROOT = Path(__file__).parents[2] / "miyabi_llm"


def rows(count: int = 20) -> list[dict[str, Any]]:
    return [
        {"prompt": f"What is {i} and {i * 7}?", "completion": f"It is {i * 8}.", "team": str(i // 4)}
        for i in range(count)
    ]


def recipe(folder: Path, made: list[Any], *overrides: str, name: str = "rows.jsonl") -> load.Loaded:
    (folder / name).write_text("".join(json.dumps(r) + "\n" for r in made), encoding="utf-8")
    path = folder / "r.yaml"
    path.write_text(f"base: {{model: m}}\ndata: {{train: {name}, eval_fraction: 0.25}}\n", encoding="utf-8")
    return load.load(path, overrides)


def plain(loaded: load.Loaded, folder: Path) -> Prepared:
    """Without tokens."""
    found = data.look(loaded, folder / "work", Tools(engines.get("trl"), config.load()))
    data.refuse(loaded, found)
    return found


def sides(found: Prepared) -> tuple[set[str], set[str]]:
    return {r.id for r in found.learn}, {r.id for r in found.held}


def test_rows_are_split_written_and_judged(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, rows(), "evaluate.forgetting=builtin")
    made = data.prepare(loaded, tmp_path / "run", Tools(engines.get("trl"), config.load()))
    assert (len(made.learn), len(made.held)) == (15, 5)
    for name, kept in (("train", made.learn), ("eval", made.held), ("forget", made.forget)):
        lines = [json.loads(t) for t in (tmp_path / "run" / f"{name}.jsonl").read_text("utf-8").splitlines()]
        assert [r["id"] for r in lines] == [r.id for r in kept]
        assert all(set(r) == {"id", "prompt", "completion", "row"} for r in lines)
        assert [Row.of(r).id for r in lines] == [r["id"] for r in lines]
    report = json.loads((tmp_path / "run" / "lint.json").read_text())
    assert (report["total"], report["rows"], report["bad"]) == (20, 20, 0)
    assert not list((tmp_path / "run").glob(".*")), "nothing in between is left"
    again = data.prepare(loaded, tmp_path / "again", Tools(engines.get("trl"), config.load()))
    assert sides(again) == sides(made)


# every key of `data`, and the test here that sees it work
SEEN = {
    "train": test_rows_are_split_written_and_judged.__name__,
    "eval_fraction": test_rows_are_split_written_and_judged.__name__,
    "eval": "test_keys_of_the_split_arrive",
    "group": "test_keys_of_the_split_arrive",
    "seed": "test_keys_of_the_split_arrive",
    "format": "test_keys_of_reading_arrive",
    "roles": "test_keys_of_reading_arrive",
    "system": "test_keys_of_reading_arrive",
    "thinking": "test_keys_of_reading_arrive",
    "bad_rows": "test_rows_that_cannot_be_read_stop_the_run_or_are_put_aside",
    "max_length": "test_long_rows_are_left_out_whole_and_counted",
    "over_length": "test_long_rows_are_left_out_whole_and_counted",
    "max_dropped": "test_long_rows_are_left_out_whole_and_counted",
}


def test_every_key_of_data_is_seen_to_work() -> None:
    assert set(SEEN) == set(Data.model_fields)
    assert all(name in globals() for name in SEEN.values())


@pytest.mark.parametrize("section", [Base, Evaluate, Gates, Export, Launch])
def test_no_key_of_the_other_sections_is_only_parsed(section: type) -> None:
    """Each is asked for by name in the code of a run; tests of the stages see what it does."""
    asked = set()
    for path in (
        *(ROOT / "finetune").glob("*.py"),
        *(ROOT / "engines").rglob("*.py"),
        *(ROOT / "cli").glob("finetune*.py"),
    ):
        if path.name in ("recipe.py", "rules.py", "schema.py", "new.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            asked |= {node.attr} if isinstance(node, ast.Attribute) else set()
            asked |= {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()
    assert set(section.model_fields) <= asked, set(section.model_fields) - asked  # type: ignore[attr-defined]


def test_keys_of_the_split_arrive(tmp_path: Path) -> None:
    base = plain(recipe(tmp_path, rows()), tmp_path)
    other = plain(recipe(tmp_path, rows(), "data.seed=18"), tmp_path)
    assert sides(base) != sides(other)
    grouped = plain(recipe(tmp_path, rows(), "data.group=team"), tmp_path)
    assert not {r.group for r in grouped.learn} & {r.group for r in grouped.held}
    (tmp_path / "held.csv").write_text("prompt,completion\nWho?,Me.\n")
    given = plain(recipe(tmp_path, rows(), "data.eval=held.csv"), tmp_path)
    assert (len(given.learn), len(given.held)) == (20, 1)
    with pytest.raises(BadUsage, match="held-out ones are learned as well"):
        plain(recipe(tmp_path, rows(), "data.eval=rows.jsonl"), tmp_path)


def test_keys_of_reading_arrive(tmp_path: Path) -> None:
    asked = [{"from": "Kunde", "value": f"Warum {i}?"} for i in range(8)]
    answers = [{"from": "gpt", "value": f"<think>hm {i}</think>\n\nDarum {i}."} for i in range(8)]
    talk = [{"conversations": list(pair)} for pair in zip(asked, answers, strict=True)]
    keys = ("data.format=sharegpt", "data.roles.Kunde=user", "data.system=Sei kurz.", "data.thinking=strip")
    found = plain(recipe(tmp_path, talk, *keys), tmp_path)
    row = found.learn[0]
    assert [m["role"] for m in (*row.prompt, *row.last)] == ["system", "user", "assistant"]
    assert row.prompt[0]["content"] == "Sei kurz."
    assert re.fullmatch(r"Darum \d\.", row.last[0]["content"])
    for missing, said in ((1, r"'Kunde', an unknown role"), (3, "the answer holds reasoning"), (0, "")):
        left = [k for i, k in enumerate(keys) if i != missing]
        if said:
            with pytest.raises(BadUsage, match=said) as caught:
                plain(recipe(tmp_path, talk, *left), tmp_path)
            assert "row" in caught.value.message
    with pytest.raises(BadUsage, match="is sharegpt, but the rows before are alpaca"):
        plain(recipe(tmp_path, talk, "data.format=alpaca"), tmp_path)


def test_rows_that_cannot_be_read_stop_the_run_or_are_put_aside(tmp_path: Path) -> None:
    broken = [*rows(), {"prompt": "?", "completion": ""}, 3]
    with pytest.raises(BadUsage, match=r"`completion` is empty \[row 21\]") as caught:
        plain(recipe(tmp_path, broken), tmp_path)
    assert "data lint" in str(caught.value.hint)
    skipping = recipe(tmp_path, broken, "data.bad_rows=skip")
    made = data.prepare(skipping, tmp_path / "run", Tools(engines.get("trl"), config.load()))
    assert len(made.learn) + len(made.held) == 20
    aside = [json.loads(t) for t in (tmp_path / "run" / "bad.jsonl").read_text().splitlines()]
    assert [r["row"] for r in aside] == [21, 22]


@pytest.mark.parametrize(
    ("method", "said"), [("dpo", "dpo learns from preference"), ("kto", "kto learns from unpaired")]
)
def test_rows_of_another_kind_than_the_method_learns_from_are_refused(method: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match=said):
        plain(recipe(tmp_path, rows(), f"train.method={method}"), tmp_path)


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="no rows"):
        plain(recipe(tmp_path, []), tmp_path)
    with pytest.raises(BadUsage, match="no row is left to measure on"):
        plain(recipe(tmp_path, rows(1)), tmp_path)


def rendered(loaded: load.Loaded, folder: Path, engine: Engine, base: Path, keep: int = 0) -> Prepared:
    found = data.look(loaded, folder / "work", Tools(engine, config.load(), base), keep=keep)
    data.refuse(loaded, found)
    return found


def test_long_rows_are_left_out_whole_and_counted(tmp_path: Path, engine: Engine, tiny_base: Path) -> None:
    long = [
        {"prompt": "Tell me more", "completion": "word " * 300},
        {"prompt": "And then", "completion": "more " * 200},
    ]
    loaded = recipe(tmp_path, [*rows(), *long], "data.max_length=120")
    found = rendered(loaded, tmp_path, engine, tiny_base, keep=1)
    assert sorted(r.number for r in found.long) == [21, 22]
    assert not {21, 22} & {r.number for r in (*found.learn, *found.held)}
    assert [f.rows for f in found.report.findings if f.check == "over-length"] == [(21, 22)]
    assert found.report.tokens["longest"] > 300
    assert sum(n for _, n in found.report.tokens["histogram"]) == 22
    [row] = found.kept
    assert "".join(row["pieces"][row["start"] :]).startswith("It is ")
    assert "".join(row["pieces"][row["start"] :]).rstrip().endswith("<|im_end|>")
    for more, said in (
        ("data.over_length=fail", "more than 120 tokens"),
        ("data.max_dropped=0.05", "2 of 22 rows have"),
    ):
        with pytest.raises(BadUsage, match=said):
            data.refuse(load.load(loaded.path, ["data.max_length=120", more]), look_again(loaded, found, more))


def look_again(loaded: load.Loaded, found: Prepared, more: str) -> Prepared:
    """The same rows under another policy, without rendering them again."""
    from dataclasses import replace

    if "over_length" not in more:
        return found
    stricter = tuple(replace(f, level="error") if f.check == "over-length" else f for f in found.report.findings)
    return replace(found, report=replace(found.report, findings=stricter))


def test_preview_and_lint_show_what_is_trained(
    tmp_path: Path, engine: Engine, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = recipe(tmp_path, rows(), f"base.model={tiny_base}")
    given = ["--set", f"base.model={tiny_base}", "--json"]
    assert execute(["finetune", "preview", str(loaded.path), "-n", "2", *given]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["rows"]) == 2
    assert told["figures"]["tokens"]["trained"] > 0
    assert len(told["figures"]["golden"]) == 20
    assert told["tokens_changed"] == []
    (tmp_path / "bad.jsonl").write_text('{"messages": [{"role": "boss", "content": "x"}]}\n' * 2)
    assert execute(["data", "lint", str(tmp_path / "bad.jsonl"), "--json"]) == 5
    finding = json.loads(capsys.readouterr().out)["report"]["findings"][0]
    assert (finding["rows"], finding["level"]) == ([1, 2], "error")
    assert "data.roles.boss=user" in finding["fix"]


def test_parquet_and_saved_data_sets_are_read_by_the_environment_that_trains(
    tmp_path: Path, engine: Engine, tiny_base: Path
) -> None:
    import subprocess

    env = engine.find(config.load())
    assert env is not None
    code = (
        "import datasets, sys; rows = [{'prompt': f'q{i}', 'completion': f'a{i}'} for i in range(9)];"
        "d = datasets.Dataset.from_list(rows);"
        "d.to_parquet(sys.argv[1] + '/rows.parquet'); d.save_to_disk(sys.argv[1] + '/saved')"
    )
    done = subprocess.run([str(env.python), "-c", code, str(tmp_path)], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for source in ("rows.parquet", "saved"):
        loaded = load.parse(f"base: {{model: m}}\ndata: {{train: {source}, eval_fraction: 0.3}}\n")
        found = plain(load.Loaded(loaded, tmp_path / "r.yaml", ""), tmp_path)
        assert len(found.learn) + len(found.held) == 9
        assert found.report.format == "prompt-completion"
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:-20])
    loaded = load.parse("base: {model: m}\ndata: {train: cut.parquet}\n")
    with pytest.raises(BadUsage, match=r"cut\.parquet"):
        plain(load.Loaded(loaded, tmp_path / "r.yaml", ""), tmp_path)
