"""The recipes we ship: each loads, explains its keys, and its data is what its script writes."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from miyabi_llm.dataset import NEEDED, Reading, read
from miyabi_llm.finetune import load, schema, yamltext

RECIPES = Path(__file__).parents[2] / "recipes"
ALL = sorted(RECIPES.glob("*.yaml"))
MADE = {
    "make_smoke": ["smoke.jsonl"],
    "make_review": ["code-review.jsonl", "preference.jsonl"],
    "make_terms": ["domain-terms.jsonl", "domain-terms-eval.jsonl"],
    "make_style": ["coding-style.jsonl"],
}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipes_{name}", RECIPES / "data" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_all_recipes_are_here() -> None:
    assert {p.stem for p in ALL} == {"smoke", "code-review", "domain-terms", "coding-style", "preference"}
    said = (RECIPES / "README.md").read_text(encoding="utf-8")
    assert all(p.name in said for p in ALL)


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_a_recipe_loads_and_explains_every_key(path: Path) -> None:
    import jsonschema

    recipe = load.load(path).recipe
    text = path.read_text(encoding="utf-8")
    jsonschema.validate(yamltext.read(text, path.name).value, schema.schema())
    for line in text.splitlines():
        if re.match(r"\s+\w+: \S", line):
            assert re.search(r"\s# \S", line), f"{path.name}: no comment: {line}"
    loaded = load.load(path)
    data = recipe.data
    found = read(loaded.file(data.train), Reading(data.format, data.roles, data.system, data.group, data.thinking))
    assert not found.problems
    assert len(found.rows) >= 60
    assert {r.kind for r in found.rows} == {NEEDED[recipe.train.method]}
    if data.eval:
        held = read(loaded.file(data.eval), Reading(data.format))
        assert not {r.id for r in held.rows} & {r.id for r in found.rows}


@pytest.mark.parametrize("name", MADE)
def test_the_rows_are_what_their_script_writes(name: str) -> None:
    module = script(name)
    texts = module.texts() if hasattr(module, "texts") else {MADE[name][0]: module.text()}
    assert sorted(texts) == sorted(MADE[name])
    for file, text in texts.items():
        assert (RECIPES / "data" / file).read_text(encoding="utf-8") == text
        assert len({json.dumps(json.loads(line)) for line in text.splitlines()}) == len(text.splitlines())


def test_reviews_name_the_line_they_are_about() -> None:
    review = script("make_review")
    for row in map(json.loads, (RECIPES / "data" / "code-review.jsonl").read_text(encoding="utf-8").splitlines()):
        diff, answer = row["messages"][1]["content"], row["messages"][2]["content"]
        if answer == "OK":
            continue
        found = re.fullmatch(r"BUG (\d+) (\w+): (.+)", answer)
        assert found, answer
        assert found[2] in review.KINDS
        line = next(t for t in diff.splitlines() if t.startswith(f"{found[1]} | "))
        assert line.startswith(f"{found[1]} | +"), f"the review is about a line that did not come: {line}"


def test_no_row_is_one_that_quality_is_measured_on() -> None:
    """`bench quality code-review` may judge a model that was tuned with the recipe: its rows must not be learned."""
    from importlib import resources

    from miyabi_llm.dataset import alike

    text = resources.files("miyabi_llm").joinpath("data/quality/code-review.jsonl").read_text(encoding="utf-8")
    asked = [json.loads(line)["prompt"] for line in text.splitlines()[1:]]
    learned = [
        json.loads(line)["messages"][1]["content"]
        for line in (RECIPES / "data" / "code-review.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    sets = [alike.shingles(t) for t in learned]
    for one in asked:
        own = alike.shingles(one)
        assert max(alike.likeness(own, other) for other in sets) < 0.5, one


def test_our_own_forgetting_set_can_be_read() -> None:
    from importlib import resources

    with resources.as_file(resources.files("miyabi_llm") / "data" / "forgetting.jsonl") as path:
        found = read(path, Reading())
    assert len(found.rows) >= 20
    assert not found.problems
