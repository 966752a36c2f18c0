"""Stages: done once, done again when what they are made of changed, refused when that must not be; how a run stands."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm import cli
from miyabi_llm.engines.base import Engine
from miyabi_llm.errors import BadUsage, Corrupt, MiyabiError
from miyabi_llm.finetune import load, rundir, status
from miyabi_llm.finetune import run as verb
from miyabi_llm.finetune.context import RunContext, Stage, StageResult, always
from miyabi_llm.finetune.record import Record
from miyabi_llm.finetune.rundir import RunDir
from miyabi_llm.types import Event
from tests.finetune.test_resume import home
from tests.finetune.trainer import world

TEXT = "base: {model: x}\ndata: {train: rows.jsonl}\n"


class Table:
    """Three stages that write down what they did; the second and third depend on a word."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.word = "one"
        self.why = ""
        self.breaks = False

    def stages(self, *, fixed: bool = False) -> tuple[Stage, ...]:
        return (
            Stage("first", self._first, lambda c: {}),
            Stage("second", self._second, lambda c: {"word": self.word}, lambda c: self.why, fixed=fixed),
            Stage("third", self._third, self._of_second, always, again=True),
        )

    def _of_second(self, ctx: RunContext) -> Mapping[str, str]:
        return {"second": str(ctx.record.figures("second").get("word"))}

    def _first(self, ctx: RunContext) -> StageResult:
        self.did.append("first")
        return StageResult({"n": 1})

    def _second(self, ctx: RunContext) -> StageResult:
        self.did.append("second")
        if self.breaks:
            raise MiyabiError("it broke")
        ctx.on_event(Event("progress", "train", done=3, total=9, data={"loss": 0.5, "learning_rate": 0.1}))
        path = ctx.run.root / "made.txt"
        path.write_text(self.word)
        return StageResult({"word": self.word}, (path,))

    def _third(self, ctx: RunContext) -> StageResult:
        self.did.append("third")
        return StageResult()


@pytest.fixture
def recipe(tmp_path: Path, engine: Engine) -> Path:
    path = tmp_path / "plain.yaml"
    path.write_text(TEXT)
    return path


def go(recipe: Path, table: Table, *, fixed: bool = False) -> list[str]:
    """Run it; what was really done this time."""
    table.did.clear()
    verb.run(load.load(recipe), world(), table=table.stages(fixed=fixed))
    return table.did


def test_a_stage_is_done_once_and_again_when_it_must_be(recipe: Path) -> None:
    table = Table()
    assert go(recipe, table) == ["first", "second", "third"]
    assert go(recipe, table) == ["third"]
    table.word = "two"
    assert go(recipe, table) == ["second", "third"]
    (home() / "runs" / "plain" / "made.txt").write_text("other")
    assert go(recipe, table) == ["second", "third"]
    (home() / "runs" / "plain" / "made.txt").unlink()
    assert go(recipe, table) == ["second", "third"]


def test_what_was_fixed_is_refused_when_it_changed(recipe: Path) -> None:
    table = Table()
    go(recipe, table, fixed=True)
    table.word = "two"
    with pytest.raises(BadUsage, match="word changed since second was done"):
        go(recipe, table, fixed=True)


def test_what_broke_is_gone_on_with(recipe: Path) -> None:
    table = Table()
    table.breaks = True
    with pytest.raises(MiyabiError, match="it broke"):
        go(recipe, table)
    place = rundir.place(home(), "plain")
    assert not rundir.busy(place)
    names = ("first", "second", "third")
    assert status.of(place, names).state == "stopped"
    table.breaks = False
    table.did.clear()
    outcome = verb.resume("plain", world(), table=table.stages())
    assert table.did == ["second", "third"]
    assert set(outcome.stages) == set(names)
    stands = status.one(home(), "plain", names)
    assert (stands.state, stands.step, stands.steps) == ("finished", 3, 9)
    assert [s.name for s in status.all_of(home(), names)] == ["plain"]
    with rundir.held(place):
        assert status.of(place, names).state == "running"


def test_a_stage_that_is_left_out_says_why(recipe: Path) -> None:
    table = Table()
    table.why = "nobody wants it"
    assert go(recipe, table) == ["first", "third"]
    record = Record(rundir.place(home(), "plain"))
    done = record.get("second")
    assert done is not None
    assert done.skipped == "nobody wants it"
    table.why = ""
    assert go(recipe, table) == ["second", "third"]


def test_another_recipe_under_the_same_name_is_refused_and_the_key_named(recipe: Path) -> None:
    go(recipe, Table())
    recipe.write_text(TEXT + "train: {seed: 3}\n")
    with pytest.raises(BadUsage, match=r"train\.seed was 17, now 3"):
        go(recipe, Table())
    with pytest.raises(BadUsage, match="there is no run gone"):
        verb.resume("gone", world())
    with pytest.raises(BadUsage, match="there is no run gone"):
        status.one(home(), "gone", ())


def test_a_run_goes_on_with_the_recipe_it_was_begun_with(recipe: Path) -> None:
    table = Table()
    verb.run(load.load(recipe, ("train.seed=5",)), world(), table=table.stages())
    recipe.unlink()
    loaded = verb.reopen(rundir.place(home(), "plain"))
    assert loaded.recipe.train.seed == 5
    assert loaded.path == recipe


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=50).map(lambda t: json.dumps({"train": t}).encode()))
def test_no_table_of_stages_makes_it_fail_in_another_way(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    run = RunDir(tmp_path_factory.mktemp("r"))
    run.stages.write_bytes(data)
    with contextlib.suppress(Corrupt):
        Record(run)


def test_half_a_line_of_events_is_left_out(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    rundir.note(run, "train", Event("log", "x", "said"))
    with run.events.open("a") as f:
        f.write('{"kind": "progr')
    assert [e["message"] for e in rundir.heard(run)] == ["said"]


def test_status_is_printed(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go(recipe, Table())
    assert cli.execute(["finetune", "status"]) == 0
    assert "plain" in capsys.readouterr().out
    assert cli.execute(["finetune", "status", "plain", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "plain"
    assert cli.execute(["finetune", "status", "nobody"]) == 2


def test_a_recipe_is_run_without_the_word_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["finetune", str(tmp_path / "none.yaml")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert cli.execute(["finetune", "run", str(tmp_path / "none.yaml"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"
