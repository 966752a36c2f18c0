"""The tools that have a model write: by one kind of server each, by whichever fits, and many prompts at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError

from miyabi_llm.errors import MiyabiError, ServerFailed
from miyabi_llm.mcp.guard import words
from miyabi_llm.mcp.pulse import pulse
from miyabi_llm.mcp.servers import Note, Servers, Wish
from miyabi_llm.mcp.stream import Ask, Writing, write
from miyabi_llm.mcp.values import (
    MAX_SECONDS,
    MOST_CHARS,
    Batch,
    BatchRow,
    Generated,
    MaxTokens,
    Name,
    OllamaName,
    Prompt,
    Prompts,
    Raw,
    Seconds,
    System,
    Task,
    Temperature,
)
from miyabi_llm.types import Endpoint

AT_ONCE = 4  # prompts of a batch that are asked at the same time, where the server does not say its slots


class Asking:
    """The tools; each docstring is what the host's model reads."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    async def llama_cpp_generate(
        self,
        prompt: Prompt,
        ctx: Context[Any, Any],
        model: Name = "",
        system: System = "",
        max_tokens: MaxTokens = 1024,
        temperature: Temperature = -1,
        max_seconds: Seconds = MAX_SECONDS,
        raw: Raw = False,
    ) -> Generated:
        """Have a local GGUF model answer with llama.cpp on this machine; nothing leaves it.

        A server that runs is used; else one is started (seconds to a minute) and kept for the next call.
        """
        ask = Ask(prompt, system, max_tokens, _given(temperature), raw)
        return await self._generate(Wish(model, "llama-cpp"), ask, max_seconds, ctx)

    async def vllm_generate(
        self,
        prompt: Prompt,
        ctx: Context[Any, Any],
        model: Name = "",
        system: System = "",
        max_tokens: MaxTokens = 1024,
        temperature: Temperature = -1,
        max_seconds: Seconds = MAX_SECONDS,
        raw: Raw = False,
    ) -> Generated:
        """Have a local safetensors model answer with vLLM on this machine; nothing leaves it.

        A server that runs is used; else one is started, which takes minutes: call again when told that it still loads.
        """
        ask = Ask(prompt, system, max_tokens, _given(temperature), raw)
        return await self._generate(Wish(model, "vllm"), ask, max_seconds, ctx)

    async def ollama_generate(
        self,
        prompt: Prompt,
        ctx: Context[Any, Any],
        model: OllamaName = "",
        system: System = "",
        max_tokens: MaxTokens = 1024,
        temperature: Temperature = -1,
        max_seconds: Seconds = MAX_SECONDS,
    ) -> Generated:
        """Have a model of the Ollama on this machine answer. Cloud models are refused, whatever they are called."""
        ask = Ask(prompt, system, max_tokens, _given(temperature))
        return await self._generate(Wish(model, "ollama"), ask, max_seconds, ctx)

    async def local_generate(
        self,
        prompt: Prompt,
        ctx: Context[Any, Any],
        model: Name = "",
        system: System = "",
        max_tokens: MaxTokens = 1024,
        temperature: Temperature = -1,
        max_seconds: Seconds = MAX_SECONDS,
        task: Task | None = None,
    ) -> Generated:
        """Have a local model answer, by whichever server has it: the one the gateway's policy means, where there is a
        policy; else the one that runs, else the default model's.

        For confidential text and for cheap bulk work: summaries, extraction, first drafts. Nothing leaves this machine.
        """
        ask = Ask(prompt, system, max_tokens, _given(temperature))
        wish = Wish(model, None, prompt if not model else "", (task,) if task else ())
        return await self._generate(wish, ask, max_seconds, ctx)

    async def batch_generate(
        self,
        prompts: Prompts,
        ctx: Context[Any, Any],
        model: Name = "",
        system: System = "",
        max_tokens: MaxTokens = 256,
        temperature: Temperature = -1,
        max_seconds: Seconds = MAX_SECONDS,
    ) -> Batch:
        """Have a local model answer up to 64 prompts that do not depend on each other, several at once.

        Rows keep the order of the prompts. Those that were not reached in time say `max_seconds`: ask them again.
        For files of many rows use `miyabi-llm batch` in a shell.
        """
        asks = [Ask(text, system, max_tokens, _given(temperature)) for text in prompts]
        begun, note, rows = time.monotonic(), Note(), [Writing(phase="not reached") for _ in asks]
        async with pulse(ctx, lambda: _progress(rows, note)), self._using(Wish(model), note, max_seconds) as endpoint:
            errors = await _all(endpoint, asks, rows, max_seconds - (time.monotonic() - begun))
        return _batch(endpoint, rows, errors, time.monotonic() - begun)

    async def _generate(self, wish: Wish, ask: Ask, seconds: float, ctx: Context[Any, Any]) -> Generated:
        begun, note, so_far = time.monotonic(), Note(), Writing()
        so_far.phase = ""
        async with pulse(ctx, lambda: so_far.words() or note.text), self._using(wish, note, seconds) as endpoint:
            so_far.phase = "waiting for the server"
            so_far.begun = begun
            await write(endpoint, ask, so_far, seconds - (time.monotonic() - begun))
        return so_far.generated(endpoint)

    @asynccontextmanager
    async def _using(self, wish: Wish, note: Note, seconds: float) -> AsyncIterator[Endpoint]:
        """The server to ask, kept from being ended meanwhile. Raises ServerFailed when it is not up in time."""
        with anyio.move_on_after(seconds) as limit:
            endpoint = await anyio.to_thread.run_sync(self._servers.endpoint, wish, note, abandon_on_cancel=True)
        if limit.cancelled_caught:
            raise ServerFailed(
                f"the model is not ready after {seconds:g} s: {note.text}",
                hint="It goes on loading: call again in a while, with a larger max_seconds.",
            )
        self._servers.use(endpoint, more=1)
        try:
            yield endpoint
        finally:
            self._servers.use(endpoint, more=-1)


