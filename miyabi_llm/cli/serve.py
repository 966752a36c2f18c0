"""The command `serve`: a model behind an OpenAI-compatible API, in the foreground or detached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from miyabi_llm.cli import stored
from miyabi_llm.cli.dashes import EXTRA, BeforeDashes

if TYPE_CHECKING:
    from miyabi_llm.cli import plans
    from miyabi_llm.config import Settings
    from miyabi_llm.serve import ServerInfo
    from miyabi_llm.types import Artifact, Endpoint, Event, LaunchPlan

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

REFS = typer.Argument(None, metavar="REF...", help="A model in the store, or several.", autocompletion=stored.complete)
CONFIG = typer.Option(None, "--config", metavar="FILE", help="Serve the models this file lists, behind one address.")
MEMORY = typer.Option(None, "--memory", metavar="SIZE", help="What several models may take (12GiB); else what is free.")
BACKEND = typer.Option(None, "--backend", metavar="NAME", help="The program that serves (see `backend list`).")
HOST = typer.Option("127.0.0.1", "--host", metavar="ADDRESS", help="Where to listen; others than loopback need a key.")
PORT = typer.Option(None, "--port", metavar="N", min=1, max=65535, help="The first free one from 8080 when left out.")
CTX = typer.Option(None, "--ctx", metavar="TOKENS", min=1, help="Context; what fits, at most 8192, when left out.")
THREADS = typer.Option(None, "--threads", metavar="N", min=1, help="One per physical core when left out.")
NAME = typer.Option(None, "--name", metavar="NAME", help="What `ps`, `logs` and `stop` call it; else like the model.")
DETACH = typer.Option(False, "--detach", "-d", help="Return when it is ready; it goes on, with a key.")
KV = typer.Option(None, "--kv", metavar="TYPE", help="The KV cache's type, f16 when left out: q8_0 needs half of it.")
LORA = typer.Option(None, "--lora", metavar="[NAME=]PATH", help="A LoRA adapter on disk; may be given again.")
TENSOR = typer.Option(None, "--tensor-parallel", metavar="N", min=1, help="GPUs that share each layer (vLLM).")
PIPELINE = typer.Option(None, "--pipeline-parallel", metavar="N", min=1, help="Groups of layers (vLLM).")
NODES = typer.Option(1, "--nodes", metavar="N", min=1, help="Machines that share the model (vLLM on Ray).")
TTL = typer.Option(None, "--ttl", metavar="SECONDS", min=0, help="Unload after so long without a request; 0 never.")
KEY_FILE = typer.Option(None, "--api-key-file", metavar="FILE", help="Demand the key in this file (mode 0600).")
KEY = typer.Option(False, "--key", help="Demand a fresh key, kept in a file that is named when ready.")
GENERATE = typer.Option(None, "--generate", metavar="KIND", help="Print systemd, quadlet, compose, kube or launchd.")
OUTPUT = typer.Option(None, "-o", "--output", metavar="FILE", help="Where --generate writes; else standard output.")
IMAGE = typer.Option(None, "--image", metavar="NAME", help="The container image, with --generate.")
GPUS = typer.Option(0, "--gpus", metavar="N", min=0, help="GPUs of each machine, with --generate for containers.")
DRY_RUN = typer.Option(False, "--dry-run", help="Print what would be run; start nothing.")
JSON = typer.Option(False, "--json", help="Print one JSON document.")


@app.command("serve", cls=BeforeDashes)
def serve(
    context: typer.Context,
    refs: list[str] | None = REFS,
    config_file: Path | None = CONFIG,
    memory: str | None = MEMORY,
    backend: str | None = BACKEND,
    host: str = HOST,
    port: int | None = PORT,
    ctx: int | None = CTX,
    threads: int | None = THREADS,
    kv: str | None = KV,
    lora: list[str] | None = LORA,
    tensor_parallel: int | None = TENSOR,
    pipeline_parallel: int | None = PIPELINE,
    nodes: int = NODES,
    ttl: float | None = TTL,
    name: str | None = NAME,
    detach: bool = DETACH,
    api_key_file: Path | None = KEY_FILE,
    key: bool = KEY,
    generate: str | None = GENERATE,
    output: Path | None = OUTPUT,
    image: str | None = IMAGE,
    gpus: int = GPUS,
    dry_run: bool = DRY_RUN,
    json_: bool = JSON,
) -> None:
    """Serve a model over an OpenAI-compatible API.

    Several models, or those a file lists, are served behind one address: each is loaded when a request names it, and
    unloaded when another needs its memory. What follows `--` goes to the backend's program, last and unchanged.
    """
    from miyabi_llm import config
    from miyabi_llm import serve as verb
    from miyabi_llm.cli import plans
    from miyabi_llm.errors import BadUsage

    if generate is not None:
        from miyabi_llm.cli.generate import run

        return run(context)
    if lonely := [option for option, value in (("-o", output), ("--image", image), ("--gpus", gpus)) if value]:
        raise BadUsage(f"{lonely[0]} goes with --generate", hint="Add --generate KIND, or leave it out.")
    settings = config.load()
    secret = verb.read_key(api_key_file) if api_key_file else verb.new_key() if key or detach else None
    wanted = plans.Wanted(
        backend,
        host,
        port,
        ctx,
        threads,
        secret,
        context.meta[EXTRA],
        kv_type=kv,
        adapters=tuple(plans.adapter(text) for text in lora or ()),
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        nodes=nodes,
        keep_s=ttl,
    )
    verb.check_exposure(host, secret)
    way = Way(detach, dry_run, json_)
    if config_file is None and len(refs or ()) == 1 and memory is None:
        _one((refs or [""])[0], name, wanted, settings, way)
        return
    given = {"--lora": lora, "--nodes": nodes > 1, "--tensor-parallel": tensor_parallel}
    if lonely := [option for option, value in (given | {"--pipeline-parallel": pipeline_parallel}).items() if value]:
        raise BadUsage(f"{lonely[0]} goes with one model only", hint="Serve that model by itself.")
    _many(Many(tuple(refs or ()), config_file, memory, name), wanted, settings, way)


@dataclass(frozen=True, slots=True)
class Way:
    """How to serve: for how long, or only in words."""

    detach: bool
    dry_run: bool
    as_json: bool


def _one(ref: str, name: str | None, wanted: plans.Wanted, settings: Settings, way: Way) -> None:
    from miyabi_llm.cli import plans
    from miyabi_llm.store import Store

    store = Store(settings.store)
    artifact = stored.find(ref, store, settings)
    if _there(name or plans.alias(artifact), settings, way):
        return
    with store.lease(artifact):
        _run(plans.make(artifact, store, settings, wanted), settings, artifact, name, way)


def _there(name: str, settings: Settings, way: Way) -> bool:
    """Whether a detached server of that name runs already; if so it is shown."""
    from miyabi_llm import serve as verb
    from miyabi_llm.cli import show

    if not way.detach or way.dry_run or (info := verb.running_as(verb.name_for(name), settings)) is None:
        return False
    show.note(f"{info.name} runs already; `miyabi-llm stop {info.name}` it first to change how it runs")
    show.emit(info, as_json=way.as_json, render=_show_detached)
    return True


def _run(plan: LaunchPlan, settings: Settings, artifact: Artifact | None, name: str | None, way: Way) -> None:
    from miyabi_llm.cli import show

    for text in plan.notes:
        show.note(f"note: {text}")
    if way.dry_run:
        show.emit(plan, as_json=way.as_json, render=_show_plan)
    elif plan.argv is None:
        _attached(plan, as_json=way.as_json)
    elif way.detach:
        _detached(plan, settings, artifact, name, as_json=way.as_json)
    else:
        _foreground(plan, settings, artifact, name, as_json=way.as_json)


@dataclass(frozen=True, slots=True)
class Many:
    """Several models, as the words of the command name them."""

    refs: tuple[str, ...]
    file: Path | None
    memory: str | None
    name: str | None


def _many(many: Many, wanted: plans.Wanted, settings: Settings, way: Way) -> None:
    from miyabi_llm.cli import many as face
    from miyabi_llm.errors import BadUsage
    from miyabi_llm.serve.many import config
    from miyabi_llm.serve.many.values import NAME as DEFAULT
    from miyabi_llm.store import Store

    if (many.file is None) == (not many.refs):
        raise BadUsage("name models, or a file with --config", hint="`miyabi-llm list` shows what is here.")
    name = many.name or DEFAULT
    if _there(name, settings, way):
        return
    listed = config.load(many.file) if many.file is not None else face.from_names(list(many.refs))
    size = config.bytes_of(many.memory, "--memory") if many.memory is not None else None
    plan = face.plan(face.Many(listed, wanted, size, name), Store(settings.store), settings)
    _run(plan, settings, None, name, way)


def _foreground(
    plan: LaunchPlan, settings: Settings, artifact: Artifact | None, name: str | None, *, as_json: bool
) -> None:
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
            bars.close()  # a bar that lives as long as the server would garble the terminal
            endpoint: Endpoint = event.data["endpoint"]
            show.emit(endpoint, as_json=as_json, render=show_endpoint)
            show.note(f"ready {event.message}; Ctrl-C ends it")

        verb.forever(plan, settings, on_event, artifact=artifact, name=name)
    if not ready:
        show.note("stopped before it was ready")


def _attached(plan: LaunchPlan, *, as_json: bool) -> None:
    from miyabi_llm import backends
    from miyabi_llm import serve as verb
    from miyabi_llm.cli import progress, show

    with progress.shown(as_json=as_json) as on_event:
        endpoint = verb.attach(plan, on_event)
    show.emit(endpoint, as_json=as_json, render=show_endpoint)
    if plan.wake:
        show.note(f"{plan.backend} is a daemon of its own: it goes on, and `miyabi-llm stop` does not end it")
    else:
        own = "; --port N starts one of our own" if backends.get(plan.backend).capabilities.start else ""
        show.note(f"{plan.backend} was running already and goes on{own}")


def _detached(
    plan: LaunchPlan, settings: Settings, artifact: Artifact | None, name: str | None, *, as_json: bool
) -> None:
    from miyabi_llm import serve as verb
    from miyabi_llm.cli import progress, show

    with progress.shown(as_json=as_json) as on_event:
        info = verb.detach(plan, settings, on_event, artifact=artifact, name=name)
    show.emit(info, as_json=as_json, render=_show_detached)


def _show_detached(info: ServerInfo) -> None:
    show_endpoint(info.endpoint)
    print(f"stop it: miyabi-llm stop {info.name}")


def _show_plan(plan: LaunchPlan) -> None:
    import shlex

    if plan.argv is None:
        for words in plan.wake:
            print(shlex.join(words))
        if not plan.wake:
            print(f"# nothing to start: {plan.backend} answers on {plan.endpoint.base_url}")
        return
    secrets = [f"{name}={value}" for name, value in plan.env.items()]
    print(" ".join([*secrets, shlex.join(plan.argv)]))


def show_endpoint(endpoint: Endpoint) -> None:
    """Where the model answers, and a first question to paste."""
    print(f"{endpoint.model}  {endpoint.base_url}/v1")
    print(curl(endpoint))


def curl(endpoint: Endpoint) -> str:
    """A question to the endpoint, ready to paste; the key is read from its file, not shown."""
    import json
    import shlex

    body: dict[str, Any] = {"model": endpoint.model, "messages": [{"role": "user", "content": "Hello"}]}
    parts = ["curl", f"{endpoint.base_url}/v1/chat/completions", "-H", "'Content-Type: application/json'"]
    if endpoint.key_file is not None:
        parts += ["-H", f'"Authorization: Bearer $(cat {shlex.quote(str(endpoint.key_file))})"']
    return " ".join([*parts, "-d", shlex.quote(json.dumps(body, ensure_ascii=False))])
