"""A conversation as a value, and the closed file it is kept in."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from miyabi_llm.chat.options import ChatOptions
from miyabi_llm.chat.text import clean, read_text
from miyabi_llm.client.values import Message
from miyabi_llm.errors import BadUsage

VERSION = 1


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation: the model's name, how it answers, its instructions, the turns so far. Operations copy."""

    model: str
    options: ChatOptions = field(default_factory=ChatOptions)
    system: str | None = None
    turns: tuple[Message, ...] = ()

    def messages(self) -> tuple[Message, ...]:
        """What is sent: the instructions, then the turns."""
        head = (Message("system", self.system),) if self.system else ()
        return head + self.turns

    def said(self, text: str) -> Session:
        """With one more user turn."""
        return replace(self, turns=(*self.turns, Message("user", clean(text))))

    def answered(self, text: str) -> Session:
        """With one more answer."""
        return replace(self, turns=(*self.turns, Message("assistant", text)))

    def cleared(self) -> Session:
        """Without turns; instructions and options stay."""
        return replace(self, turns=())

    def retried(self) -> Session:
        """Without the last answer, ready to ask again. Raises BadUsage when there is no question yet."""
        turns = self.turns[:-1] if self.turns and self.turns[-1].role == "assistant" else self.turns
        if not turns or turns[-1].role != "user":
            raise BadUsage("there is nothing to ask again yet")
        return replace(self, turns=turns)

    def undone(self) -> Session:
        """Without the last question and its answer. Raises BadUsage when there is none."""
        return replace(self, turns=self.retried().turns[:-1])

    def to_json(self) -> str:
        """The session as a file holds it; `loads` reads it back to an equal value."""
        options = {f.name: getattr(self.options, f.name) for f in fields(self.options)}
        body = {
            "miyabi_llm_session": VERSION,
            "model": self.model,
            "system": self.system,
            "options": {k: list(v) if isinstance(v, tuple) else v for k, v in options.items() if v not in (None, ())},
            "turns": [m.as_dict() for m in self.turns],
        }
        return json.dumps(body, ensure_ascii=False, indent=2) + "\n"


def loads(text: str, where: str = "session") -> Session:
    """A session from its JSON. Raises BadUsage that names the wrong part: unknown keys are refused."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise BadUsage(f"{where}: not JSON: {e}", hint="Give a file that /save wrote.") from e
    if not isinstance(body, dict) or "miyabi_llm_session" not in body:
        raise BadUsage(f"{where}: not a saved session", hint="Give a file that /save wrote.")
    if body["miyabi_llm_session"] != VERSION:
        raise BadUsage(f"{where}: version {body['miyabi_llm_session']!r}; this program reads version {VERSION}")
    _only(body, {"miyabi_llm_session", "model", "system", "options", "turns"}, where)
    model, system, options, turns = (body.get(k) for k in ("model", "system", "options", "turns"))
    if not isinstance(model, str) or not isinstance(system, str | None):
        raise BadUsage(f"{where}: model and system must be text")
    if not isinstance(options, dict) or not isinstance(turns, list):
        raise BadUsage(f"{where}: options must be an object and turns a list")
    _only(options, {f.name for f in fields(ChatOptions)}, f"{where}: options")
    return Session(model, _options(options, where), system, tuple(_turn(t, i, where) for i, t in enumerate(turns)))


def save(session: Session, path: Path) -> None:
    """Write the session to `path` in one step, readable by its owner only. Raises BadUsage when it cannot."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes it 0600
        try:
            with open(handle, "w", encoding="utf-8") as f:
                f.write(session.to_json())
                f.flush()
                os.fsync(f.fileno())
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror or e}: the session is not saved") from e


def load(path: Path) -> Session:
    """Read a session that `save` wrote. Raises BadUsage."""
    return loads(read_text(path), str(path))


def _only(body: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in body:
        if key not in known:
            near = get_close_matches(str(key), sorted(known), 1)
            raise BadUsage(f"{where}: {key}: unknown key{f', did you mean {near[0]}?' if near else ''}")


def _options(body: Mapping[str, Any], where: str) -> ChatOptions:
    stop, schema = body.get("stop", []), body.get("schema")
    if not isinstance(stop, list) or not all(isinstance(s, str) for s in stop):
        raise BadUsage(f"{where}: options.stop must be a list of texts")
    if not isinstance(schema, dict | None) or not isinstance(body.get("reasoning"), str | None):
        raise BadUsage(f"{where}: options.schema must be an object and options.reasoning text")
    try:
        return ChatOptions(**{**body, "stop": tuple(stop)})
    except BadUsage as e:
        raise BadUsage(f"{where}: options.{e.message}") from e


def _turn(body: object, index: int, where: str) -> Message:
    if not isinstance(body, dict) or set(body) != {"role", "content"}:
        raise BadUsage(f"{where}: turns[{index}] must have exactly role and content")
    role, content = body["role"], body["content"]
    if role not in ("user", "assistant") or not isinstance(content, str):
        raise BadUsage(f"{where}: turns[{index}]: role must be user or assistant, content text")
    return Message(role, content)
