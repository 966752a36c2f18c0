"""The chat at a terminal: messages, commands that begin with a slash, and answers that Ctrl-C stops."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from miyabi_llm import chat as verb
from miyabi_llm.cli import answer as answers
from miyabi_llm.cli import repl_input
from miyabi_llm.errors import BadUsage, MiyabiError

if TYPE_CHECKING:
    from miyabi_llm.chat import ChatOptions, Session
    from miyabi_llm.client import Client
    from miyabi_llm.config import Settings


class Bye(Exception):
    """The person wants to leave."""


def chat(client: Client, session: Session, settings: Settings, *, stats: bool) -> None:
    """Chat until /bye or the end of input."""
    read = repl_input.reader(settings.home / "chat_history", COMMANDS)
    streams = answers.streams(color="NO_COLOR" not in settings.env)
    talk = Talk(client, session, streams, stats=stats)
    context = client.context_size()
    _say(f"{session.model}" + (f", context {context:,} tokens" if context else "") + ". /help lists commands.")
    while True:
        try:
            talk.take(read())
        except KeyboardInterrupt:
            _say("Type /bye or press Ctrl-D to leave.")
        except (EOFError, Bye):
            return
        except MiyabiError as e:
            _say(f"error: {e.message}")
            if e.hint:
                _say(f"  {e.hint}")


class Talk:
    """One chat: the session so far, and what the next message will carry."""

    def __init__(self, client: Client, session: Session, streams: answers.Streams, *, stats: bool) -> None:
        self.client = client
        self.session = session
        self.stats = stats
        self._streams = streams
        self._files: list[tuple[str, str]] = []

    def take(self, typed: str) -> None:
        """One message or command. Raises Bye, and MiyabiError when it cannot be done."""
        text = typed.strip()
        if not text:
            return
        if not text.startswith("/"):
            self.say(repl_input.message(typed))
            return
        name, _, rest = repl_input.message(typed).partition(" ")
        command = COMMANDS.get(ALIASES.get(name, name))
        if command is None:
            near = get_close_matches(name, [*COMMANDS, *ALIASES], 1)
            hint = f"Did you mean {near[0]}?" if near else "/help lists commands."
            raise BadUsage(f"{name}: unknown command", hint=hint)
        command[2](self, rest.strip())

    def say(self, text: str) -> None:
        """Send a message, with the files that wait for it, and show the answer."""
        parts = [text, *(verb.with_context(f"File {name}:", content) for name, content in self._files)]
        turns = self.session.turns
        session = self.session.undone() if turns and turns[-1].role == "user" else self.session  # never answered
        self.answer(session.said("\n\n".join(parts)))
        self._files = []

    def answer(self, session: Session) -> None:
        """Ask `session`'s last turn. When it fails or is stopped at once the turn stays, for /retry."""
        budget = verb.check(self.client, session)
        for warning in budget.warnings:
            _say(f"warning: {warning}")
        self.session = session
        answer = answers.receive(verb.ask(self.client, session), self._streams, stoppable=True)
        if answer.text:
            self.session = session.answered(answer.text)
        if answer.finish_reason is None:
            _say("(stopped)")
        for warning in answers.warnings(answer, budget, session):
            _say(f"warning: {warning}")
        if self.stats:
            _say(answers.summary(answer.stats, budget.context))

    def system(self, text: str) -> None:
        """Show or set the instructions; `-` removes them."""
        if text:
            self.session = replace(self.session, system=None if text == "-" else text)
        _say(f"system: {self.session.system or '(none)'}")

    def set(self, text: str) -> None:
        """Set an option, or show all."""
        key, _, value = text.partition(" ")
        if key == "system":
            self.system(value.strip())
        elif not value.strip() and key:
            raise BadUsage(f"/set {key}: which value?", hint=f"/set {key} default leaves it to the server.")
        else:
            if key:
                self.session = replace(self.session, options=self.session.options.with_text(key, value.strip()))
            _say(f"options: {describe(self.session.options)}")

    def show(self, _: str) -> None:
        """What the session is, and how full the context."""
        session = self.session
        _say(f"model: {session.model} at {self.client.endpoint.base_url}")
        _say(f"system: {session.system or '(none)'}")
        _say(f"options: {describe(session.options)}")
        _say(f"turns: {len(session.turns)}, context: {self._used()}")
        for name, content in self._files:
            _say(f"with the next message: {name}, {len(content):,} characters")

    def _used(self) -> str:
        session, context = self.session, self.client.context_size()
        size = f" of {context:,}" if context else ""
        count = self.client.count_prompt(session.messages(), session.options.params()) if session.messages() else 0
        if count is None:
            return f"about {verb.estimate(session.messages()):,}{size} tokens (estimated)"
        return f"{count:,}{size} tokens" + (f" ({100 * count / context:.0f}%)" if context else "")

    def save(self, text: str) -> None:
        """Write the session to a file."""
        path = _path(text, "/save FILE")
        verb.save(self.session, path)
        _say(f"saved {len(self.session.turns)} turns to {path}")

    def load(self, text: str) -> None:
        """Read a session from a file; the model stays the one that answers here."""
        loaded = verb.load(_path(text, "/load FILE"))
        if loaded.model != self.session.model:
            _say(f"note: it was saved with {loaded.model}; {self.session.model} answers here")
        self.session = replace(loaded, model=self.session.model)
        _say(f"loaded {len(loaded.turns)} turns")

    def file(self, text: str) -> None:
        """Add a file's text to the next message."""
        path = _path(text, "/file PATH")
        content = verb.read_text(path)
        self._files.append((path.name, content))
        _say(f"{path.name}: {len(content):,} characters go with the next message")

    def clear(self, _: str) -> None:
        """Forget the turns."""
        self.session, self._files = self.session.cleared(), []
        _say("cleared; the system text and the options stay")

    def retry(self, _: str) -> None:
        """Answer the last question again."""
        self.answer(self.session.retried())

    def undo(self, _: str) -> None:
        """Take back the last question and its answer."""
        self.session = self.session.undone()
        _say(f"{len(self.session.turns)} turns left")

    def show_stats(self, text: str) -> None:
        """Switch the line of figures after each answer."""
        if text not in ("on", "off"):
            raise BadUsage("/stats on or /stats off")
        self.stats = text == "on"
        _say(f"stats: {text}")

    def help(self, _: str) -> None:
        """List the commands."""
        width = max(len(f"{name} {words}") for name, (words, *_rest) in COMMANDS.items())
        for name, (words, what, _method) in COMMANDS.items():
            _say(f"{f'{name} {words}'.ljust(width)}  {what}")
        _say('\nSeveral lines: between """ and """, after a backslash at the end, or with Alt-Enter.')
        _say("Ctrl-C stops an answer; Ctrl-D leaves.")

    def bye(self, _: str) -> None:
        """Leave."""
        raise Bye


