"""The embedded backend and the real vLLM measured: our figures beside the server's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from miyabi_llm import serve
from miyabi_llm.cli import execute
from miyabi_llm.errors import MiyabiError
from miyabi_llm.refs import ModelRef
from miyabi_llm.store import Store
from miyabi_llm.types import Endpoint

from ..backends.stages import KEY, Stage, embedded, vllm_real

WITHIN = 0.05
COPY = "qwen2.5-coder:1.5b-safetensors"
LIMITS = serve.Limits(silent_s=300, load_s=900, first_token_s=300)


def figure(target: dict[str, Any], name: str, of: str = "p50") -> float:
    metric = next(m for m in target["metrics"] if m["name"] == name)
    return float(metric["mean"] if of == "mean" else metric["percentiles"][of]["value"])


def measure(
    endpoint: Endpoint, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, count: str = "12"
) -> dict[str, Any]:
    """What `bench --url` says of a server at one request at a time."""
    monkeypatch.setenv("BENCH_KEY", KEY.reveal())
    url = f"it={endpoint.base_url}#{endpoint.model}"
    words = ["--url", url, "--key-env", "BENCH_KEY", "--speech", "openai-completions", "-c", "1", "-n", count]
    rc = execute(["bench", *words, "--max-tokens", "48", "--workload", "batch", "--warm-up", "1", "--json"])
    out, err = capsys.readouterr()
    assert rc == 0, err
    (target,) = json.loads(out)["levels"][0]["report"]["measured"]
    return dict(target)


def counters(endpoint: Endpoint, names: tuple[str, ...]) -> list[float]:
    """Sums of vLLM's own `/metrics`."""
    headers = {"authorization": f"Bearer {KEY.reveal()}"}
    text = httpx.get(f"{endpoint.base_url}/metrics", headers=headers, trust_env=False).text
    return [sum(float(v) for v in re.findall(rf"^{n}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)) for n in names]


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    yield from request.param(tmp_path, request)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", [pytest.param(embedded, id="embedded, the program")], indirect=True)
def test_embedded(stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with serve.running(stage.plan("it"), stage.settings, limits=LIMITS) as endpoint:
        found = measure(endpoint, capsys, monkeypatch)
    assert figure(found, "decode_tps") == pytest.approx(figure(found, "server_decode_tps"), rel=WITHIN)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", [pytest.param(vllm_real, id="vllm, the program")], indirect=True)
def test_vllm(
    stage: Stage, real_store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own mean of the gaps between tokens, over all requests of one run, against ours.

    With the real model: a random one writes bytes that are no text, and vLLM sends them when they become some.
    """
    try:
        files = real_store.files(real_store.find(ModelRef.parse(COPY)))
    except MiyabiError as e:
        pytest.skip(f"{e.message}: the slow tests of vLLM make it by `convert`")
    plan = replace(stage, files=dict(files)).plan("it")
    names = ("vllm:inter_token_latency_seconds_sum", "vllm:inter_token_latency_seconds_count")
    with serve.running(plan, stage.settings, limits=LIMITS) as endpoint:
        measure(endpoint, capsys, monkeypatch, "2")  # so that the first requests below are as warm as the others
        before = counters(endpoint, names)
        found = measure(endpoint, capsys, monkeypatch)
        seconds, count = (b - a for a, b in zip(before, counters(endpoint, names), strict=True))
    print(f"gap {figure(found, 'gap', 'mean'):.5f} s, its own {seconds / count:.5f} s over {count:g}")
    assert count >= 12
    assert figure(found, "gap", "mean") == pytest.approx(seconds / count, rel=WITHIN)
