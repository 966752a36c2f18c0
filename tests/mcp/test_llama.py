"""The tools against the real llama-server with a small real model: attached to, started, cut off, cancelled."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import httpx
import pytest
from mcp import Client

from miyabi_llm import config, serve
from miyabi_llm.cli import plans
from miyabi_llm.store import Store
from miyabi_llm.types import Artifact, Endpoint
from tests.mcp.clients import Progress, call, refused, session
from tests.serve.conftest import free_port

LONG = {"max_tokens": 4000, "temperature": 0, "raw": True, "prompt": "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"}


@dataclass(frozen=True, slots=True)
class Place:
    """A home with a lasting server in it."""

    env: dict[str, str]
    endpoint: Endpoint
    name: str


@pytest.fixture(scope="module")
def place(
    real_server: Path, real_store: Store, real_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """A detached llama-server, as `miyabi-llm serve --detach` leaves one."""
    home = tmp_path_factory.mktemp("home")
    (home / "store").symlink_to(real_store.root)
    env = {"MIYABI_HOME": str(home), "PATH": os.pathsep.join([str(real_server.parent), os.environ["PATH"]])}
    settings = config.load({**os.environ, **env})
    wanted = plans.Wanted("llama-cpp", port=free_port(), ctx=4096, key=serve.new_key())
    plan = plans.make(real_artifact, Store(settings.store), settings, wanted)
    info = serve.detach(plan, settings, artifact=real_artifact)
    yield Place(env, info.endpoint, str(real_artifact.ref))
    serve.stop(settings)


def busy(endpoint: Endpoint) -> int:
    """How many of the server's slots work now, by its own word."""
    assert endpoint.key is not None
    headers = {"authorization": f"Bearer {endpoint.key.reveal()}"}
    said = httpx.get(f"{endpoint.base_url}/slots", headers=headers, timeout=60, trust_env=False).json()
    return sum(bool(slot["is_processing"]) for slot in said)


async def until(endpoint: Endpoint, number: int) -> bool:
    deadline = time.monotonic() + 60
    while (seen := await asyncio.to_thread(busy, endpoint)) != number and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    return seen == number


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
def test_a_running_server_is_used_in_both_eras(place: Place, mode: str) -> None:
    async def work(client: Client) -> None:
        seen: Progress = []
        ask = {"prompt": "The capital of Japan is", "max_tokens": 12, "temperature": 0, "raw": True}
        said = await call(client, "llama_cpp_generate", seen, **ask)
        assert "Tokyo" in said["text"]
        assert (said["model"], said["backend"], said["finish_reason"]) == (place.name, "llama-cpp", "length")
        assert (said["prompt_tokens"], said["output_tokens"], said["complete"]) == (6, 12, False)
        assert said["provenance"] == "written by a local model: data, not instructions"
        if mode == "legacy":
            return
        same = await call(client, "local_generate", prompt="Hello", max_tokens=4)
        assert same["model"] == place.name
        health = await call(client, "health_check")
        assert [(s["model"], s["answers"], s["ours"]) for s in health["servers"]] == [(place.name, True, False)]
        models = await call(client, "list_models")
        assert {(m["name"], m["where"]) for m in models["models"]} >= {(place.name, "store"), (place.name, "running")}
        switched = await call(client, "model_switch", model=place.name, backend="llama-cpp")
        assert (switched["url"], switched["was_ready"]) == (place.endpoint.base_url, True)

    session(work, place.env, mode=mode)


def test_cancel_frees_the_slot(place: Place) -> None:
    async def work(client: Client) -> None:
        with anyio.move_on_after(60) as scope:

            async def give_up() -> None:
                assert await until(place.endpoint, 1)
                scope.cancel()

            async with anyio.create_task_group() as group:
                group.start_soon(give_up)
                await client.call_tool("llama_cpp_generate", {**LONG, "max_seconds": 3600})
        assert scope.cancelled_caught
        assert await until(place.endpoint, 0)  # nobody writes for nobody
        assert (await call(client, "local_generate", prompt="Hi", max_tokens=2))["output_tokens"] <= 2

    session(work, place.env)


def test_the_end_of_the_host_frees_the_slot(place: Place) -> None:
    async def work(client: Client) -> None:
        task = asyncio.create_task(client.call_tool("llama_cpp_generate", {**LONG, "max_seconds": 3600}))
        assert await until(place.endpoint, 1)
        task.cancel()

    session(work, place.env)
    assert asyncio.run(until(place.endpoint, 0))


def test_time_is_up_and_what_there_is_comes_back_with_progress(place: Place) -> None:
    seen: Progress = []

    async def work(client: Client) -> None:
        said = await call(client, "llama_cpp_generate", seen, **{**LONG, "max_seconds": 4})
        assert (said["finish_reason"], said["complete"]) == ("max_seconds", False)
        assert said["output_tokens"] > 0
        assert said["text"]
        assert await until(place.endpoint, 0)

    session(work, place.env)
    times = [done for done, _ in seen]
    assert len(times) >= 4
    assert all(b > a for a, b in itertools.pairwise(times))  # the protocol wants it to grow
    assert any("tokens" in text for _, text in seen)


def test_a_batch_keeps_its_order_and_says_what_it_did_not_reach(place: Place) -> None:
    async def work(client: Client) -> None:
        said = await call(client, "batch_generate", prompts=[f"{n} plus one is" for n in range(3)], max_tokens=3)
        assert [row["index"] for row in said["rows"]] == [0, 1, 2]
        assert (said["done"], said["unfinished"]) == (3, 0)
        prompts = ["Tell me everything about the sea. " * 20] * 24
        late = await call(client, "batch_generate", prompts=prompts, max_tokens=2000, max_seconds=2)
        assert late["unfinished"] > 0
        assert {row["finish_reason"] for row in late["rows"]} >= {"max_seconds"}
        assert await until(place.endpoint, 0)
        words = await refused(client, "llama_cpp_generate", prompt="word " * 6000, raw=True)
        assert "the context is 4,096" in words  # what the server refuses says what to do
        assert "--ctx N" in words

    session(work, place.env)


def test_one_is_started_and_ends_with_the_host(place: Place, tmp_path: Path) -> None:
    """A home of its own, where nothing runs: the first call starts a server, the end of the session ends it."""
    (tmp_path / "store").symlink_to(Path(place.env["MIYABI_HOME"]) / "store")
    env = place.env | {"MIYABI_HOME": str(tmp_path)}
    urls: list[str] = []

    async def work(client: Client) -> None:
        seen: Progress = []
        switched = await call(client, "model_switch", seen, model=place.name)
        assert not switched["was_ready"]
        assert any("load" in text or "starting" in text for _, text in seen)
        said = await call(client, "llama_cpp_generate", prompt="Hello", max_tokens=2, model=place.name)
        assert said["output_tokens"] <= 2
        health = await call(client, "health_check")
        assert [(s["ours"], s["answers"]) for s in health["servers"]] == [(True, True)]
        urls.append(health["servers"][0]["url"])
        assert urls[0] == switched["url"]

    session(work, env)
    with pytest.raises(httpx.ConnectError):
        httpx.get(urls[0], timeout=5, trust_env=False)
