"""Tests of a policy: requests with what is expected of the decision about each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from miyabi_llm import documents
from miyabi_llm.errors import BadUsage
from miyabi_llm.route import ask
from miyabi_llm.route.explain import Explained, explain
from miyabi_llm.route.prices import Prices
from miyabi_llm.route.values import Health, Policy, State, Verdict

_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["probes"],
    "properties": {
        "policy": _TEXT,
        "probes": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "expect"],
                "properties": {
                    "name": _TEXT,
                    "file": _TEXT,
                    "text": _TEXT,
                    "body": {"type": "object"},
                    "path": _TEXT,
                    "headers": {"type": "object", "additionalProperties": _TEXT},
                    "down": _TEXTS,
                    "tainted": {"type": "boolean"},
                    "budget_left": {"type": "number", "minimum": 0},
                    "expect": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "verdict": {"type": "string", "enum": ["public", "internal", "confidential"]},
                            "target": _TEXT,
                            "not_target": _TEXTS,
                            "fallbacks": _TEXTS,
                            "rule": _TEXT,
                            "detected": _TEXTS,
                            "complete": {"type": "boolean"},
                        },
                    },
                },
            },
        },
    },
}


@dataclass(frozen=True, slots=True)
class Probed:
    """One probe: `wrong` has what was not as expected (empty: passed)."""

    name: str
    target: str | None
    verdict: Verdict
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Probes:
    """A file of probes; `policy` is the policy it names, by its path, empty for none."""

    policy: str
    probes: tuple[Mapping[str, Any], ...]
    folder: Path


def load(path: Path) -> Probes:
    """The probes of a file. Raises BadUsage with line and key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise BadUsage(f"{path}: {e}", hint="Give a file of probes.") from e
    document = documents.parse(text, str(path))
    documents.check(document, SCHEMA)
    for i, probe in enumerate(document.value["probes"]):
        if sum(k in probe for k in ("file", "text", "body")) != 1:
            raise document.wrong(("probes", i), "has not exactly one of file, text and body")
    return Probes(document.value.get("policy", ""), tuple(document.value["probes"]), path.parent)


def run(probes: Probes, policy: Policy, prices: Prices) -> tuple[Probed, ...]:
    """Decide about every probe. Sends nothing. Raises BadUsage for a file that cannot be read."""
    return tuple(_probe(p, probes.folder, policy, prices) for p in probes.probes)


def _probe(probe: Mapping[str, Any], folder: Path, policy: Policy, prices: Prices) -> Probed:
    headers = probe.get("headers", {})
    if "file" in probe:
        try:
            data = (folder / probe["file"]).read_bytes()
        except OSError as e:
            raise BadUsage(f"{folder / probe['file']}: {e.strerror}") from e
        asked = ask.read(data, probe["file"], headers)
    else:
        data = json.dumps(probe["body"], ensure_ascii=False).encode() if "body" in probe else probe["text"].encode()
        asked = ask.read(data, probe["name"], headers)
    if "path" in probe:
        asked = replace(asked, path=probe["path"])
    health = {name: Health(healthy=False, why="down") for name in probe.get("down", ())}
    state = State(health, probe.get("budget_left"))
    taint = Verdict.CONFIDENTIAL if probe.get("tainted") else Verdict.PUBLIC
    found = explain(policy, asked, prices, state, taint)
    return Probed(probe["name"], found.decision.target, found.decision.verdict, tuple(_wrong(probe["expect"], found)))


def _wrong(expect: Mapping[str, Any], found: Explained) -> list[str]:
    decision = found.decision
    target = decision.target or "none"
    got: Mapping[str, Any] = {
        "verdict": decision.verdict.name.lower(), "target": target, "fallbacks": list(decision.fallbacks),
        "rule": decision.rule, "complete": found.complete,
    }  # fmt: skip
    wrong = [f"{key}: {got[key]}, not {expect[key]}" for key in got if key in expect and got[key] != expect[key]]
    wrong += [f"target: {n}" for n in expect.get("not_target", ()) if n == target or n in decision.fallbacks]
    wrong += [f"not detected: {kind}" for kind in expect.get("detected", ()) if kind not in decision.detected]
    return wrong
