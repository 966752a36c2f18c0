"""Which watcher reads the answers of a path."""

from __future__ import annotations

from miyabi_llm.gateway.streams.anthropic import AnthropicWatch
from miyabi_llm.gateway.streams.ollama import OllamaWatch
from miyabi_llm.gateway.streams.openai import OpenAIWatch, ResponsesWatch
from miyabi_llm.gateway.streams.values import Watch


def watch(path: str) -> Watch:
    """A fresh watcher for a stream that answers `path`."""
    if path == "/v1/messages":
        return AnthropicWatch()
    if path == "/v1/responses":
        return ResponsesWatch()
    return OllamaWatch() if path.startswith("/api/") else OpenAIWatch()
