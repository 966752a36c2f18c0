"""The command `connect`: settings that point a client program at a running server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.connect import Connection, Target, Written
    from miyabi_llm.types import Dialect, Endpoint

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

_NAMES = ("claude-code", "codex", "opencode", "continue", "aider", "openai", "anthropic", "ollama")


def _complete(incomplete: str) -> list[str]:
    return [name for name in _NAMES if name.startswith(incomplete)]


CLIENT = typer.Argument(help=f"One of {', '.join(_NAMES)}.", autocompletion=_complete)
ENDPOINT = typer.Option(None, "--endpoint", metavar="NAME|URL", help="The server, when several run, or one elsewhere.")
MODEL = typer.Option(None, "--model", metavar="NAME", help="What the server calls the model, when it has several.")
KEY_ENV = typer.Option(None, "--key-env", metavar="VARIABLE", help="With a URL: the variable that holds the key.")
KEY_FILE = typer.Option(None, "--api-key-file", metavar="FILE", help="With a URL: the file that holds the key.")
WRITE = typer.Option(False, "--write", help="Merge into the client's own file; the file before is kept beside it.")
JSON = typer.Option(False, "--json", help="Print one JSON document.")


@app.command("connect")
def connect(
    client: str = CLIENT,
    endpoint: str | None = ENDPOINT,
    model: str | None = MODEL,
    key_env: str | None = KEY_ENV,
    api_key_file: Path | None = KEY_FILE,
    write: bool = WRITE,
    json_: bool = JSON,
) -> None:
    """Point a client program at a running server."""
    from miyabi_llm import config
    from miyabi_llm import connect as verb
    from miyabi_llm.cli import show
    from miyabi_llm.connect import KeySource
    from miyabi_llm.errors import BadUsage

    settings = config.load()
    key = KeySource(api_key_file.absolute() if api_key_file else None, key_env)
    if endpoint is not None and "://" in endpoint:
        target = _remote(endpoint, key, model, settings)
    else:
        if key:
            raise BadUsage("--key-env and --api-key-file go with a URL", hint="Servers started here have keys of ours.")
        target = _local(endpoint, model, settings)
    told = verb.connection(client, target, settings)
    for text in told.notes:
        show.note(f"note: {text}")
    if not write:
        show.emit(told, as_json=json_, render=_show)
        return
    if not told.files:
        raise BadUsage(
            f"{client} is told by variables, there is no file to write",
            hint=f'Put them into your shell: eval "$(miyabi-llm connect {client})"',
        )
    written = [verb.apply(file) for file in told.files]
    show.emit(written, as_json=json_, render=_show_written)
    if told.start:
        show.note(f"start it: {told.start}")


def _local(name: str | None, model: str | None, settings: Settings) -> Target:
    """The server of that name, or the only one that is ready. Raises Missing, BadUsage when several are."""
    from dataclasses import replace

    from miyabi_llm import serve
    from miyabi_llm.connect import GATEWAY, KeySource, Target
    from miyabi_llm.errors import BadUsage, Missing

    running = [s for s in serve.ps(settings) if s.state in ("ready", "restarting") and s.kind != "temporary"]
    found = [s for s in running if name is None or name in (s.name, s.ref)]
    if not found:
        what = f"no server {name!r} runs" if name else "no server runs"
        hint = "`miyabi-llm ps` lists those that do." if running else "Start one: `miyabi-llm serve MODEL --detach`."
        raise Missing(what, hint=hint)
    fronts = [s for s in found if s.backend == GATEWAY]
    if name is None and len(fronts) == 1:
        found = fronts  # it stands before the others
    if len(found) > 1:
        names = ", ".join(s.name for s in found)
        raise BadUsage(f"{len(found)} servers run", hint=f"Name one with --endpoint: {names}.")
    server = found[0]
    own = "" if server.backend == GATEWAY else server.endpoint.model
    endpoint = replace(server.endpoint, model=model or own, backend=server.backend)
    return Target(endpoint, server.ctx, KeySource(endpoint.key_file))


def _remote(url: str, key: object, model: str | None, settings: Settings) -> Target:
    """A server we did not start: asked what it serves and which dialects it speaks."""
    from miyabi_llm import serve
    from miyabi_llm.client import Client, base_url
    from miyabi_llm.connect import GATEWAY, KeySource, Target
    from miyabi_llm.errors import BadUsage, ModelMissing
    from miyabi_llm.types import Endpoint, Secret

    assert isinstance(key, KeySource)
    secret = serve.read_key(key.file) if key.file else None
    if key.variable:
        if not (text := settings.env.get(key.variable, "").strip()):
            raise BadUsage(f"--key-env: the variable {key.variable} is not set", hint="Give its name, not the key.")
        secret = Secret(text)
    endpoint = Endpoint(base_url(url), model or "", key=secret, key_file=key.file)
    if not model:
        with Client(endpoint) as client:
            names = client.models()
        if not names:
            raise ModelMissing(f"{endpoint.base_url} offers no model", hint="Name one with --model.")
        backend = GATEWAY if names[0] == GATEWAY else ""  # the first name of a gateway's list is its own
        endpoint = Endpoint(
            endpoint.base_url, "" if backend else names[0], key=secret, key_file=key.file, backend=backend
        )
    return Target(_speaks(endpoint), None, key)


def _speaks(endpoint: Endpoint) -> Endpoint:
    """The endpoint with the dialects it answers to: a path it does not know is a 404."""
    from dataclasses import replace

    import httpx

    paths: dict[Dialect, tuple[str, str]] = {
        "anthropic": ("POST", "/v1/messages"),
        "ollama": ("GET", "/api/version"),
    }
    dialects: list[Dialect] = ["openai"]
    headers = {"Content-Type": "application/json"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key.reveal()}"
    with httpx.Client(headers=headers, timeout=10, trust_env=False) as http:
        for dialect, (method, path) in paths.items():
            try:
                answer = http.request(method, endpoint.base_url + path, content=b"{}" if method == "POST" else None)
            except httpx.HTTPError:
                continue  # no answer is no dialect; the model list has told already that the server is there
            if answer.status_code not in (404, 405, 501):
                dialects.append(dialect)
    return replace(endpoint, dialects=tuple(dialects))


def _show(told: Connection) -> None:
    from miyabi_llm import connect as verb
    from miyabi_llm.cli import show

    for file in told.files:
        show.note(f"{file.path}: put this in, or let --write do it")
        print(verb.preview(file), end="")
    for name, value in told.exports.items():
        print(f"export {name}={value}")
    if told.start:
        show.note(f"then start it: {told.start}")


def _show_written(written: list[Written]) -> None:
    for file in written:
        if not file.changed:
            print(f"{file.path}: nothing to change")
            continue
        kept = f"; before: {file.backup}" if file.backup else ""
        print(f"{file.path}: written{kept}")
        for name in file.removed:
            print(f"  taken out: {name}")
