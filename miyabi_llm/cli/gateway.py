"""The command `gateway`: one address in front of Claude and the models here, supervised like a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.route.values import Policy
    from miyabi_llm.serve import ServerInfo
    from miyabi_llm.types import Endpoint, Event, LaunchPlan, Secret

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

FIRST_PORT = 8484
USUAL = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")  # the variables of a cloud target that names none
POLICY = typer.Option(None, "--policy", metavar="FILE", help="TOML or YAML; policy.toml of the settings when left out.")
HOST = typer.Option("127.0.0.1", "--host", metavar="ADDRESS", help="Where to listen; others than loopback need a key.")
PORT = typer.Option(None, "--port", metavar="N", min=1, max=65535, help="The first free one from 8484 when left out.")
KEY_FILE = typer.Option(None, "--api-key-file", metavar="FILE", help="Demand the key in this file (mode 0600).")
KEY = typer.Option(False, "--key", help="Demand a fresh key, kept in a file that is named when ready.")
UI = typer.Option(False, "--ui", help="Show a page of what happens at /miyabi/.")
NAME = typer.Option("gateway", "--name", metavar="NAME", help="What `ps`, `logs` and `stop` call it.")
DETACH = typer.Option(False, "--detach", "-d", help="Return when it is ready; it goes on, with a key.")
ALLOW_HOST = typer.Option(None, "--allow-host", metavar="NAME", help="A Host that is let in beside the usual ones.")
ALLOW_ORIGIN = typer.Option(None, "--allow-origin", metavar="URL", help="Pages of this origin may ask.")
DRY_RUN = typer.Option(False, "--dry-run", help="Print what would be run; start nothing.")
JSON = typer.Option(False, "--json", help="Print one JSON document.")


@app.command("gateway")
def gateway(
    policy: Path | None = POLICY,
    host: str = HOST,
    port: int | None = PORT,
    api_key_file: Path | None = KEY_FILE,
    key: bool = KEY,
    ui: bool = UI,
    name: str = NAME,
    detach: bool = DETACH,
    allow_host: list[str] | None = ALLOW_HOST,
    allow_origin: list[str] | None = ALLOW_ORIGIN,
    dry_run: bool = DRY_RUN,
    json_: bool = JSON,
) -> None:
    """Put one address in front of Claude and the models here; a policy says what may leave.

    Without a policy nothing leaves: requests go to the servers of `miyabi-llm ps`.
    """
    from miyabi_llm import config
    from miyabi_llm import serve as verb
    from miyabi_llm.cli import show

    settings = config.load()
    secret = verb.read_key(api_key_file) if api_key_file else verb.new_key() if key or detach else None
    verb.check_exposure(host, secret)
    if detach and not dry_run and (info := verb.running_as(verb.name_for(name), settings)) is not None:
        show.note(f"{info.name} runs already; `miyabi-llm stop {info.name}` it first to change how it runs")
        show.emit(info, as_json=json_, render=_show_detached)
        return
    lets = (tuple(allow_host or ()), tuple(allow_origin or ()))
    made = plan(Wanted(policy, host, port, secret, name, ui, lets), settings)
    for text in made.notes:
        show.note(f"note: {text}")
    if dry_run:
        show.emit(made, as_json=json_, render=_show_plan)
    elif detach:
        _detached(made, settings, name, as_json=json_)
        if ui:
            show.note(f"page: {made.endpoint.base_url}/miyabi/")
    else:
        _foreground(made, settings, name, ui=ui, as_json=json_)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person wants of a gateway, as the words of the command give it. `lets` are hosts and origins."""

    policy: Path | None
    host: str
    port: int | None
    key: Secret | None
    name: str
    ui: bool = False
    lets: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


def plan(wanted: Wanted, settings: Settings) -> LaunchPlan:
    """What would be run. Keys go by the environment to the one process that uses them. Raises PortTaken."""
    import json
    import sys

    from miyabi_llm.backends.base import client_url
    from miyabi_llm.gateway.process import KEY_VARIABLE, SERVER_KEYS
    from miyabi_llm.gateway.values import BACKEND, MODEL, Order
    from miyabi_llm.proc import ports
    from miyabi_llm.route.places import places
    from miyabi_llm.types import Endpoint, LaunchPlan, Secret

    if wanted.port is None:
        port = ports.free(wanted.host, FIRST_PORT)
    else:
        port = wanted.port
        ports.refuse_busy(wanted.host, port)
    where = places(settings)
    file = wanted.policy or where.policy
    there = wanted.policy is not None or file.is_file()
    running, found = _servers(settings), _policy(file) if there else None
    servers = () if there else running
    work = settings.run / "work" / f"{BACKEND}-{wanted.name}"
    order = Order(
        wanted.host,
        port,
        work,
        audit=where.audit,
        ledger=where.ledger,
        prices=where.prices,
        policy=file.absolute() if there else None,
        hosts=wanted.lets[0],
        origins=wanted.lets[1],
        servers=tuple((s.name, s.endpoint.base_url, s.endpoint.model, s.backend) for s in servers),
        ui=wanted.ui,
    )
    keys = {s.name: s.endpoint.key.reveal() for s in servers if s.endpoint.key} | _keys(found, running)
    env: dict[str, str | Secret] = {n: Secret(settings.env[n]) for n in _variables(found) if settings.env.get(n)}
    env |= {KEY_VARIABLE: wanted.key} if wanted.key else {}
    env |= {SERVER_KEYS: Secret(json.dumps(keys))} if keys else {}
    return LaunchPlan(
        BACKEND,
        (sys.executable, "-P", "-m", "miyabi_llm.gateway.process", "egress", str(work / "order.json")),
        env,
        Endpoint(client_url(wanted.host, port), MODEL, ("openai", "anthropic"), wanted.key, backend=BACKEND),
        files={work / "order.json": order.to_json()},
        notes=tuple(_notes(found, servers, settings)),
    )


