"""The policy file: V1, closed schema, TOML and YAML alike."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomlkit
import yaml
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.errors import BadUsage
from miyabi_llm.route import policy
from miyabi_llm.route.decide import decide
from miyabi_llm.route.schema import SCHEMA
from miyabi_llm.route.values import Facts, Policy, State, Target, Upstream, Verdict
from tests.route.policies import BOTH

CLEAN = Facts("anthropic", "claude-sonnet-5-5", "/v1/messages", est_tokens=10, complete=True)
SPARE = Target("spare", "local", Upstream("http://127.0.0.1:1"))
CLOUD = Target("cloud", "claude", Upstream("http://127.0.0.1:2"))


def clouds(found: Policy) -> list[str]:
    """Every cloud target that any decision with this policy could name."""
    decision = decide(found, CLEAN, State())
    return [n for n in (decision.target, *decision.fallbacks) if n and not found.target(n).local]


def test_a_whole_policy_lets_a_clean_request_leave() -> None:
    found = policy.parse(BOTH)
    assert clouds(found) == ["claude"]
    assert found.target("local").endpoint.base_url == "http://127.0.0.1:8080"


BAD = {
    "empty": "",
    "blank": "\n \n",
    "invalid": "version = 1\nmode = ",
    "unknown key": BOTH.replace("deny_globs", "deny_glob"),
    "unknown top key": BOTH.replace("version = 1", "version = 1\nverson = 1"),
    "newer version": BOTH.replace("version = 1", "version = 2"),
    "no version": BOTH.replace("version = 1", ""),
    "no privacy": BOTH.split("[privacy]")[0] + policy.END,
    "no last line": BOTH.replace(policy.END, ""),
    "wrong verdict": BOTH.replace('"public"', '"publik"'),
    "cloud cleared": BOTH.replace("key_env", 'clearance = "confidential"\nkey_env'),
    "rule without target": BOTH.replace('use = "local"', 'use = "lokal"'),
    "public network": BOTH.replace("context = 32768", 'hosts = ["0.0.0.0/0"]'),
}


@pytest.mark.parametrize("what", BAD)
def test_v1_a_bad_policy_denies_every_cloud(what: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(BAD[what])
    found = policy.load(path, [SPARE, CLOUD])
    assert found.error
    assert clouds(found) == []
    assert [t.name for t in found.targets] == ["spare"]


def test_v1_missing_unreadable_and_not_text(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "bytes.toml").write_bytes(BOTH.encode() + b"\xff\xfe")
    (tmp_path / "huge.toml").write_bytes(BOTH.encode() + b"#" * policy.LIMIT)
    for name in ("none.toml", "folder.toml", "bytes.toml", "huge.toml"):
        found = policy.load(tmp_path / name, [SPARE])
        assert found.error, name
        assert clouds(found) == []


def test_v1_every_partial_write_denies_every_cloud(tmp_path: Path) -> None:
    """The file cut after each byte: TOML that ends early is often valid TOML."""
    whole = BOTH.rstrip("\n").encode()
    as_yaml = (yaml.safe_dump(tomlkit.parse(BOTH).unwrap(), sort_keys=False) + policy.END).encode()
    for name, data in (("policy.toml", whole), ("policy.yaml", as_yaml)):
        path = tmp_path / name
        for n in range(len(data)):
            path.write_bytes(data[:n])
            assert clouds(policy.load(path, [SPARE, CLOUD])) == [], (name, n)
        path.write_bytes(data)
        assert clouds(policy.load(path)) == ["claude"], name


def test_toml_and_yaml_say_the_same() -> None:
    text = yaml.safe_dump(tomlkit.parse(BOTH).unwrap(), sort_keys=False, allow_unicode=True)
    one, two = policy.parse(BOTH), policy.parse(text + policy.END, "policy.yaml")
    for name in ("mode", "targets", "rules", "privacy", "budget", "electricity", "limits"):
        assert getattr(one, name) == getattr(two, name)


@pytest.mark.parametrize(
    ("change", "says", "hint"),
    [
        (("deny_globs", "deny_glbs"), "policy.toml:24: privacy.deny_glbs: unknown key", "privacy.deny_globs?"),
        (('kind = "claude"', 'kind = "cloud"'), 'policy.toml:6: targets.claude.kind: "cloud" is not known', "claude?"),
        (('use = "local"', 'use = "lokal"'), "policy.toml:19: rules[0].use: there is no target 'lokal'", "local?"),
        (("32768", "0"), "policy.toml:14: targets.local.context: 0 is out of range", None),
        (("ANTHROPIC_API_KEY", "sk-ant-abc"), "policy.toml:8: targets.claude.key_env", "NAME of a variable"),
    ],
)
def test_messages_say_line_key_and_what_was_meant(change: tuple[str, str], says: str, hint: str | None) -> None:
    with pytest.raises(BadUsage) as e:
        policy.parse(BOTH.replace(*change))
    assert "sk-ant" not in e.value.message
    assert says in e.value.message
    assert hint is None or hint in (e.value.hint or "")


def test_the_schema_is_a_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(tomlkit.parse(BOTH).unwrap(), SCHEMA)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.sampled_from(["a", "local", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PATHS = st.sampled_from(
    [(), ("mode",), ("version",), ("targets", "claude"), ("targets", "claude", "url"), ("targets", "local", "aliases"),
     ("rules",), ("rules", 0), ("rules", 0, "when"), ("rules", 0, "when", "hint"), ("privacy",),
     ("privacy", "projects"), ("privacy", "default_verdict"), ("limits",), ("budget",), ("electricity",)]
)  # fmt: skip


@given(PATHS, JSON, st.sampled_from(["", "extra", "per_usd", "min_tokens"]))
def test_our_check_agrees_with_jsonschema(path: tuple[str | int, ...], value: object, key: str) -> None:
    from miyabi_llm import documents

    body = tomlkit.parse(BOTH).unwrap()
    place: Any = body
    for part in path[:-1]:
        place = place[part]
    here = (place.get(path[-1]) if isinstance(place, dict) else place[path[-1]]) if path else body
    if key and isinstance(here, dict):
        here[key] = value
    elif path:
        place[path[-1]] = value
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid(body)
    try:
        documents.check(documents.Document("p", body, {}), SCHEMA)
        ours = True
    except BadUsage:
        ours = False
    if ours != valid:  # JSON Schema takes 1.0 for a whole number; we do not
        assert not ours
        assert ".0" in json.dumps(body)


@given(st.text())
def test_any_text_is_a_policy_or_bad_usage(text: str) -> None:
    for name in ("p.toml", "p.yaml"):
        try:
            found = policy.parse(text, name)
        except BadUsage:
            continue
        assert clouds(found) == []


def test_a_client_only_tightens() -> None:
    """V7 in the small: whatever the client asks, the verdict never falls."""
    found = policy.parse(BOTH)
    for asked in Verdict:
        assert decide(found, replace(CLEAN, asked=asked), State()).verdict >= asked
