"""The commands about models that are here: list, show, verify, rm, prune, df, outdated, link, export, import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from miyabi_llm.cli.stored import complete

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.describe import Description
    from miyabi_llm.store import Store
    from miyabi_llm.types import Artifact

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

REF = typer.Argument(help="A stored model, as `miyabi-llm list` names it.", autocompletion=complete)
REFS = typer.Argument(None, help="Stored models, as `miyabi-llm list` names them.", autocompletion=complete)
JSON = typer.Option(False, "--json", help="Print one JSON document.")


def _here() -> tuple[Settings, Store]:
    from miyabi_llm import config
    from miyabi_llm.store import Store

    settings = config.load()
    return settings, Store(settings.store)


@app.command("list")
def list_(json_: bool = JSON) -> None:
    """List the models in the store."""
    from miyabi_llm.cli import show, views

    settings, store = _here()
    models = store.list()
    show.emit(models, as_json=json_, render=views.models)
    problems = store.problems()
    for problem in problems:
        show.note(f"{problem.name}: {problem.message}" + (f"\n  {problem.fix}" if problem.fix else ""))
    if not models and not problems and not json_:
        show.note(f"No models here yet. Run `miyabi-llm pull {settings.default_model}`.")


@app.command("show")
def show_(
    ref: str = typer.Argument(help="A stored model, or the path of a model file.", autocompletion=complete),
    field: str | None = typer.Option(
        None, "--field", metavar="KEY", help="Print one fact: architecture, card.source, general.license, ..."
    ),
    template: bool = typer.Option(False, "--template", help="Print the chat template."),
    json_: bool = JSON,
) -> None:
    """Show a model's header and its card."""
    from miyabi_llm import describe
    from miyabi_llm.cli import show, views

    found = _described(ref)
    if template:
        show.emit(describe.template(found), as_json=json_, render=views.value)
    elif field:
        show.emit(describe.lookup(found, field), as_json=json_, render=views.value)
    else:
        show.emit(found, as_json=json_, render=views.description)


@app.command("verify")
def verify(
    refs: list[str] = REFS,
    all_: bool = typer.Option(False, "--all", help="Every model in the store."),
    json_: bool = JSON,
) -> None:
    """Hash a model's bytes again and compare."""
    from miyabi_llm.cli import progress, show, stored, views
    from miyabi_llm.errors import BadUsage

    settings, store = _here()
    if bool(refs) == all_:
        raise BadUsage("verify needs models, or --all", hint="Run `miyabi-llm verify --all`.")
    problems = [p for p in store.problems() if p.level == "fail"] if all_ else []
    models = store.list() if all_ else [stored.find(r, store, settings, damaged=True) for r in dict.fromkeys(refs)]
    with progress.shown(as_json=json_) as on_event:
        checks = [{"ref": a.ref, "files": store.verify(a, on_event)} for a in models]
    good = not problems and all(f.ok for c in checks for f in c["files"])  # type: ignore[attr-defined]
    show.emit({"ok": good, "models": checks, "problems": problems}, as_json=json_, render=views.checks)
    if not good:
        raise typer.Exit(1)


@app.command("rm")
def rm(refs: list[str] = REFS, json_: bool = JSON) -> None:
    """Remove models from the store."""
    from miyabi_llm.cli import show, stored, views
    from miyabi_llm.errors import BadUsage, ModelMissing

    settings, store = _here()
    if not refs:
        raise BadUsage("rm needs the name of a model", hint="Run `miyabi-llm list`.")
    names = list(dict.fromkeys(stored.parse(r, settings) for r in refs))
    for name in names:  # all of them first: a typing error must not leave half of the work done
        try:
            store.manifest(name)
        except ModelMissing as e:
            if not e.details.get("damaged"):
                raise stored.missing(name, store, settings) from e
    show.emit([store.remove(name) for name in names], as_json=json_, render=views.removals)


@app.command("prune")
def prune(
    yes: bool = typer.Option(False, "--yes", "-y", help="Remove; without it, only say what would be removed."),
    json_: bool = JSON,
) -> None:
    """Remove partial downloads and blobs no model needs."""
    from miyabi_llm.cli import show, views

    _, store = _here()
    show.emit(store.prune(dry_run=not yes), as_json=json_, render=views.pruned)


