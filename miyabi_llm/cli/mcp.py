"""The command `mcp`: the local models as tools of Claude Code, Claude Desktop, Cursor, VS Code and other hosts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from miyabi_llm.cli.default import RunFirst

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.connect import FileSettings, Written
    from miyabi_llm.types import Secret

app = typer.Typer(
    cls=RunFirst,
    name="mcp",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _group() -> None:
    """Give local models to Claude Code and other MCP hosts as tools."""


@app.command("run")
def run(
    http: int | None = typer.Option(
        None, "--http", metavar="PORT", min=0, max=65535, help="Serve streamable HTTP on this port (0: any free one)."
    ),
    host: str = typer.Option("127.0.0.1", "--host", help="With --http: the address to listen on."),
    token_file: Path | None = typer.Option(
        None, "--token-file", metavar="FILE", help="With --http: the file with the token clients have to show."
    ),
    token_env: str | None = typer.Option(
        None, "--token-env", metavar="VARIABLE", help="With --http: the variable that holds the token."
    ),
    allow_host: list[str] = typer.Option(
        [], "--allow-host", metavar="NAME", help="With --http: a further name clients may call it by."
    ),
    json_: bool = typer.Option(False, "--json", help="With --http: print the address as JSON."),
) -> None:
    """Serve the tools: over standard input and output, or over HTTP."""
    from miyabi_llm import config
    from miyabi_llm.errors import BadUsage

    settings = config.load()
    if http is None and (token_file or token_env or allow_host or host != "127.0.0.1"):
        raise BadUsage("--host, --token-file, --token-env and --allow-host go with --http PORT")
    from miyabi_llm.mcp.server import build
    from miyabi_llm.mcp.servers import Servers

    servers = Servers(settings)
    if http is None:
        from miyabi_llm.mcp import stdio

        if sys.stdin and sys.stdin.isatty():
            print("waiting for an MCP host; `miyabi-llm mcp install HOST` tells one to start this", file=sys.stderr)
        stdio.serve(build(servers), servers.close)
        return
    from miyabi_llm.mcp.http import Place, serve

    token = _token(token_file, token_env, settings)
    place = Place(host, http, token, tuple(allow_host))
    place.check()
    serve(build(servers), place, servers.close, lambda event: _ready(event.data, as_json=json_))


_HOSTS = ("claude-code", "claude-desktop", "cursor", "vscode", "windsurf", "gemini-cli", "codex")


def _complete(incomplete: str) -> list[str]:
    return [name for name in _HOSTS if name.startswith(incomplete)]


@app.command("install")
def install(
    host: str = typer.Argument(help=f"One of {', '.join(_HOSTS)}.", autocompletion=_complete),
    project: bool = typer.Option(False, "--project", help="For this folder only, in a file that can be shared."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print what would be written, and where."),
    json_: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Write the tools into a host's configuration; the file before is kept beside it."""
    from miyabi_llm import config, connect
    from miyabi_llm.cli import show

    settings = config.load()
    server = connect.passed(settings, _command())
    file = connect.host_settings(host, server, settings, Path.cwd() if project else None)
    if dry_run:
        show.note(f"{file.path}: this would be put in")
        show.emit({"path": file.path, "values": file.values}, as_json=json_, render=lambda _: _preview(file))
        return
    written = connect.apply(file)
    show.emit(written, as_json=json_, render=_written)
    show.note(connect.HOSTS[host].after)


def _command() -> tuple[str, ...]:
    """How a host starts the server: by whole paths, since hosts have a PATH of their own."""
    script = Path(sys.executable).with_name("miyabi-llm")
    program = (str(script),) if script.exists() else (sys.executable, "-m", "miyabi_llm")
    return (*program, "mcp")


def _preview(file: FileSettings) -> None:
    from miyabi_llm import connect

    print(connect.preview(file), end="")


def _written(done: Written) -> None:
    kept = f"; before: {done.backup}" if done.backup else ""
    print(f"{done.path}: {f'written{kept}' if done.changed else 'nothing to change'}")


def _token(file: Path | None, variable: str | None, settings: Settings) -> Secret | None:
    from miyabi_llm import serve
    from miyabi_llm.errors import BadUsage
    from miyabi_llm.types import Secret

    if file and variable:
        raise BadUsage("--token-file and --token-env say the same thing", hint="Give one of them.")
    if file:
        return serve.read_key(file)
    if not variable:
        return None
    if not (text := settings.env.get(variable, "").strip()):
        raise BadUsage(f"--token-env: the variable {variable} is not set", hint="Give its name, not the token.")
    return Secret(text)


def _ready(data: object, *, as_json: bool) -> None:
    from miyabi_llm.cli import show

    show.emit(data, as_json=as_json, render=lambda d: print(f"listening on {d['url']}"))
