"""The commands `ps`, `logs` and `stop`: what runs, what it says, and its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from miyabi_llm.serve import ServerInfo

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

JSON = typer.Option(False, "--json", help="Print one JSON document.")


@app.command("ps")
def ps(json_: bool = JSON) -> None:
    """List running servers."""
    from miyabi_llm import config, serve
    from miyabi_llm.cli import show

    show.emit(serve.ps(config.load()), as_json=json_, render=_show_servers)


@app.command("logs")
def logs(
    name: str = typer.Argument(help="The server's name, or its model's."),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on with what it writes next."),
    lines: int = typer.Option(50, "--lines", "-n", min=0, help="How many of the last lines."),
    json_: bool = JSON,
) -> None:
    """Show a server's log."""
    from miyabi_llm import config, serve
    from miyabi_llm.cli import show
    from miyabi_llm.errors import BadUsage

    if follow and json_:
        raise BadUsage("--follow never ends: it has no JSON document")
    settings = config.load()
    more = serve.follow(settings, name) if follow else None
    show.emit(serve.last_lines(settings, name, lines), as_json=json_, render=lambda found: print("\n".join(found)))
    for text in more or ():
        print(text, end="", flush=True)


@app.command("stop")
def stop(
    name: str | None = typer.Argument(None, help="The server's name, or its model's."),
    all_: bool = typer.Option(False, "--all", help="Stop every server."),
    json_: bool = JSON,
) -> None:
    """Stop a server."""
    from miyabi_llm import config, serve
    from miyabi_llm.cli import show
    from miyabi_llm.errors import BadUsage

    if (name is None) != all_:
        raise BadUsage("say which server to stop", hint="`miyabi-llm stop NAME`, or `miyabi-llm stop --all`.")
    stopped = serve.stop(config.load(), name)
    show.emit(stopped, as_json=json_, render=_show_stopped)


def _show_stopped(servers: list[ServerInfo]) -> None:
    for s in servers:
        print(f"stopped {s.name}")


def _show_servers(servers: list[ServerInfo]) -> None:
    from miyabi_llm.cli import many
    from miyabi_llm.cli.show import human, note, table
    from miyabi_llm.types import counted

    if not servers:
        note("no server runs; `miyabi-llm serve REF --detach` starts one")
        return
    rows = (
        (
            s.name,
            s.ref,
            s.backend,
            s.state + (f" ({counted(s.restarts, 'restart')})" if s.restarts else ""),
            s.endpoint.base_url if s.state != "dead" else "",
            human(s.memory) if s.memory else "",
            s.kind,
            s.started,
        )
        for s in servers
    )
    table(("NAME", "MODEL", "BACKEND", "STATE", "ENDPOINT", "MEMORY", "KIND", "STARTED"), rows)
    for s in servers:
        if s.models:
            print(f"\n{s.name}")
            table(many.HEADER, many.rows(s.models))
    for s in servers:
        if s.error and s.state in ("dead", "restarting"):
            note(f"{s.name}: {s.error.splitlines()[0]}")
        for alarm in s.alarms if s.state == "ready" else ():
            note(f"{s.name}: {alarm}")