def _servers(settings: Settings) -> tuple[ServerInfo, ...]:
    """The servers of ours that are ready."""
    from miyabi_llm import serve
    from miyabi_llm.gateway.values import BACKEND

    return tuple(s for s in serve.ps(settings) if s.state == "ready" and s.backend != BACKEND)


def _keys(found: Policy | None, running: tuple[ServerInfo, ...]) -> dict[str, str]:
    """Keys of the policy's local targets that are servers of ours: nobody has to write them down."""
    known = {s.endpoint.base_url: s.endpoint.key for s in running if s.endpoint.key}
    targets = found.targets if found is not None else ()
    keys = {t.name: known.get(t.endpoint.base_url) for t in targets if t.local and not t.endpoint.key_env}
    return {name: key.reveal() for name, key in keys.items() if key}


def _policy(file: Path) -> Policy:
    from miyabi_llm.route import policy

    return policy.load(file)


def _variables(found: Policy | None) -> tuple[str, ...]:
    """The variables that hold keys of the policy's targets."""
    if found is None or found.error:
        return ()
    usual = USUAL if any(not t.local for t in found.targets) else ()
    return tuple(dict.fromkeys((*usual, *(t.endpoint.key_env for t in found.targets if t.endpoint.key_env))))


def _notes(found: Policy | None, servers: tuple[ServerInfo, ...], settings: Settings) -> list[str]:
    if found is None:
        names = ", ".join(s.name for s in servers) or "none: start one with `miyabi-llm serve REF --detach`"
        return [f"no policy (`miyabi-llm route init` writes one), so nothing goes to a cloud; servers here: {names}"]
    if found.error:
        return [f"nothing goes to a cloud: {found.error}"]
    notes = []
    for target in found.targets:
        variables = (target.endpoint.key_env,) if target.endpoint.key_env else USUAL
        if not target.local and not any(settings.env.get(v) for v in variables):
            notes.append(f"{target.name} has no key: set {variables[0]}")
    return notes


def _foreground(made: LaunchPlan, settings: Settings, name: str, *, ui: bool, as_json: bool) -> None:
    from contextlib import ExitStack

    from miyabi_llm import serve as verb
    from miyabi_llm.cli import progress, show

    ready: list[Event] = []
    with ExitStack() as bars:
        shown = bars.enter_context(progress.shown(as_json=as_json))

        def on_event(event: Event) -> None:
            if event.kind != "done":
                shown(event)
                return
            ready.append(event)
            bars.close()
            show.emit(event.data["endpoint"], as_json=as_json, render=show_endpoint)
            if ui:
                show.note(f"page: {made.endpoint.base_url}/miyabi/")
            show.note(f"ready {event.message}; Ctrl-C ends it")

        verb.forever(made, settings, on_event, name=name)
    if not ready:
        show.note("stopped before it was ready")


def _detached(made: LaunchPlan, settings: Settings, name: str, *, as_json: bool) -> None:
    from miyabi_llm import serve as verb
    from miyabi_llm.cli import progress, show

    with progress.shown(as_json=as_json) as on_event:
        info = verb.detach(made, settings, on_event, name=name)
    show.emit(info, as_json=as_json, render=_show_detached)


def _show_detached(info: ServerInfo) -> None:
    show_endpoint(info.endpoint)
    print(f"stop it: miyabi-llm stop {info.name}")


def _show_plan(made: LaunchPlan) -> None:
    import shlex

    print(" ".join([*(f"{n}={v}" for n, v in made.env.items()), shlex.join(made.argv or ())]))


def show_endpoint(endpoint: Endpoint) -> None:
    """Where it answers, and what a client needs to be told."""
    print(f"gateway  {endpoint.base_url}")
    print(f"export ANTHROPIC_BASE_URL={endpoint.base_url} OPENAI_BASE_URL={endpoint.base_url}/v1")
    if endpoint.key_file is not None:
        print(f'export ANTHROPIC_AUTH_TOKEN="$(cat {endpoint.key_file})" OPENAI_API_KEY="$(cat {endpoint.key_file})"')
