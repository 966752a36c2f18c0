"""Settings inside JSON, TOML, YAML and env text: what we set is there, what we did not set is as it was."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.connect import envtext, jsontext, tomltext, yamltext

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LEAF = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT
TREE = st.recursive(LEAF, lambda t: st.lists(t, max_size=3) | st.dictionaries(TEXT, t, max_size=3), max_leaves=12)
OBJECT = st.dictionaries(TEXT, TREE, max_size=4)
KEYS = st.lists(TEXT, min_size=1, max_size=3).map(tuple)


def put(tree: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


def passable(tree: Any, keys: tuple[str, ...]) -> bool:
    for key in keys[:-1]:
        if not isinstance(tree, dict):
            return False
        tree = tree.get(key, {})
    return isinstance(tree, dict)


@given(OBJECT, KEYS, TREE, st.sampled_from([None, 1, 2, 4, "\t"]))
def test_json_says_what_was_set_and_nothing_else_changed(
    tree: dict[str, Any], keys: Any, value: Any, unit: Any
) -> None:
    text = json.dumps(tree, indent=unit, ensure_ascii=False)
    if not passable(tree, keys):
        with pytest.raises(ValueError, match="is not an object"):
            jsontext.edit(text, {keys: value})
        return
    new = jsontext.edit(text, {keys: value})
    put(tree, keys, value)
    assert json.loads(new) == tree
    assert jsontext.edit(new, {keys: value}) == new
    assert jsontext.has(new, keys)
    gone = jsontext.edit(new, {}, (keys,))
    assert not jsontext.has(gone, keys)
    json.loads(gone)


COMMENTED = """\
{
  // where it listens
  "a": 1, /* one */
  "b": {"c": [1, 2,], "d": "//no comment"}, // two
  "e": "x", // three
}
"""


def bare(text: str) -> Any:
    """JSON with comments, read by another way than ours."""
    text = re.sub(r'("(?:[^"\\]|\\.)*")|//[^\n]*|/\*.*?\*/', lambda m: m[1] or "", text, flags=re.DOTALL)
    return json.loads(re.sub(r",(\s*[}\]])", r"\1", text))


def test_json_comments_and_trailing_commas_stay() -> None:
    new = jsontext.edit(COMMENTED, {("b", "z"): True, ("f",): {"g": 1}, ("a",): 7})
    assert bare(new) == {"a": 7, "b": {"c": [1, 2], "d": "//no comment", "z": True}, "e": "x", "f": {"g": 1}}
    for comment in ("// where it listens", "/* one */", "// two", "// three", '"c": [1, 2,]'):
        assert comment in new
    assert bare(jsontext.edit(COMMENTED, {}, (("e",), ("a",), ("b", "d")))) == {"b": {"c": [1, 2]}}


def test_json_is_laid_out_as_its_neighbours() -> None:
    assert (
        jsontext.edit('{\n\t"a": {\n\t\t"b": 1\n\t}\n}\n', {("a", "c"): 2})
        == '{\n\t"a": {\n\t\t"b": 1,\n\t\t"c": 2\n\t}\n}\n'
    )
    assert jsontext.edit('{"a": 1}', {("b",): 2}) == '{"a": 1, "b": 2}'
    assert jsontext.edit("", {("a", "b"): 2}) == '{\n  "a": {\n    "b": 2\n  }\n}\n'
    assert jsontext.edit('\ufeff{"a": 1}', {("a",): 2}) == '\ufeff{"a": 2}'


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{]",
        '{"a" 1}',
        '{"a": }',
        '{"a": 1 "b": 2}',
        "{,}",
        '{"a": tru}',
        "{} x",
        '{"a\n": 1}',
        "[" * 500,
        "//",
    ],
)
def test_json_that_is_none_is_said_with_its_place(text: str) -> None:
    with pytest.raises(ValueError, match=r"line \d+ column \d+"):
        jsontext.edit(text, {("a",): 1})


@given(st.text(alphabet='{}[]",:/*\\ \n1ta', max_size=30))
def test_any_text_is_json_or_a_value_error(text: str) -> None:
    try:
        new = jsontext.edit(text, {("k",): 1})
    except ValueError:
        return
    assert jsontext.has(new, ("k",))
    assert jsontext.edit(new, {("k",): 1}) == new


TOML = """\
# mine
model = "old" # the model
[mcp_servers.x]   # a server
command = "npx"