async def _all(endpoint: Endpoint, asks: list[Ask], rows: list[Writing], seconds: float) -> dict[int, str]:
    """Every prompt answered into its row, some at once, until the time is over; the failures by index."""
    errors: dict[int, str] = {}
    free = asyncio.Semaphore(AT_ONCE)
    deadline = time.monotonic() + seconds

    async def one(index: int) -> None:
        async with free:
            left = deadline - time.monotonic()
            if left <= 0 or sum(row.chars for row in rows) > MOST_CHARS:
                rows[index].finish = "max_seconds" if left <= 0 else "output_cap"
                return
            try:
                await write(endpoint, asks[index], rows[index], left)
            except MiyabiError as e:
                errors[index] = words(e)

    async with anyio.create_task_group() as group:
        for index in range(len(asks)):
            group.start_soon(one, index)
    if len(errors) == len(asks):
        raise ToolError(f"none of the {len(asks)} prompts was answered: {errors[0]}")
    return errors


def _batch(endpoint: Endpoint, rows: list[Writing], errors: dict[int, str], seconds: float) -> Batch:
    said = [
        BatchRow(
            index=i,
            text="".join(row.text),
            finish_reason="error" if i in errors else row.finish or "other",
            output_tokens=row.tokens,
            error=errors.get(i, ""),
        )
        for i, row in enumerate(rows)
    ]
    done = sum(row.finish_reason in ("stop", "length") for row in said)
    return Batch(
        rows=said,
        done=done,
        unfinished=len(said) - done,
        model=endpoint.model,
        backend=endpoint.backend or "other",
        seconds=round(seconds, 3),
        output_tokens=sum(row.output_tokens for row in said),
    )


def _progress(rows: list[Writing], note: Note) -> str:
    done = sum(row.finish is not None for row in rows)
    tokens = sum(row.tokens for row in rows)
    return f"{done} of {len(rows)} prompts, {tokens} tokens" if done or tokens else note.text


def _given(temperature: float) -> float | None:
    return temperature if temperature >= 0 else None
