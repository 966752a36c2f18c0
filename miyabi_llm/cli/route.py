"""The command `route`: where requests go and why, without sending one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.route.places import Places
    from miyabi_llm.route.taint import Taints
    from miyabi_llm.route.template import Here
    from miyabi_llm.route.values import Policy

app = typer.Typer(
    name="route",
    help="Say where requests go and why; test, replay and audit the policy of the gateway.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
audit_app = typer.Typer(help="The sealed log of decisions.", no_args_is_help=True, rich_markup_mode=None,
                        pretty_exceptions_enable=False, add_completion=False)  # fmt: skip
app.add_typer(audit_app, name="audit")

POLICY = typer.Option(None, "--policy", metavar="FILE", help="TOML or YAML; policy.toml of the settings when left out.")
JSON = typer.Option(False, "--json", help="Print one JSON document.")


@app.command("init")
def init(
    mode: str = typer.Option("claude", "--mode", metavar="MODE", help="claude, local or hybrid."),
    output: Path | None = typer.Option(None, "--output", "-o", metavar="FILE", help="Default: of the settings."),
    cloud: str | None = typer.Option(None, "--cloud", metavar="URL", help="Base address of the cloud's API."),
    local: list[str] = typer.Option([], "--local", metavar="NAME=URL", help="A local server; default: those of `ps`."),
    force: bool = typer.Option(False, "--force", help="Write over a policy that is there."),
    json_: bool = JSON,
) -> None:
    """Write a first policy, with comments."""
    from miyabi_llm import config
    from miyabi_llm.cli import show
    from miyabi_llm.errors import BadUsage
    from miyabi_llm.route import policy as policies
    from miyabi_llm.route import template
    from miyabi_llm.route.places import places

    settings = config.load()
    file = output or places(settings).policy
    if file.exists() and not force:
        raise BadUsage(f"{file} is there already", hint="Look at it, or write over it with --force.")
    here = [_named(word) for word in local] or _running(settings)
    text = template.write(mode, here, cloud or template.CLOUD)
    policies.parse(text, str(file))
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)
    show.emit({"policy": str(file)}, as_json=json_, render=lambda v: print(v["policy"]))


def _named(word: str) -> Here:
    from miyabi_llm.errors import BadUsage
    from miyabi_llm.route.template import Here

    name, equals, url = word.partition("=")
    if not equals:
        raise BadUsage(f"--local {word}: give a name and an address", hint="--local box=http://192.168.1.5:8080")
    return Here(name, url)


def _running(settings: Settings) -> list[Here]:
    from miyabi_llm import serve
    from miyabi_llm.route.template import Here

    ready = [s for s in serve.ps(settings) if s.state == "ready" and s.backend != "gateway"]
    return [Here(s.name, s.endpoint.base_url, s.endpoint.model, s.backend) for s in ready]


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a policy file."""
    from miyabi_llm.cli import show
    from miyabi_llm.route.schema import SCHEMA

    print(show.document(SCHEMA))


@app.command("explain")
def explain(
    file: Path = typer.Argument(metavar="FILE|-", help="A request body, an envelope (path, headers, body), or text."),
    policy: Path | None = POLICY,
    header: list[str] = typer.Option([], "--header", "-H", metavar="NAME:VALUE", help="A header of the request."),
    path: str | None = typer.Option(None, "--path", metavar="PATH", help="Such as /v1/chat/completions."),
    json_: bool = JSON,
) -> None:
    """Say where a request would go and why. Sends nothing."""
    from dataclasses import replace

    from miyabi_llm import config
    from miyabi_llm.cli import route_views, show
    from miyabi_llm.route import ask, prices
    from miyabi_llm.route.explain import explain as verb
    from miyabi_llm.route.places import places

    settings = config.load()
    asked = ask.read(_bytes(file), str(file), dict(_header(h) for h in header))
    if path is not None:
        asked = replace(asked, path=path)
    found = verb(_policy(policy, settings), asked, prices.load(places(settings).prices))
    show.emit(route_views.named(found) if json_ else found, as_json=json_, render=route_views.explained)


def _bytes(file: Path) -> bytes:
    import sys

    from miyabi_llm.errors import BadUsage

    if str(file) == "-":
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as e:
        raise BadUsage(f"{file}: {e.strerror}", hint="Give a file, or - for standard input.") from e


def _header(text: str) -> tuple[str, str]:
    from miyabi_llm.errors import BadUsage

    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise BadUsage(f"--header {text}: a header has a name, a colon and a value")
    return name.strip().lower(), value.strip()


def _policy(file: Path | None, settings: Settings) -> Policy:
    """The policy as the gateway would take it: one that cannot be trusted denies every cloud, and says so."""
    from miyabi_llm.cli import show
    from miyabi_llm.route import policy as policies
    from miyabi_llm.route.places import places

    found = policies.load(file or places(settings).policy)
    if found.error:
        show.note(f"nothing goes to a cloud: {found.error}")
    return found


