"""The command `serve`: a model behind an OpenAI-compatible API, in the foreground or detached."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from miyabi_llm.cli import stored

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.serve import ServerInfo
    from miyabi_llm.types import Artifact, Endpoint, Event, LaunchPlan

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

REF = typer.Argument(help="A model in the store.", autocompletion=stored.complete)
EXTRA = typer.Argument(None, metavar="[-- ARGS]...", help="Handed to the backend's program, last, unchanged.")
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
DRY_RUN = typer.Option(False, "--dry-run", help="Print what would be run; start nothing.")
JSON = typer.Option(False, "--json", help="Print one JSON document.")


@app.command("serve")
def serve(
    ref: str = REF,
    extra: list[str] | None = EXTRA,
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
    dry_run: bool = DRY_RUN,
    json_: bool = JSON,
) -> None:
    """Serve a model over an OpenAI-compatible API."""
    from miyabi_llm import config
    from miyabi_llm import serve as verb
    from miyabi_llm.cli import plans, show
    from miyabi_llm.store import Store

    settings = config.load()
    store = Store(settings.store)
    secret = verb.read_key(api_key_file) if api_key_file else verb.new_key() if key or detach else None
    wanted = plans.Wanted(
        backend,
        host,
        port,
        ctx,
        threads,
        secret,
        tuple(extra or ()),
        kv_type=kv,
        adapters=tuple(plans.adapter(text) for text in lora or ()),
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        nodes=nodes,
        keep_s=ttl,
    )
    verb.check_exposure(host, secret)
    artifact = stored.find(ref, store, settings)
    if detach and not dry_run and (info := verb.running_as(name or verb.name_for(plans.alias(artifact)), settings)):
        show.note(f"{info.name} runs already; `miyabi-llm stop {info.name}` it first to change how it runs")
        show.emit(info, as_json=json_, render=_show_detached)
        return
    with store.lease(artifact):
        plan = plans.make(artifact, store, settings, wanted)
        for text in plan.notes:
            show.note(f"note: {text}")
        if dry_run:
            show.emit(plan, as_json=json_, render=_show_plan)
        elif plan.argv is None:
            _attached(plan, as_json=json_)
        elif detach:
            _detached(plan, settings, artifact, name, as_json=json_)
        else:
            _foreground(plan, settings, artifact, name, as_json=json_)


def _foreground(plan: LaunchPlan, settings: Settings, artifact: Artifact, name: str | None, *, as_json: bool) -> None:
    from contextlib import ExitStack

    from miyabi_llm import serve as verb
    from miyabi_llm.cli import progress, show

    with ExitStack() as bars:
        shown = bars.enter_context(progress.shown(as_json=as_json))

        def on_event(event: Event) -> None:
            if event.kind != "done":
                shown(event)
                return
            bars.close()  # a bar that lives as long as the server would garble the terminal
            endpoint: Endpoint = event.data["endpoint"]
            show.emit(endpoint, as_json=as_json, render=show_endpoint)
            show.note(f"ready {event.message}; Ctrl-C ends it")

        verb.forever(plan, settings, on_event, artifact=artifact, name=name)


def _attached(plan: LaunchPlan, *, as_json: bool) -> None:
    from miyabi_llm import serve as verb
    from miyabi_llm.cli import progress, show

    with progress.shown(as_json=as_json) as on_event:
        endpoint = verb.attach(plan, on_event)
    show.emit(endpoint, as_json=as_json, render=show_endpoint)
    if plan.wake:
        show.note(f"{plan.backend} is a daemon of its own: it goes on, and `miyabi-llm stop` does not end it")
    else:
        show.note(f"{plan.backend} was running already and goes on; --port N starts one of our own")


def _detached(plan: LaunchPlan, settings: Settings, artifact: Artifact, name: str | None, *, as_json: bool) -> None:
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
