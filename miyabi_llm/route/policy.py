"""The policy file: read whole or not at all. A policy that cannot be trusted denies every cloud target."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from miyabi_llm import documents
from miyabi_llm.documents import Document
from miyabi_llm.errors import BadUsage
from miyabi_llm.route.schema import NAME, SCHEMA, VERSION
from miyabi_llm.route.values import (
    Budget,
    Dialect,
    Electricity,
    Limits,
    Policy,
    Privacy,
    Project,
    Rule,
    Target,
    Upstream,
    Verdict,
    When,
)

__all__ = ["END", "NAME", "denied", "load", "parse", "read"]

LIMIT = 1 << 20  # bytes of the file
END = "# end of policy"  # the last line: a file cut anywhere else is seen to be cut, even where the rest is valid


def read(path: Path) -> Policy:
    """The policy in a file. Raises BadUsage with file, line and key for anything but a whole, valid policy."""
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
        if len(data) > LIMIT:
            raise BadUsage(f"{path}: more than {LIMIT >> 20} MiB")
        return parse(data.decode("utf-8"), str(path))
    except FileNotFoundError as e:
        raise BadUsage(f"{path}: there is no policy", hint="Write one: miyabi-llm route init") from e
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror or e}", hint="Make the policy readable.") from e
    except UnicodeDecodeError as e:
        raise BadUsage(f"{path}: not UTF-8: {e.reason}") from e


def load(path: Path, local: Sequence[Target] = ()) -> Policy:
    """The policy in a file, or one that denies all clouds and says why in `error`. Never raises.

    `local` are local targets to go on with when the file cannot be trusted.
    """
    try:
        return read(path)
    except BadUsage as e:
        return denied(e.message, local, str(path))


def denied(error: str, local: Sequence[Target] = (), source: str = "") -> Policy:
    """The policy when there is none to trust: local targets only, everything confidential. Pure."""
    return Policy("local", tuple(t for t in local if t.local), source=source, error=error or "no policy")


def parse(text: str, name: str = "policy.toml") -> Policy:
    """The policy that `text` says, TOML or YAML by the name's ending. Raises BadUsage with line and key. Pure."""
    if not text.strip():
        raise BadUsage(f"{name}: empty", hint="Write one: miyabi-llm route init")
    document = documents.parse(text, name)
    value = document.value
    version = value.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        raise document.wrong(("version",), f"{version} is newer than {VERSION}", "Update miyabi-llm.")
    documents.check(document, SCHEMA)
    targets = tuple(_target(document, key, body) for key, body in value.get("targets", {}).items())
    if any(not t.local for t in targets):
        if "privacy" not in value:
            hint = "Say [privacy] default_verdict: a policy with a cloud target says what may leave."
            raise document.wrong(("privacy",), "is missing", hint)
        if text.rstrip().rsplit("\n", 1)[-1].strip() != END:
            hint = f"Make `{END}` the last line: without it a half-written file cannot be told from a whole one."
            raise BadUsage(f"{name}:{text.count(chr(10)) + 1}: the last line is missing", hint=hint)
    _unique(document, targets)
    privacy = value.get("privacy", {"default_verdict": "confidential"})
    return Policy(
        mode=value["mode"],
        targets=targets,
        rules=_rules(document, targets),
        privacy=_privacy(privacy),
        budget=Budget(**value.get("budget", {})),
        electricity=Electricity(**value.get("electricity", {})),
        limits=Limits(**value.get("limits", {})),
        source=name,
        digest=hashlib.sha256(text.encode()).hexdigest(),
    )