@app.command("test")
def probe(
    probes: Path = typer.Argument(metavar="PROBES", help="Requests with what is expected of each: probes.yaml."),
    policy: Path | None = typer.Option(None, "--policy", metavar="FILE", help="Default: the one the probes name."),
    json_: bool = JSON,
) -> None:
    """Hold a policy against probes; exit 5 when one is not met."""
    from miyabi_llm import config
    from miyabi_llm.cli import route_views, show
    from miyabi_llm.errors import GateFailed
    from miyabi_llm.route import prices
    from miyabi_llm.route import probes as verb
    from miyabi_llm.route.places import places

    settings = config.load()
    wanted = verb.load(probes)
    file = policy or (wanted.folder / wanted.policy if wanted.policy else None)
    done = verb.run(wanted, _policy(file, settings), prices.load(places(settings).prices))
    show.emit(route_views.named(done) if json_ else done, as_json=json_, render=route_views.probed)
    failed = [p.name for p in done if p.wrong]
    if failed:
        raise GateFailed(f"{len(failed)} of {len(done)} probes are not met: {', '.join(failed[:5])}")


@app.command("replay")
def replay(
    policy: Path = typer.Option(..., "--policy", metavar="NEW", help="The policy to try."),
    log: Path | None = typer.Option(None, "--log", metavar="FILE", help="Default: the gateway's log."),
    json_: bool = JSON,
) -> None:
    """Decide the logged requests again by another policy, and say what would go elsewhere."""
    from miyabi_llm import config
    from miyabi_llm.cli import route_views, show
    from miyabi_llm.errors import Missing
    from miyabi_llm.route import policy as policies
    from miyabi_llm.route.places import places
    from miyabi_llm.route.replay import replay as verb

    settings = config.load()
    file = log or places(settings).audit
    new = policies.read(policy)
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            done = verb(lines, new)
    except OSError as e:
        raise Missing(f"{file}: {e.strerror}", hint="The gateway writes it: miyabi-llm gateway") from e
    show.emit(done, as_json=json_, render=route_views.replayed)


@audit_app.command("verify")
def verify(
    log: Path | None = typer.Option(None, "--log", metavar="FILE", help="Default: the gateway's log."),
    json_: bool = JSON,
) -> None:
    """Check every line of the log, its seal and its place; exit 1 when something is wrong."""
    from miyabi_llm import config
    from miyabi_llm.cli import route_views, show
    from miyabi_llm.errors import Corrupt, Missing
    from miyabi_llm.route import audit, keys
    from miyabi_llm.route.places import places

    settings = config.load()
    where = places(settings)
    file = log or where.audit
    if not file.is_file() or not where.secret.is_file():
        raise Missing(f"{file}: there is no log", hint="The gateway writes it: miyabi-llm gateway")
    found = audit.verify(file, keys.secret(where.secret))
    show.emit(found, as_json=json_, render=route_views.verified)
    if found.problems:
        raise Corrupt(f"{file}: {found.problems[0]}", hint="Keep the file; ask who could write to it.")


@app.command("untaint")
def untaint(
    session: str | None = typer.Argument(None, help="Its name, or its sealed name; without one: list them."),
    json_: bool = JSON,
) -> None:
    """List the sessions that stay here because of what they saw, or let one go; that is logged."""
    from contextlib import closing

    from miyabi_llm import config
    from miyabi_llm.cli import route_views, show
    from miyabi_llm.errors import BadUsage
    from miyabi_llm.route import keys
    from miyabi_llm.route.places import places
    from miyabi_llm.route.taint import Taints

    where = places(config.load())
    with closing(Taints(where.taint, keys.secret(where.secret))) as taints:
        if session is None:
            show.emit(taints.all(), as_json=json_, render=route_views.tainted)
            return
        if not taints.untaint(session):
            raise BadUsage("there is no such private session", hint="List them: miyabi-llm route untaint")
        logged = _log_releases(taints, where)
    show.emit({"untainted": True, "logged": logged}, as_json=json_, render=lambda _: print("untainted"))
    if not logged:
        show.note("the running gateway logs it with the next request that has a session")


def _log_releases(taints: Taints, where: Places) -> bool:
    """Log what was untainted; False while a running gateway holds the log: it writes it with its next line."""
    from contextlib import closing

    from miyabi_llm.route import keys
    from miyabi_llm.route.audit import Audit, AuditFailed
    from miyabi_llm.route.taint import log_releases

    try:
        with closing(Audit(where.audit, keys.secret(where.secret))) as audit:
            return log_releases(taints, audit)
    except AuditFailed:
        return False


@app.command("spend")
def spend(
    month: str | None = typer.Option(None, "--month", metavar="YYYY-MM", help="Default: this month, UTC."),
    json_: bool = JSON,
) -> None:
    """Show what a month cost and saved."""
    from contextlib import closing

    from miyabi_llm import config
    from miyabi_llm.cli import route_views, show
    from miyabi_llm.errors import Missing
    from miyabi_llm.route.ledger import Ledger
    from miyabi_llm.route.places import places

    where = places(config.load())
    if not where.ledger.is_file():
        raise Missing(f"{where.ledger}: nothing was spent yet", hint="The gateway writes it: miyabi-llm gateway")
    with closing(Ledger(where.ledger)) as ledger:
        show.emit(ledger.totals(month), as_json=json_, render=route_views.spent)
