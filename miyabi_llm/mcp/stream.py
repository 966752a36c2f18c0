"""One answer, read as it is written: bounded, cut off by time or by the caller, and then the server stops too.

Whatever ends the reading closes the connection: llama.cpp, vLLM and Ollama take that as the order to stop.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx

from miyabi_llm.client.failures import refusal, unreachable
from miyabi_llm.client.sse import LIMIT, SseParser
from miyabi_llm.client.values import Delta, Meter, Usage, read_chunk, read_json, stream_error
from miyabi_llm.errors import AnswerCut, MiyabiError, NetworkError
from miyabi_llm.mcp.values import MOST_CHARS, Finish, Generated
from miyabi_llm.types import Endpoint

CONNECT_S = 10.0
IDLE_S = 300.0  # without one byte; llama-server sends a comment every 30 s even while it reads a long prompt


@dataclass(frozen=True, slots=True)
class Ask:
    """A question. `temperature` None leaves it to the server; `raw` continues the prompt without a template."""

    prompt: str
    system: str = ""
    max_tokens: int = 1024
    temperature: float | None = None
    raw: bool = False

    @property
    def path(self) -> str:
        """Where it is asked."""
        return "/v1/completions" if self.raw else "/v1/chat/completions"

    def body(self, endpoint: Endpoint) -> dict[str, Any]:
        """The request as the OpenAI dialect has it."""
        said: dict[str, Any] = {
            "model": endpoint.model,
            "max_tokens": self.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.temperature is not None:
            said["temperature"] = self.temperature
        if endpoint.backend == "llama-cpp":
            said["return_progress"] = True
        if self.raw:
            text = f"{self.system}\n\n{self.prompt}" if self.system else self.prompt
            return said | {"prompt": text}
        system = [{"role": "system", "content": self.system}] if self.system else []
        return said | {"messages": [*system, {"role": "user", "content": self.prompt}]}


@dataclass(slots=True)
class Writing:
    """An answer while it is written, and what is known of it so far. `phase` is what is being waited for."""

    phase: str = "waiting"
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    finish: Finish | None = None
    deltas: int = 0
    chars: int = 0
    usage: Usage = field(default_factory=Usage)
    meter: Meter = field(default_factory=Meter)
    begun: float = field(default_factory=time.monotonic)

    @property
    def tokens(self) -> int:
        """Tokens written: as counted by the server once it says, until then one for each piece."""
        return self.deltas if self.usage.completion_tokens is None else self.usage.completion_tokens

    def words(self) -> str:
        """How it stands, for a progress message."""
        return f"{self.tokens} tokens" if self.deltas else self.phase

    def see(self, delta: Delta) -> None:
        """Take in one piece; past the most characters the rest is dropped and the answer ends."""
        self.meter.see(delta)
        if delta.progress is not None:
            self.phase = f"reading the prompt, {delta.progress[0]} of {delta.progress[1]} tokens"
        if delta.text or delta.reasoning:
            self.deltas += 1
        room = MOST_CHARS - self.chars
        self.text.append(delta.text[:room])
        self.reasoning.append(delta.reasoning[: max(0, room - len(delta.text))])
        self.chars += len(delta.text) + len(delta.reasoning)
        self.usage = delta.usage or self.usage
        if delta.finish_reason is not None:
            self.finish = _finish(delta.finish_reason)
        if self.chars > MOST_CHARS:
            self.finish = "output_cap"

    def generated(self, endpoint: Endpoint) -> Generated:
        """The answer as the tool gives it."""
        stats, finish = self.meter.stats(), self.finish or "other"
        return Generated(
            text="".join(self.text),
            finish_reason=finish,
            complete=finish == "stop",
            model=endpoint.model,
            backend=endpoint.backend or "other",
            prompt_tokens=self.usage.prompt_tokens,
            output_tokens=self.tokens,
            seconds=round(time.monotonic() - self.begun, 3),
            tokens_per_second=stats.tokens_per_second,
            reasoning="".join(self.reasoning),
        )


async def write(endpoint: Endpoint, ask: Ask, so_far: Writing, seconds: float) -> None:
    """Have the question answered into `so_far`, for `seconds` at most; what is there then is left as it is.

    Raises MiyabiError: the server's own words, AnswerCut when the answer ends before its end. Cancelling closes the
    connection.
    """
    with anyio.move_on_after(max(0.05, seconds)) as limit:
        async with _client(endpoint) as http:
            await _read(http, endpoint, ask, so_far)
    if limit.cancelled_caught:
        so_far.finish = "max_seconds"


def _client(endpoint: Endpoint) -> httpx.AsyncClient:
    headers = {"accept-encoding": "identity"}
    if endpoint.key:
        headers["authorization"] = f"Bearer {endpoint.key.reveal()}"
    return httpx.AsyncClient(
        base_url=endpoint.base_url,
        headers=headers,
        follow_redirects=False,
        trust_env=False,
        timeout=httpx.Timeout(IDLE_S, connect=CONNECT_S),
    )


async def _read(http: httpx.AsyncClient, endpoint: Endpoint, ask: Ask, so_far: Writing) -> None:
    begun = False
    try:
        async with http.stream("POST", ask.path, json=ask.body(endpoint)) as response:
            if response.status_code != 200:
                raise await _refused(endpoint, response)
            begun, so_far.phase = True, "reading the prompt"
            async for body in _bodies(response):
                so_far.see(_chunk(body, raw=ask.raw))
                if so_far.finish == "output_cap":
                    return
    except httpx.HTTPError as e:
        if not begun:
            raise unreachable(endpoint, str(e) or type(e).__name__) from e
        if so_far.finish is None:
            raise AnswerCut(
                f"the connection broke in the middle of the answer: {str(e) or type(e).__name__}",
                hint="Call `health_check`: the server may have died. Then ask again.",
            ) from e
    if so_far.finish is None:
        raise AnswerCut("the answer ended without a finish reason: it may not be whole", hint="Ask again.")


async def _bodies(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":  # a server that does not stream, or an error that came with status 200
        yield read_json(await _bounded(response), "the server's answer")
        return
    if kind != "text/event-stream":
        raise NetworkError(f"the server answered with {kind or 'no content type'}: not an OpenAI-compatible API")
    parser = SseParser()
    async for piece in response.aiter_raw():
        for event in parser.feed(piece):
            if event.data.strip() == "[DONE]":
                return
            body = read_json(event.data, "a piece of the server's answer")
            if event.event == "error":
                raise stream_error(body)
            yield body


async def _bounded(response: httpx.Response) -> bytes:
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > LIMIT:
            raise NetworkError(f"the server's answer has more than {LIMIT:,} bytes")
    return bytes(body)


async def _refused(endpoint: Endpoint, response: httpx.Response) -> MiyabiError:
    try:
        body = read_json(await _bounded(response), "")
    except NetworkError:
        body = {}
    return refusal(endpoint, response.status_code, body, response.headers.get("retry-after"))


def _chunk(body: Mapping[str, Any], *, raw: bool) -> Delta:
    """One piece; of a raw completion the text stands in the choice itself."""
    choices = body.get("choices")
    if raw and isinstance(choices, list) and choices and isinstance(choices[0], dict):
        text = choices[0].get("text")
        body = {**body, "choices": [{**choices[0], "delta": {"content": text if isinstance(text, str) else ""}}]}
    return read_chunk(body)


def _finish(reason: str) -> Finish:
    return "stop" if reason == "stop" else "length" if reason == "length" else "other"
