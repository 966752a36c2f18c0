"""Recipes: what is right loads, what is wrong is named with its line and the way out, and nothing is ever run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm.errors import BadUsage
from miyabi_llm.finetune import load, schema, yamltext
from miyabi_llm.finetune.recipe import KNOWN_ELSEWHERE, Recipe

GOOD = "base: {model: m}\ndata:\n  train: rows.jsonl\n"


def refused(text: str, *overrides: str) -> BadUsage:
    with pytest.raises(BadUsage) as caught:
        load.parse(text, "r.yaml", overrides)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value


def test_the_least_recipe_has_every_default() -> None:
    recipe = load.parse(GOOD)
    assert recipe.train.learning_rate == 2e-4
    assert recipe.lora.method == "lora"
    assert recipe.export.types == ("Q8_0", "Q4_K_M")


def test_numbers_are_those_of_yaml_1_2() -> None:
    recipe = load.parse(GOOD + "train: {learning_rate: 1e-4, warmup: .5, epochs: 3}\nexport: {name: no}\n")
    assert (recipe.train.learning_rate, recipe.train.warmup, recipe.train.epochs) == (1e-4, 0.5, 3.0)
    assert recipe.export.name == "no"


@pytest.mark.parametrize(
    ("more", "said", "way_out"),
    [
        ("train:\n  learning_ratee: 1\n", "r.yaml:5:3: train.learning_ratee: unknown key", "learning_rate?"),
        ("train:\n  lr: 1\n", "r.yaml:5:3: train.lr: unknown key", "train.learning_rate"),
        ("train:\n  rank: 1\n", "train.rank: unknown key", "It belongs under `lora`: lora.rank."),
        ("max_steps: 1\n", "r.yaml:4:1: max_steps: unknown key", "It belongs under `train`: train.max_steps."),
        ("lora: {method: qlra}\n", "r.yaml:4:8: lora.method: 'qlra' is none of", "Did you mean qlora?"),
        ("lora: {targets: 3}\n", "r.yaml:4:8: lora.targets: 3", "schema"),
        ("train: {epochs: no}\n", "train.epochs: 'no' is not a valid number", "schema"),
        ("train: {epochs: .inf}\n", "train.epochs", "schema"),
        ("train: {max_steps: 1.5}\n", "train.max_steps", "schema"),
        ("train: 3\n", "r.yaml:4:1: train: 3 is not an object", "schema"),
        ("gates: {parity: yes}\n", "gates.parity: 'yes'", "schema"),
        ("export: {types: [Q4_K_M, 'Q4; rm -rf /']}\n", "export.types[1]", "schema"),
        ("export: {name: ../../etc}\n", "export.name", "schema"),
        ("train: {early_stopping: {patience: 1}}\n", "train.early_stopping: needs `eval_steps`", "schema"),
        ("train: {launch: {processes: 2}}\n", "train.launch.strategy: several processes", "schema"),
        ("gates: {max_forgetting: 0.1}\n", "gates.max_forgetting: needs", "schema"),
        ("base: {model: n}\n", "r.yaml:4:1: the key 'base' is here a second time", "line 1"),
        ("train: !!python/object/apply:os.system [id]\n", "r.yaml:4:8: a tag", "schema"),
        ("train: &a [*a]\n", "r.yaml:4:8: an anchor", "schema"),
        ("<<: {train: 1}\n", "r.yaml:4:1: a merge key", "schema"),
        ("? [a]\n: 1\n", "a key must be a word", "schema"),
        ("--- \nbase: {}\n", "r.yaml:4:1: a second document", "One file"),
        ("train: {seed: " + "9" * 5000 + "}\n", "a number of 5000 digits", "schema"),
        ("train: " + "[" * 5000 + "\n", "nested more than", "schema"),
        ("train: 'a\0b'\n", "r.yaml:4: the character U+0000", "schema"),
        ('train: "\\0"\n', "r.yaml:4:1: a text holds a character", "schema"),
        ('train: "\\Uffffffff"\n', "not YAML", "schema"),
        ("train: {epochs: 3\n", "r.yaml:5:1: not YAML", "schema"),
        ("\ttrain: 1\n", "r.yaml:4:1: not YAML", "schema"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_the_way_out(more: str, said: str, way_out: str) -> None:
    error = refused(GOOD + more)
    assert said in error.message
    assert way_out in str(error.hint)


def test_all_mistakes_are_told_at_once() -> None:
    error = refused("base: {}\ndata: {trian: x}\ntrain: {lr: 1}\n")
    assert len(error.details["problems"]) == 3
    assert "Did you mean train?" in error.message
    assert "Here it is called train.learning_rate." in error.message
    assert "data.train: missing" in error.message


def test_an_alias_bomb_ends_at_its_first_anchor() -> None:
    bomb = "a: &a [x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)},*{chr(97 + i)}]\n" for i in range(20)
    )
    assert "r.yaml:1:4: an anchor" in refused(bomb).message


@pytest.mark.parametrize("text", ["", "- a\n", "3", "null", "# nothing\n"])
def test_what_is_no_recipe_is_said_to_be_none(text: str) -> None:
    assert "a recipe is a set of sections" in refused(text).message


def test_a_file_that_is_too_large_or_not_text_is_refused(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_text("# " + "x" * yamltext.MOST_BYTES)
    with pytest.raises(BadUsage, match="characters; a recipe has"):
        load.load(large)
    (tmp_path / "latin.yaml").write_bytes(b"base: {model: m}\n# \xe9\n")
    with pytest.raises(BadUsage, match=r"latin.yaml:2: not UTF-8"):
        load.load(tmp_path / "latin.yaml")
    with pytest.raises(BadUsage, match="no such file"):
        load.load(tmp_path / "none.yaml")
    with pytest.raises(BadUsage, match="Is a directory"):
        load.load(tmp_path)


def test_overrides_come_last_and_name_themselves() -> None:
    recipe = load.parse(
        GOOD,
        "r.yaml",
        ["train.max_steps=20", "lora.targets=[q_proj, v_proj]", "data.roles.human=user", "gates.min_gain="],
    )
    assert recipe.train.max_steps == 20
    assert recipe.lora.targets == ("q_proj", "v_proj")
    assert recipe.data.roles == {"human": "user"}
    assert recipe.gates.min_gain is None
    assert "--set train.max_stepz=1: train.max_stepz: unknown key" in refused(GOOD, "train.max_stepz=1").message
    assert "not of the form" in refused(GOOD, "train.max_steps").message
    assert "is no section" in refused(GOOD, "data.train.x=1").message
    assert "a tag" in refused(GOOD, "data.train=!!python/name:os.system").message
    assert "--set train.epochs=x: train.epochs" in refused(GOOD + "train: {epochs: 1}\n", "train.epochs=x").message


def test_the_hash_is_of_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yaml").write_text("# another spelling\n" + GOOD + "train: {epochs: 1}\n")
    a, b = load.load(tmp_path / "a.yaml"), load.load(tmp_path / "b.yaml")
    assert a.sha256 == b.sha256 != load.load(tmp_path / "a.yaml", ["train.epochs=2"]).sha256
    assert a.name == "a"
    assert a.file("rows.jsonl") == tmp_path / "rows.jsonl"
    again = load.parse(json.dumps(a.resolved()))
    assert again == a.recipe, "what is resolved is a recipe again"


def test_the_schema_says_what_the_parser_takes() -> None:
    import jsonschema

    body = schema.schema()
    jsonschema.Draft202012Validator.check_schema(body)
    judge = jsonschema.Draft202012Validator(body)
    judge.validate(yaml.safe_load(GOOD))
    judge.validate(json.loads(json.dumps(load.parse(GOOD).model_dump(mode="json", by_alias=True))))
    assert list(judge.iter_errors({"base": {}, "data": {"train": "x"}, "trian": {}}))


def test_every_key_is_described_and_names_of_other_tools_lead_to_one() -> None:
    known = dict(load.keys(Recipe))
    assert all(info.description for info in known.values())
    assert set(KNOWN_ELSEWHERE.values()) <= set(known)
    assert not {full.rpartition(".")[2] for full in known} & set(KNOWN_ELSEWHERE), "never reached: the key is ours"
    assert len(list(schema.rows())) > 50


NAMES = sorted({part for full, _ in load.keys(Recipe) for part in full.split(".")})
SCALARS = st.one_of(
    st.sampled_from([*NAMES, "!!python/object:a", "&a", "*a", "<<", "1e-4", "~", "0x1F", "'", '"', "- ", "? ", "\0"]),
    st.text(max_size=8), st.integers().map(str), st.floats().map(str),
)  # fmt: skip
LINES = st.tuples(
    st.sampled_from(["", "  ", "    ", "\t", "- "]), SCALARS, st.sampled_from([": ", ":", "", ": ["]), SCALARS
)
TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(LINES.map("".join), max_size=12).map("\n".join),
    st.lists(LINES.map("".join), max_size=6).map(lambda lines: GOOD + "\n".join(lines)),
)


def outcome(text: str, *overrides: str) -> Recipe | str:
    try:
        return load.parse(text, "r.yaml", overrides)
    except BadUsage as e:
        return e.message


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_any_text_is_a_recipe_or_a_refusal(text: str) -> None:
    found = outcome(text)
    assert isinstance(found, Recipe) or (found.startswith("r.yaml") and "\0" not in found)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=60), st.tuples(st.sampled_from(NAMES), st.text(max_size=40)).map("=".join)))
def test_any_override_is_taken_or_refused(override: str) -> None:
    assert outcome(GOOD, override)
