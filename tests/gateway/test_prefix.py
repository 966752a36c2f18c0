"""Claude Code's billing line changes with every request; through the gateway a local server still uses its cache."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from miyabi_llm import config, serve
from miyabi_llm.cli import plans
from miyabi_llm.store import Store
from miyabi_llm.types import Artifact, Endpoint
from tests.gateway.house import policy, running

RULES = "Answer in one word. " * 60


def cached(http: httpx.Client, model: str, hash_: str) -> int:
    """Tokens that the server took from its cache for a request with this hash."""
    billing = f"x-anthropic-billing-header: cc_version=2.1.0.abc; cc_entrypoint=cli; cch={hash_};"
    system = [{"type": "text", "text": billing}, {"type": "text", "text": RULES}]
    messages = [{"role": "user", "content": "Hello"}]
    body: dict[str, Any] = {"model": model, "max_tokens": 1, "system": system, "messages": messages}
    answer = http.post("/v1/messages", json=body)
    assert answer.status_code == 200, answer.text
    return int(json.loads(answer.text)["usage"].get("cache_read_input_tokens", 0))


@pytest.mark.slow
def test_the_prompt_cache_survives_the_billing_line(
    real_server: Path, real_store: Store, real_artifact: Artifact, tmp_path: Path
) -> None:
    path = os.pathsep.join([str(real_server.parent), os.environ["PATH"]])
    settings = config.load({**os.environ, "MIYABI_HOME": str(tmp_path), "PATH": path})
    wanted = plans.Wanted("llama-cpp", ctx=2048, key=serve.new_key(), extra=("-np", "1"))
    plan = plans.make(real_artifact, real_store, settings, wanted)
    with serve.running(plan, settings, artifact=real_artifact) as endpoint:
        through = gateway(endpoint)
    assert through > 200  # all but the last question; llama-server b11312 passes over the line by itself, others do not


def gateway(endpoint: Endpoint) -> int:
    """What it takes through the gateway."""
    assert endpoint.key is not None
    text = policy(f'here local {endpoint.base_url} model = "{endpoint.model}"', mode="local")
    with running(text, keys={"here": endpoint.key.reveal()}) as house:
        cached(house.http, "claude", "11111")
        return cached(house.http, "claude", "22222")
