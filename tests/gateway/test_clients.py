"""The real Python clients through the gateway: OpenAI's and Anthropic's against a real llama-server, Ollama's.

No Ollama can be run here: its client is answered by the stand-in, through the gateway.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest

from miyabi_llm import config, serve
from miyabi_llm.cli import plans
from miyabi_llm.gateway.http1 import Times
from miyabi_llm.pull import pull
from miyabi_llm.refs import ModelRef
from miyabi_llm.store import Store
from miyabi_llm.types import Artifact
from tests import clauded, openaid
from tests.conftest import USER
from tests.gateway import ollama as ollamad
from tests.gateway.house import House, free_port, policy, running

PATIENT = Times(connect=20.0, head=800.0, idle=800.0)  # a CPU reads slowly
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Tokyo", "Paris"]}},
    "required": ["city"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Place:
    """A gateway before a real llama-server, and what the model is called."""

    house: House
    model: str


@pytest.fixture(scope="module")
def place(
    real_server: Path, real_store: Store, real_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """The small model."""
    with served(real_server, real_store, real_artifact, tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture(scope="module")
def chatting(real_server: Path, real_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A model that was taught to chat and to call tools."""
    artifact = pull(ModelRef.parse("qwen2.5-coder:1.5b"), real_store, USER)
    with served(real_server, real_store, artifact, tmp_path_factory.mktemp("home")) as made:
        yield made


@contextmanager
def served(program: Path, store: Store, artifact: Artifact, home: Path) -> Iterator[Place]:
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    settings = config.load({**os.environ, "MIYABI_HOME": str(home), "PATH": path})
    wanted = plans.Wanted("llama-cpp", port=free_port(), ctx=4096, threads=1, key=serve.new_key())
    plan = plans.make(artifact, store, settings, wanted)
    with serve.running(plan, settings, artifact=artifact) as endpoint:
        assert endpoint.key is not None
        text = policy(f'here local {endpoint.base_url} model = "{endpoint.model}"', mode="local")
        with running(text, keys={"here": endpoint.key.reveal()}, times=PATIENT) as house:
            yield Place(house, endpoint.model)


def last(house: House) -> dict[str, Any]:
    return dict(house.http.get("/miyabi/status").json()["decisions"][-1])


# -- openai


def of_openai(house: House) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{house.url}/v1", api_key="none", max_retries=0, timeout=800)


def of_anthropic(house: House) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=house.url, api_key="none", max_retries=0, timeout=800)


