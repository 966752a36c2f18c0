"""A server of our factory and our stdio transport whose tools misbehave as libraries do: they print, and they break."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import Context

from miyabi_llm.errors import BackendMissing
from miyabi_llm.mcp import http, stdio
from miyabi_llm.mcp.pulse import pulse
from miyabi_llm.mcp.server import Offer, make
from miyabi_llm.types import silent


async def noise() -> str:
    """Print in every way there is."""
    print("a library says hello", flush=True)
    sys.stdout.write("and again\n")
    sys.stdout.flush()
    os.write(1, b"straight to the descriptor\n")
    subprocess.run([sys.executable, "-c", "print('a child says hello')"], check=True)
    return "done"


async def bug() -> str:
    """Break in a way nobody foresaw."""
    raise KeyError("an inner secret")


async def missing() -> str:
    """Break in a way with a hint."""
    raise BackendMissing("ollama is not installed", hint="Run `miyabi-llm backend install ollama`.")


async def slow(mark: str, ctx: Context[Any, Any]) -> str:
    """Wait for ever; leaves a mark when it is cancelled."""
    try:
        async with pulse(ctx, lambda: "waiting", 0.1):
            await asyncio.sleep(3600)
    finally:
        Path(mark).write_text("ended")
    return "never"


if __name__ == "__main__":
    server = make([Offer(t, t.__name__) for t in (noise, bug, missing, slow)])
    if sys.argv[1:2] == ["--http"]:
        http.serve(server, http.Place(port=int(sys.argv[2])), lambda: None, silent)
    else:
        stdio.serve(server, lambda: None)
