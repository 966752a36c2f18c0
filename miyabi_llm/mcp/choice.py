"""What the gateway's policy says of a question: which local target it means, and how a request would be judged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from miyabi_llm.errors import MiyabiError
from miyabi_llm.mcp import local
from miyabi_llm.types import Endpoint, Secret

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.route.ask import Asked
    from miyabi_llm.route.explain import Explained
    from miyabi_llm.route.values import Policy, Target
    from miyabi_llm.serve import ServerInfo


def explained(settings: Settings, text: str, headers: Mapping[str, str]) -> Explained:
    """How the policy would decide about a prompt. Sends nothing. Without a policy, everything stays here."""
    from miyabi_llm.route import prices
    from miyabi_llm.route.ask import MODEL
    from miyabi_llm.route.explain import explain
    from miyabi_llm.route.places import places

    asked = _asked("/v1/messages", MODEL, text, headers)
    return explain(_policy(settings), asked, prices.load(places(settings).prices))


def chosen(settings: Settings, text: str, hints: tuple[str, ...], running: list[ServerInfo]) -> Endpoint | None:
    """The local target the policy means for a prompt, that answers now; None without a policy or such a target.

    The policy is taken in its mode `local`: whatever it says of clouds, none is asked.
    """
    from miyabi_llm.route import prices
    from miyabi_llm.route.explain import explain

    policy = _policy(settings)
    if policy.error or not any(t.local for t in policy.targets):
        return None
    headers = {"x-miyabi-privacy": "confidential", **({"x-miyabi-hint": ",".join(hints)} if hints else {})}
    asked = _asked("/v1/chat/completions", "", text, headers)
    found = explain(replace(policy, mode="local"), asked, prices.BUILT_IN).decision
    for target in _targets(policy, (found.target, *found.fallbacks)):
        try:
            return _reached(target, settings, running)
        except MiyabiError:
            continue  # it does not answer, or is not on this machine: the next one
    return None


def _policy(settings: Settings) -> Policy:
    from miyabi_llm.route import policy
    from miyabi_llm.route.places import places

    file = places(settings).policy
    return policy.load(file) if file.is_file() else policy.denied("there is no policy: nothing goes to a cloud")


def _asked(path: str, model: str, text: str, headers: Mapping[str, str]) -> Asked:
    from miyabi_llm.route.ask import Asked

    body = {"model": model, "max_tokens": 1024, "messages": [{"role": "user", "content": text}]}
    return Asked(path, headers, json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"))


def _targets(policy: Policy, names: tuple[str | None, ...]) -> Iterator[Target]:
    for name in names:
        target = policy.target(name) if name else None
        if target is not None and target.local and "openai" in target.endpoint.dialects:
            yield target


def _reached(target: Target, settings: Settings, running: list[ServerInfo]) -> Endpoint:
    """The target as an endpoint that answers. Raises MiyabiError when it does not, or is elsewhere."""
    from miyabi_llm.client import Client

    place = target.endpoint
    local.refuse_remote(place.base_url)
    ours = next((s for s in running if s.endpoint.base_url == place.base_url), None)
    variable = settings.env.get(place.key_env, "") if place.key_env else ""
    key = Secret(variable) if variable else ours.endpoint.key if ours else None
    backend = place.backend or (ours.backend if ours else "")
    endpoint = Endpoint(place.base_url, place.model, key=key, backend=backend)
    with Client(endpoint) as client:
        names = client.models()
        kind = client.kind()
    model = place.model or (names[0] if names else "")
    endpoint = replace(endpoint, model=model, backend=backend or {"llama.cpp": "llama-cpp"}.get(kind, kind))
    if kind == "ollama":
        local.refuse_remote_model(endpoint)
    return endpoint