@pytest.fixture(autouse=True)
def _nobody_elses_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(("ANTHROPIC_", "OPENAI_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def by_openai(place: Place) -> Iterator[openai.OpenAI]:
    with of_openai(place.house) as client:
        yield client


def test_openai_streams(by_openai: openai.OpenAI, place: Place) -> None:
    stream = by_openai.chat.completions.create(
        model=place.model,
        messages=[{"role": "user", "content": "Count to ten"}],
        max_tokens=16,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    pieces = list(stream)
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert text
    assert [p.choices[0].finish_reason for p in pieces if p.choices][-1] in ("length", "stop")
    usage = pieces[-1].usage
    assert usage is not None
    assert usage.completion_tokens <= 16
    row = last(place.house)
    assert (row["target"], row["status"], row["output_tokens"]) == ("here", 200, usage.completion_tokens)


def test_openai_whole_answers_and_lists(by_openai: openai.OpenAI, place: Place) -> None:
    assert place.model in [m.id for m in by_openai.models.list().data]
    said = by_openai.completions.create(
        model=place.model, prompt="The capital of Japan is", max_tokens=4, temperature=0
    )
    assert "Tokyo" in said.choices[0].text
    raw = by_openai.chat.completions.with_raw_response.create(
        model=place.model, messages=[{"role": "user", "content": "Hello"}], max_tokens=4
    )
    assert raw.headers["x-miyabi-target"] == "here"
    assert raw.parse().choices[0].message.role == "assistant"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_openai_gives_a_tool_to_a_real_model(chatting: Place) -> None:
    """The tool reaches the model, which asks for it: this one by JSON in its text, which llama-server leaves there."""
    function: Any = {"name": "weather", "description": "The weather in a city now", "parameters": WEATHER}
    asked: list[Any] = [{"role": "user", "content": "What is the weather in Tokyo now?"}]
    more: Any = {"model": chatting.model, "messages": asked, "max_tokens": 40, "temperature": 0}
    with of_openai(chatting.house) as client:
        said = client.chat.completions.create(tools=[{"type": "function", "function": function}], **more)
    message = said.choices[0].message
    text = (message.content or "") + "".join(str(call) for call in message.tool_calls or [])
    assert '"weather"' in text or "weather" in text
    assert "Tokyo" in text
    assert said.usage is not None
    assert said.usage.prompt_tokens > 120  # 38 without the tool


def test_openai_hears_a_call_in_pieces() -> None:
    """The stand-in's stream of a call, through the gateway, put together by the client."""
    more: Any = {"messages": [{"role": "user", "content": "Weather?"}], "stream": True}
    arguments, finish = "", None
    with (
        openaid.serving() as here,
        running(policy(f"here local {here.url}", mode="local")) as house,
        of_openai(house) as client,
    ):
        for piece in client.chat.completions.create(model="call", **more):
            for choice in piece.choices:
                finish = choice.finish_reason or finish
                calls = choice.delta.tool_calls or []
                arguments += "".join(c.function.arguments or "" for c in calls if c.function is not None)
    assert (json.loads(arguments), finish) == ({"city": "東京"}, "tool_calls")


def test_openai_hears_what_the_server_says(by_openai: openai.OpenAI, place: Place) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        by_openai.chat.completions.create(
            model=place.model, messages=[{"role": "user", "content": "word " * 6000}], max_tokens=4
        )
    assert "exceed" in str(caught.value) or "context" in str(caught.value)


# -- anthropic


@pytest.fixture
def by_anthropic(place: Place) -> Iterator[anthropic.Anthropic]:
    with of_anthropic(place.house) as client:
        yield client


def test_anthropic_streams(by_anthropic: anthropic.Anthropic, place: Place) -> None:
    asked: Any = [{"role": "user", "content": "Count to ten"}]
    with by_anthropic.messages.stream(model=place.model, max_tokens=16, messages=asked) as stream:
        text = "".join(stream.text_stream)
        whole = stream.get_final_message()
    assert text
    assert whole.content[0].type == "text"
    assert whole.stop_reason in ("max_tokens", "end_turn", "stop_sequence")
    assert whole.usage.output_tokens <= 16
    row = last(place.house)
    assert (row["path"], row["stream"], row["status"], row["broken"]) == ("/v1/messages", True, 200, "")


def test_anthropic_counts_and_answers(by_anthropic: anthropic.Anthropic, place: Place) -> None:
    asked: Any = [{"role": "user", "content": "Hello"}]
    count = by_anthropic.messages.count_tokens(model=place.model, messages=asked)
    assert 1 < count.input_tokens < 60
    said = by_anthropic.messages.create(model=place.model, max_tokens=4, messages=asked, system="Be brief.")
    assert said.role == "assistant"
    assert said.usage.input_tokens > 1
    assert place.model in [m.id for m in by_anthropic.models.list().data]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_anthropic_gives_a_tool_to_a_real_model(chatting: Place) -> None:
    tools: Any = [{"name": "weather", "description": "The weather in a city now", "input_schema": WEATHER}]
    asked: list[Any] = [{"role": "user", "content": "What is the weather in Tokyo now?"}]
    with of_anthropic(chatting.house) as client:
        bare = client.messages.count_tokens(model=chatting.model, messages=asked).input_tokens
        whole = client.messages.count_tokens(model=chatting.model, messages=asked, tools=tools).input_tokens
        assert whole > bare + 80
        with client.messages.stream(model=chatting.model, max_tokens=40, messages=asked, tools=tools) as stream:
            said = stream.get_final_message()
    assert "weather" in str(said.content)
    assert "Tokyo" in str(said.content)


def test_anthropic_hears_a_call_in_pieces() -> None:
    with (
        clauded.serving() as here,
        running(policy(f"here local {here.url}", mode="local"), keys={"here": "k"}) as house,
    ):
        here.script = ["tool"]
        with of_anthropic(house) as client:
            asked: list[Any] = [{"role": "user", "content": "Weather?"}]
            with client.messages.stream(model="m", max_tokens=64, messages=asked) as stream:
                said = stream.get_final_message()
    call = next(block for block in said.content if block.type == "tool_use")
    assert (call.name, call.input, said.stop_reason) == ("get_weather", {"city": "東京"}, "tool_use")


# -- ollama


def test_ollama_streams_and_looks() -> None:
    with (
        ollamad.ollama() as fake,
        running(policy(f'here local {fake.url} dialects = ["ollama", "openai"]', mode="local")) as house,
        ollama.Client(host=house.url, timeout=60) as client,
    ):
        pieces = list(client.chat(model="near:latest", messages=[{"role": "user", "content": "Hello"}], stream=True))
        assert "".join(p.message.content or "" for p in pieces)
        assert pieces[-1].done
        assert client.list().models
        assert last(house)["path"] == "/api/chat"
        for name in ("kimi:cloud", "far:latest", "alias-of-far"):
            with pytest.raises(ollama.ResponseError):
                client.chat(model=name, messages=[{"role": "user", "content": "a secret"}])
        assert "a secret" not in str(fake.asked)


def test_ollama_at_a_server_that_does_not_speak_it(place: Place) -> None:
    """Nothing is translated: the client is told, in its own dialect."""
    with ollama.Client(host=place.house.url, timeout=60) as client, pytest.raises(ollama.ResponseError) as caught:
        client.chat(model=place.model, messages=[{"role": "user", "content": "Hello"}])
    assert caught.value.status_code >= 400
    assert caught.value.error