[model_providers.other]
name = "o"
"""
PROVIDER = {"name": "n", "auth": {"command": "cat", "args": ["/a b/c"]}}


def test_toml_keeps_comments_and_puts_top_keys_above_tables() -> None:
    values = {("model",): "new", ("model_provider",): "us", ("model_providers", "us"): PROVIDER}
    new = tomltext.edit(TOML, values)
    assert tomllib.loads(new) == {
        "model": "new",
        "model_provider": "us",
        "mcp_servers": {"x": {"command": "npx"}},
        "model_providers": {"other": {"name": "o"}, "us": PROVIDER},
    }
    for kept in ("# mine", "# the model", "[mcp_servers.x]   # a server"):
        assert kept in new
    assert tomltext.edit(new, values) == new
    other = {("model_providers", "us"): {"name": "n", "env_key": "K"}}
    assert tomllib.loads(tomltext.edit(new, other))["model_providers"]["us"] == {"name": "n", "env_key": "K"}


@given(st.dictionaries(TEXT, TEXT, max_size=3), TEXT, TEXT)
def test_toml_says_what_was_set(there: dict[str, str], model: str, path: str) -> None:
    start = tomltext.edit("", {("table", k): v for k, v in there.items()})
    values = {("model",): model, ("p", "us"): {"auth": {"args": [path]}}}
    new = tomltext.edit(start, values)
    assert tomllib.loads(new) == tomllib.loads(start) | {"model": model, "p": {"us": {"auth": {"args": [path]}}}}
    assert tomltext.edit(new, values) == new


@pytest.mark.parametrize("text", ["a = ", "[a", "a = 1\na = 2"])
def test_toml_that_is_none_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        tomltext.edit(text, {("b",): 1})


ITEM = {"name": "us", "model": "m: x", "roles": ["chat"]}
ITEMS = {("name",): "Local", ("models", "us"): ITEM}


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("", []),
        ("# mine\nname: Work\n", []),
        ("name: Work\nmodels:\nrules: [x]\n", []),
        ("name: Work\nmodels: []   # none\n", []),
        ("name: Work\nmodels: [{name: a}]\n", [{"name": "a"}]),
        ("name: Work\nmodels:\n- name: a # A\n  k: 1\n\n# end\nrules:\n- x\n", [{"name": "a", "k": 1}]),
        (
            "name: Work\nmodels:\n    -   name: a\n        k: |\n            t\n            u\n\nrules: []\n",
            [{"name": "a", "k": "t\nu\n"}],
        ),
        (
            "name: Work\nmodels:\n  - name: us\n    model: old\n    roles:\n      - chat\n      - edit\n  - name: b\n",
            [{"name": "b"}],
        ),
        ("name: Work\nmodels:\n  - name: a\n  - {name: us, model: old}", [{"name": "a"}]),
    ],
)
def test_yaml_gets_our_item_and_keeps_the_others(text: str, others: list[Any]) -> None:
    new = yamltext.edit(text, ITEMS)
    value = yaml.safe_load(new)
    assert sorted((i for i in value["models"] if i["name"] != "us"), key=str) == others
    assert [i for i in value["models"] if i["name"] == "us"] == [ITEM]
    before = yaml.safe_load(text) or {"name": "Local"}
    assert {k: v for k, v in value.items() if k != "models"} == {k: v for k, v in before.items() if k != "models"}
    assert all(comment in new for comment in re.findall(r"#.*", text))
    assert yamltext.edit(new, ITEMS) == new


@given(st.dictionaries(st.sampled_from(["name", "rules", "x"]), TREE, min_size=1), st.lists(OBJECT, max_size=3), TEXT)
def test_yaml_says_what_was_set(head: dict[str, Any], models: list[Any], name: str) -> None:
    text = yaml.safe_dump(head | {"models": models}, allow_unicode=True)
    item = {"name": name, "apiBase": "http://x"}
    new = yamltext.edit(text, {("models", name): item})
    kept = [m for m in yaml.safe_load(text)["models"] if m.get("name") != name]
    found = yaml.safe_load(new)
    assert item in found.pop("models")
    assert all(m in yaml.safe_load(new)["models"] for m in kept)
    assert found == {k: v for k, v in yaml.safe_load(text).items() if k != "models"}
    assert yamltext.edit(new, {("models", name): item}) == new


@pytest.mark.parametrize("text", ["a: [", "- a", "{a: 1}", "models: 3", "a: b: c"])
def test_yaml_that_is_none_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        yamltext.edit(text, ITEMS)


def test_env_lines() -> None:
    text = "A=1\nexport KEY = old\n# KEY=no\nB=2"
    new = envtext.edit(text, {("KEY",): "a'b#", ("C",): "x"})
    assert new == 'A=1\nKEY="a\'b#"\n# KEY=no\nB=2\nC=x\n'
    assert envtext.edit(new, {("KEY",): "a'b#", ("C",): "x"}) == new
    assert envtext.edit(new, {}, (("C",),)) == 'A=1\nKEY="a\'b#"\n# KEY=no\nB=2\n'
