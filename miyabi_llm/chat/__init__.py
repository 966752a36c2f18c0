"""Ask a model: a conversation as a value, checked against the context before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from miyabi_llm.chat.budget import Budget, check, context_for, estimate, judge, size_of, was_cut
from miyabi_llm.chat.options import ChatOptions
from miyabi_llm.chat.schema import check_schema, follow
from miyabi_llm.chat.session import Session, load, loads, save
from miyabi_llm.chat.text import clean, read_text, with_context

if TYPE_CHECKING:
    from miyabi_llm.client import Client
    from miyabi_llm.client.values import Delta

__all__ = [
    "Budget",
    "ChatOptions",
    "Session",
    "ask",
    "check",
    "check_schema",
    "clean",
    "context_for",
    "estimate",
    "follow",
    "judge",
    "load",
    "loads",
    "read_text",
    "save",
    "size_of",
    "was_cut",
    "with_context",
]


def ask(client: Client, session: Session, text: str | None = None) -> Iterator[Delta]:
    """Stream the answer to `text`, or to the session's last turn when None. The session is not changed."""
    asked = session if text is None else session.said(text)
    return client.chat(asked.messages(), asked.options.params())