# name -> (what follows it, what it does, the method)
COMMANDS: dict[str, tuple[str, str, Callable[[Talk, str], None]]] = {
    "/system": ("[TEXT | -]", "show, set or remove the system text", Talk.system),
    "/set": (
        "[KEY VALUE]",
        "temperature, top_p, top_k, min_p, seed, max_tokens, stop, reasoning",
        Talk.set,
    ),
    "/show": ("", "show the model, the options and how full the context is", Talk.show),
    "/file": ("PATH", "add a file's text to the next message", Talk.file),
    "/retry": ("", "answer the last question again", Talk.retry),
    "/undo": ("", "take back the last question and its answer", Talk.undo),
    "/clear": ("", "forget the conversation", Talk.clear),
    "/save": ("FILE", "write the session to a file", Talk.save),
    "/load": ("FILE", "read a session from a file", Talk.load),
    "/stats": ("on|off", "show figures after each answer", Talk.show_stats),
    "/help": ("", "list the commands", Talk.help),
    "/bye": ("", "leave", Talk.bye),
}
ALIASES = {"/?": "/help", "/exit": "/bye", "/quit": "/bye", "/regen": "/retry"}


def describe(options: ChatOptions) -> str:
    """The options that are set, on one line."""
    pairs = [(f.name, getattr(options, f.name)) for f in fields(options)]
    return ", ".join(f"{k}={v}" for k, v in pairs if v not in (None, ())) or "(the server's own)"


def _path(text: str, usage: str) -> Path:
    if not text:
        raise BadUsage(f"which file? {usage}")
    return Path(text).expanduser()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
