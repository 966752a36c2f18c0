"""The command `run`: one answer for a script, or a chat for a person."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import typer

from miyabi_llm.cli import stored

if TYPE_CHECKING:
    from miyabi_llm.chat import Budget, Session
    from miyabi_llm.cli.answer import Answer
    from miyabi_llm.client import Client

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

REF = typer.Argument(
    None, metavar="[REF]", help="The model; the default model when left out.", autocompletion=stored.complete
)
PROMPT = typer.Argument(None, metavar="[PROMPT]...", help="Ask this and leave; without it, chat.")
SYSTEM = typer.Option(None, "--system", metavar="TEXT", help="Instructions for the model.")
TEMP = typer.Option(None, "--temp", metavar="N", help="Temperature: 0 for the likeliest words.")
TOP_P = typer.Option(None, "--top-p", metavar="N", help="Sample among the likeliest tokens that sum up to N.")
TOP_K = typer.Option(None, "--top-k", metavar="N", help="Sample among the N likeliest tokens.")
MIN_P = typer.Option(None, "--min-p", metavar="N", help="Drop tokens less likely than N times the likeliest.")
SEED = typer.Option(None, "--seed", metavar="N", help="Seed of the sampling.")
MAX_TOKENS = typer.Option(None, "--max-tokens", metavar="N", help="Longest answer, in tokens.")
STOP = typer.Option(None, "--stop", metavar="TEXT", help="End the answer before this text; may be repeated.")
REASONING = typer.Option(None, "--reasoning", metavar="LEVEL", help="on, off, low, medium or high.")
SCHEMA = typer.Option(None, "--schema", metavar="FILE", help="A JSON schema the answer must follow.")
CTX = typer.Option(None, "--ctx", metavar="N", min=1, help="Context to serve with, in tokens.")
BACKEND = typer.Option(None, "--backend", metavar="NAME", help="The program that serves the model.")
URL = typer.Option(None, "--url", metavar="URL", help="Ask this OpenAI-compatible server; start none.")
KEY_ENV = typer.Option(None, "--key-env", metavar="NAME", help="The environment variable that holds the server's key.")
PULL = typer.Option(False, "--pull", help="Pull the model first when it is not here.")
STATS = typer.Option(False, "--stats", help="Say on stderr what an answer cost.")
CHAT = typer.Option(False, "--chat", help="Chat, also where standard input is no terminal.")
JSON = typer.Option(False, "--json", help="Print one JSON document.")


@dataclass(frozen=True, slots=True)
class Shown:
    """What the person wants to see of an answer."""

    as_json: bool
    stats: bool
    color: bool


@app.command("run")
def run(
    ref: str | None = REF,
    prompt: list[str] | None = PROMPT,
    system: str | None = SYSTEM,
    temp: float | None = TEMP,
    top_p: float | None = TOP_P,
    top_k: int | None = TOP_K,
    min_p: float | None = MIN_P,
    seed: int | None = SEED,
    max_tokens: int | None = MAX_TOKENS,
    stop: list[str] | None = STOP,
    reasoning: str | None = REASONING,
    schema: str | None = SCHEMA,
    ctx: int | None = CTX,
    backend: str | None = BACKEND,
    url: str | None = URL,
    key_env: str | None = KEY_ENV,
    pull: bool = PULL,
    stats: bool = STATS,
    chat: bool = CHAT,
    json_: bool = JSON,
) -> None:
    """Ask a model once, or chat with it."""
    from miyabi_llm import config
    from miyabi_llm.chat import ChatOptions, Session, clean
    from miyabi_llm.cli import piped, target
    from miyabi_llm.client import Client

    settings = config.load()
    shown = Shown(json_, stats, color="NO_COLOR" not in settings.env)
    words = clean(" ".join(prompt or ()))
    asked = None if chat else piped.question(words, sys.stdin)
    if asked is None:
        _check_chat(as_json=json_, schema=schema, words=words)
    follow = _schema(schema) if schema else None
    options = ChatOptions(temp, top_p, top_k, min_p, seed, max_tokens, tuple(stop or ()), reasoning, follow)
    session = Session(ref or "", options, clean(system) if system else None)
    session = session if asked is None else session.said(asked)
    wish = target.Wish(ref, session.messages(), max_tokens, url, key_env, backend, ctx, pull)
    with ExitStack() as stack:
        with target.events(as_json=json_) as on_event:  # bars must be gone before an answer is shown
            endpoint = stack.enter_context(target.endpoint(wish, settings, on_event))
        client = stack.enter_context(Client(endpoint))
        session = replace(session, model=endpoint.model)
        if asked is not None:
            _once(client, session, shown)
            return
        from miyabi_llm.cli import repl

        repl.chat(client, session, settings, stats=stats)


def _check_chat(*, as_json: bool, schema: str | None, words: str) -> None:
    from miyabi_llm.errors import BadUsage

    if as_json or schema:
        raise BadUsage("a chat has no one answer to print", hint="Give a PROMPT with --json or --schema.")
    if words:
        raise BadUsage("--chat takes no PROMPT", hint="Leave out --chat to ask once.")


def _once(client: Client, session: Session, shown: Shown) -> None:
    """Ask, show, judge."""
    from miyabi_llm import chat
    from miyabi_llm.cli import answer as answers
    from miyabi_llm.cli import show
    from miyabi_llm.errors import MiyabiError

    budget = chat.check(client, session)
    for warning in budget.warnings:
        show.note(f"warning: {warning}")
    streams = answers.streams(as_json=shown.as_json, color=shown.color)
    answer = answers.receive(chat.ask(client, session), streams)
    warnings = answers.warnings(answer, budget, session)
    for warning in warnings:
        show.note(f"warning: {warning}")
    if shown.stats:
        show.note(answers.summary(answer.stats, budget.context))
    schema = session.options.schema
    value, problem = (None, None) if schema is None else chat.follow(answer.text, dict(schema))
    if problem:
        raise MiyabiError(
            f"the answer does not follow the schema: {problem}",
            hint="Allow a longer answer with --max-tokens, simplify the schema, or ask a larger model.",
            text=answer.text,
            finish_reason=answer.finish_reason,
        )
    if shown.as_json:
        show.emit(_document(client, answer, budget, warnings, value), as_json=True, render=print)


def _document(
    client: Client, answer: Answer, budget: Budget, warnings: tuple[str, ...], value: object
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": client.endpoint.model,
        "endpoint": client.endpoint.base_url,
        "text": answer.text,
        "reasoning": answer.reasoning or None,
        "finish_reason": answer.finish_reason,
        "usage": answer.usage,
        "stats": answer.stats,
        "context": {"size": budget.context, "prompt_tokens": budget.prompt, "exact": budget.exact},
        "warnings": warnings,
    }
    return body if value is None else body | {"value": value}


def _schema(name: str) -> dict[str, Any]:
    import json
    from pathlib import Path

    from miyabi_llm.chat import check_schema, read_text
    from miyabi_llm.errors import BadUsage

    try:
        schema = json.loads(read_text(Path(name)))
    except (ValueError, RecursionError) as e:
        raise BadUsage(f"{name}: not JSON: {e}") from e
    return check_schema(schema, name)
