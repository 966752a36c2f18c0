"""What a tool may raise: text that says what to do. Everything else the SDK would hide from the model."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from mcp import MCPError
from mcp.server.mcpserver.exceptions import ToolError

from miyabi_llm.errors import MiyabiError

P = ParamSpec("P")
R = TypeVar("R")
_LOG = logging.getLogger("miyabi_llm.mcp")


def words(e: MiyabiError) -> str:
    """An error as the model reads it: what went wrong, and the next step. Pure."""
    return f"{e.message}. {e.hint}" if e.hint else e.message


def actionable(tool: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """The tool, with every failure turned into words: ours keep their hint, a bug says where its trace is."""

    @functools.wraps(tool)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await tool(*args, **kwargs)
        except MiyabiError as e:
            raise ToolError(words(e)) from e
        except (ToolError, MCPError):
            raise
        except Exception as e:  # a bug of ours: the SDK would tell the model nothing at all
            _LOG.exception("a bug in the tool %s", tool.__name__)
            raise ToolError(
                f"a bug in miyabi-llm ({type(e).__name__}): its trace is in the log of this MCP server (stderr). "
                "`miyabi-llm doctor` says whether this machine is well."
            ) from e

    return guarded