def _target(document: Document, name: str, body: Mapping[str, Any]) -> Target:
    import re

    path = ("targets", name)
    if not re.search(NAME, name):
        raise document.wrong(path, f"{name!r} is no name for a target")
    local = body["kind"] == "local"
    usual: tuple[Dialect, ...] = ("anthropic", "openai") if local else ("anthropic",)
    if body.get("backend") == "ollama":
        usual = get_args(Dialect)
    clearance = Verdict.CONFIDENTIAL if local else Verdict.PUBLIC
    if "clearance" in body:
        clearance = Verdict[body["clearance"].upper()]
        if not local and clearance is not Verdict.PUBLIC:
            raise document.wrong((*path, "clearance"), "a cloud target never sees more than public")
    if not local and body.get("hosts"):
        raise document.wrong((*path, "hosts"), "is for local targets")
    for i, host in enumerate(body.get("hosts", ())):
        try:
            public = ipaddress.ip_network(host, strict=False).is_global
        except ValueError as e:
            raise document.wrong((*path, "hosts", i), str(e), "An address or a network: 192.168.1.0/24.") from e
        if public:
            raise document.wrong((*path, "hosts", i), f"{host} is on the public internet, and so not local")
    endpoint = Upstream(
        base_url=body["url"].rstrip("/").removesuffix("/v1"),
        model=body.get("model", ""),
        dialects=tuple(body.get("dialects", usual)),
        key_env=body.get("key_env", ""),
        backend=body.get("backend", ""),
        hosts=tuple(body.get("hosts", ())),
    )
    price = body.get("price", "" if local else body.get("model", ""))
    return Target(
        name, body["kind"], endpoint, body.get("context", 0), price, tuple(body.get("aliases", ())), clearance
    )


def _unique(document: Document, targets: Sequence[Target]) -> None:
    seen: dict[str, str] = {}
    for target in targets:
        for word in dict.fromkeys((target.name, *target.aliases)):
            if (other := seen.setdefault(word.lower(), target.name)) != target.name:
                raise document.wrong(("targets", target.name), f"{word!r} means the target {other} already")


def _rules(document: Document, targets: Sequence[Target]) -> tuple[Rule, ...]:
    import difflib

    names = [t.name for t in targets]
    rules: list[Rule] = []
    for i, body in enumerate(document.value.get("rules", ())):
        path = ("rules", i)
        uses = [(("use",), body["use"]), *((("fallback", n), name) for n, name in enumerate(body.get("fallback", ())))]
        for key, name in uses:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f"Did you mean {near[0]}?" if near else f"Targets: {', '.join(names) or 'none'}."
                raise document.wrong((*path, *key), f"there is no target {name!r}", hint)
        if any(body["name"] == r.name for r in rules):
            raise document.wrong((*path, "name"), f"{body['name']!r} is another rule's name")
        when = _when(body.get("when", {}))
        if when.max_tokens and when.min_tokens > when.max_tokens:
            raise document.wrong((*path, "when"), "min_tokens is larger than max_tokens: never true")
        rules.append(Rule(body["name"], when, body["use"], tuple(body.get("fallback", ()))))
    return tuple(rules)


def _when(body: Mapping[str, Any]) -> When:
    return When(
        models=tuple(body.get("model", ())),
        headers=MappingProxyType({k.lower(): v for k, v in body.get("header", {}).items()}),
        paths=tuple(body.get("path", ())),
        projects=tuple(body.get("project", ())),
        hints=tuple(h.lower() for h in body.get("hint", ())),
        verdicts=tuple(Verdict[v.upper()] for v in body.get("verdict", ())),
        stream=body.get("stream"),
        min_tokens=body.get("min_tokens", 0),
        max_tokens=body.get("max_tokens", 0),
    )


def _privacy(body: Mapping[str, Any]) -> Privacy:
    return Privacy(
        default_verdict=Verdict[body["default_verdict"].upper()],
        deny_globs=tuple(body.get("deny_globs", ())),
        projects=tuple(Project(p["match"], Verdict[p["verdict"].upper()]) for p in body.get("projects", ())),
        ignore=tuple(body.get("ignore", ())),
        allow=tuple(body.get("allow", ())),
        names=body.get("names", False),
    )