@app.command("df")
def df(json_: bool = JSON) -> None:
    """Show what the store uses of the disk."""
    from miyabi_llm.cli import show, views

    _, store = _here()
    show.emit(store.df(), as_json=json_, render=views.usage)


@app.command("outdated")
def outdated(refs: list[str] = REFS, json_: bool = JSON) -> None:
    """Compare pulled models with their sources."""
    from miyabi_llm import outdated as verb
    from miyabi_llm.cli import progress, show, stored, views

    settings, store = _here()
    models = [stored.find(r, store, settings) for r in dict.fromkeys(refs)] if refs else store.list()
    with progress.shown(as_json=json_) as on_event:
        found = verb.outdated(models, settings, on_event)
    show.emit(found, as_json=json_, render=views.standings)
    if any(s.failed for s in found):
        raise typer.Exit(1)


@app.command("link")
def link(
    ref: str = REF,
    to: str = typer.Option(..., "--to", metavar="hf|ollama|lm-studio", help="The tool that shall see the model."),
    name: str | None = typer.Option(None, "--as", metavar="NAME", help="Its name there: ORG/REPO, or NAME:TAG."),
    json_: bool = JSON,
) -> None:
    """Show a model to other tools without a second copy."""
    from miyabi_llm.cli import show, stored, views
    from miyabi_llm.errors import BadUsage
    from miyabi_llm.store import link as links

    if to not in links.TOOLS:
        raise BadUsage(f"no tool is called {to!r}", hint=f"Known: {', '.join(links.TOOLS)}.")
    settings, store = _here()
    artifact = stored.find(ref, store, settings)
    blobs = {f.name: store.blob(f.sha256) for f in artifact.files}
    with store.lease(artifact):
        done = links.link(to, artifact, blobs, settings, name=name)
    show.emit(done, as_json=json_, render=views.linked)


@app.command("export")
def export(
    ref: str = REF,
    output: Path | None = typer.Option(None, "--output", "-o", metavar="FILE", help="Where to; NAME.tar by default."),
    force: bool = typer.Option(False, "--force", help="Replace FILE."),
    json_: bool = JSON,
) -> None:
    """Write a model to one file, for a machine without a network."""
    from miyabi_llm import bundle
    from miyabi_llm.cli import progress, show, stored, views

    settings, store = _here()
    artifact = stored.find(ref, store, settings)
    target = output or Path(_file_name(artifact))
    with progress.shown(as_json=json_) as on_event:
        done = bundle.export(artifact.ref, target, store, on_event, force=force)
    show.emit(done, as_json=json_, render=views.exported)


@app.command("import")
def import_(
    file: Path = typer.Argument(help="A file that `miyabi-llm export` wrote."),
    json_: bool = JSON,
) -> None:
    """Read a model from a file that `export` wrote."""
    from miyabi_llm import bundle
    from miyabi_llm.cli import progress, show, views

    settings, store = _here()
    with progress.shown(as_json=json_) as on_event:
        done = bundle.import_(file, store, settings, on_event)
    show.emit(done, as_json=json_, render=views.imported)


# -- from the words of the command to a value


def _described(text: str) -> Description:
    """The model that `text` names in the store, or the file or folder at that path."""
    from miyabi_llm import describe
    from miyabi_llm.cli import stored
    from miyabi_llm.errors import ModelMissing

    settings, store = _here()
    ref = stored.parse(text, settings)
    try:
        artifact = store.find(ref)
    except ModelMissing as e:
        if ref.scheme == "file":
            path = Path(ref.name)
            path = settings.user_home / path.relative_to("~") if path.parts[:1] == ("~",) else path
            return describe.describe(describe.local(path), str(path))
        raise e if e.details.get("damaged") else stored.missing(ref, store, settings) from e
    return describe.describe({f.name: store.blob(f.sha256) for f in artifact.files}, str(ref), artifact)


def _file_name(artifact: Artifact) -> str:
    """The model's own name as a file name."""
    import re

    ref = artifact.ref
    parts = [ref.name.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf"), ref.quant or ref.revision or ""]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(p for p in parts if p)).lstrip(".-") + ".tar"
