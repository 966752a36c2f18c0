"""The SDK's own client on our side of the tests: sessions over stdio, and calls with their progress."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mcp import Client, StdioServerParameters

from tests.mcp.pipe import ROOT

Progress = list[tuple[float, str]]


def session(work: Callable[[Client], Awaitable[Any]], env: Mapping[str, str], *, mode: str = "auto") -> Any:
    """Run `work` with a client of `miyabi-llm mcp` over stdio."""
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "miyabi_llm", "mcp"], env={**os.environ, **env}, cwd=ROOT
    )
    return over(work, server, mode=mode)


def over(work: Callable[[Client], Awaitable[Any]], server: Any, *, mode: str = "auto") -> Any:
    """Run `work` with a client of any server."""

    async def main() -> Any:
        async with Client(server, mode=mode) as client:
            return await work(client)

    return asyncio.run(main())


async def call(client: Client, tool: str, progress: Progress | None = None, **arguments: Any) -> Any:
    """A tool's structured content; an error fails the test with its words."""

    async def note(done: float, total: float | None, message: str | None) -> None:
        if progress is not None:
            progress.append((done, message or ""))

    result = await client.call_tool(tool, arguments, progress_callback=note)
    assert not result.is_error, result.content
    return result.structured_content


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    """The words of a tool's error."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result.structured_content
    return str(result.content[0].text)
