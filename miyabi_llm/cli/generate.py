"""`serve --generate`: what a real start would run, written down as a service."""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miyabi_llm.errors import BackendMissing, BadUsage, DiskFull, MiyabiError
from miyabi_llm.types import LaunchPlan, Secret, ServeSpec

if TYPE_CHECKING:
    import typer

    from miyabi_llm.config import Settings
    from miyabi_llm.generate import Container, Generated, Image, Native
    from miyabi_llm.store import Store
    from miyabi_llm.types import Artifact

PORT = 8080
MOST_CTX = 8192  # tokens, when nobody said how many
UNKNOWN = 2 << 30  # bytes beside the weights, for a model whose need we cannot tell from its header
FOLDER = "/models"
BY_FORMAT = {"gguf": "llama-cpp", "safetensors": "vllm"}
# What of the environment the command sees when a service manager runs it; keys are not among it.
KEPT: tuple[str, ...] = (
    "PATH",
    "MIYABI_HOME",
    "MIYABI_CONFIG",
    "MIYABI_CACHE",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_CACHE_HOME",
)
KEPT += ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "OLLAMA_HOST", "OLLAMA_MODELS", "LANG", "LC_ALL")
# Said anew in the service's command, or of no use there.
OWN = {"generate", "output", "image", "gpus", "json_", "dry_run", "detach", "key", "api_key_file", "name", "port"}
FILES = {"config_file"}  # options that name a file, which must be found from anywhere
# Options the images' servers have had for long; which version will run is not known here.
FLAGS = frozenset({"--mmproj", "--jinja", "--cache-ram", "--no-webui", "--offline"})


@dataclass(frozen=True, slots=True)
class Made:
    """What was generated, and where it was written; None for standard output."""

    kind: str
    file: str
    path: Path | None
    text: str
    next: tuple[str, ...]
    notes: tuple[str, ...]


def run(context: typer.Context) -> None:
    """Carry out `serve --generate` with the words of the command in `context`."""
    from miyabi_llm import config, generate
    from miyabi_llm.cli import show

    kind, params = str(context.params["generate"]), context.params
    if kind not in generate.KINDS:
        raise BadUsage(f"--generate {kind}: unknown", hint=f"Kinds: {', '.join(generate.KINDS)}.")
    settings = config.load()
    if kind in generate.NATIVE:
        made = generate.NATIVE[kind](_native(context, settings))
    else:
        container = _container(context, settings)
        made = generate.CONTAINER[kind](container)
        if not container.key_file.exists():
            made = replace(made, next=(_key_step(container), *made.next))
    path = _write(made, _path(params, "output"))
    for text in made.notes:
        show.note(f"note: {text}")
    value = Made(made.kind, made.file, path, made.text, made.next, made.notes)
    show.emit(value, as_json=bool(params["json_"]), render=_show)


def _show(made: Made) -> None:
    from miyabi_llm.cli import show

    if made.path is None:
        print(made.text, end="")
    else:
        print(made.path)
    show.note("next:")
    for step in made.next:
        show.note(f"  {step}")


def _write(made: Generated, output: Path | None) -> Path | None:
    if output is None or str(output) == "-":
        return None
    path = output / made.file if output.is_dir() else output
    try:
        path.write_text(made.text, encoding="utf-8")
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{path}: {e.strerror}", hint="Free some space, or name another place with -o.") from e
        raise BadUsage(f"{path}: {e.strerror}", hint="Name a file in a folder that is there, with -o.") from e
    return path


def _refs(params: Mapping[str, Any]) -> list[str]:
    """The models that were named."""
    return list(params.get("refs") or ())


def _extra(context: typer.Context) -> tuple[str, ...]:
    """The words after `--`."""
    from miyabi_llm.cli.dashes import EXTRA

    return tuple(context.meta.get(EXTRA, ()))


def _path(params: Mapping[str, Any], name: str) -> Path | None:
    """An option that names a file: the parser's own values are still words."""
    return Path(params[name]) if params.get(name) is not None else None


def _native(context: typer.Context, settings: Settings) -> Native:
    """The same `serve`, with a fixed port and a key, for a service manager of this machine."""
    from miyabi_llm import generate
    from miyabi_llm import serve as verb
    from miyabi_llm.cli import plans, stored
    from miyabi_llm.store import Store

    params, refs = context.params, _refs(context.params)
    if not refs and params.get("config_file") is None:
        raise BadUsage("name models, or a file with --config", hint="`miyabi-llm list` shows what is here.")
    store = Store(settings.store)
    artifacts = [stored.find(ref, store, settings) for ref in refs]
    model = ", ".join(plans.alias(a) for a in artifacts) or "models"
    name = params.get("name") or verb.name_for(plans.alias(artifacts[0]) if len(artifacts) == 1 else "models")
    words = ["serve", *(str(a.ref) for a in artifacts), *_options(context)]
    words += ["--port", str(params.get("port") or PORT), "--name", name]
    for artifact in artifacts:
        _warn_of_missing(artifact, params.get("backend"), settings)
    key = _path(params, "api_key_file")
    if key is not None:
        verb.read_key(key)
    words += ["--api-key-file", str(key.absolute())] if key is not None else ["--key"]
    words += ["--", *extra] if (extra := _extra(context)) else []
    env = {k: settings.env[k] for k in KEPT if settings.env.get(k)}
    env["PATH"] = ":".join(dict.fromkeys(p for p in env.get("PATH", "").split(":") if p.startswith("/")))
    log = settings.run / f"{name}.launchd.log"
    return generate.Native(generate.identifier(name), model, (*_program(), *words), env, log)


def _warn_of_missing(artifact: Artifact, backend: str | None, settings: Settings) -> None:
    """Say when the service would not start on this machine as it is. Raises BadUsage where it never can."""
    from miyabi_llm import backends
    from miyabi_llm.cli import show

    try:
        backends.choose(artifact, backend, settings)
    except BackendMissing as e:
        show.note(f"note: it would not start now: {e.message}. {e.hint or ''}")


def _program() -> tuple[str, ...]:
    """This very command, wherever it is started from."""
    beside = Path(sys.executable).with_name("miyabi-llm")
    return (str(beside),) if beside.exists() else (sys.executable, "-m", "miyabi_llm")


def _options(context: typer.Context) -> Iterator[str]:
    """The options of the command that were given, as words, with paths that hold from anywhere."""
    from miyabi_llm.cli import plans

    for option in context.command.params:
        value = context.params.get(str(option.name))
        if option.param_type_name != "option" or option.name in OWN or value in (None, (), []):
            continue
        flag = next((word for word in option.opts if word.startswith("--")), option.opts[0])
        if value == option.get_default(context):
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            if option.name == "lora":
                adapter = plans.adapter(one)
                yield from (flag, f"{adapter.name}={adapter.path.absolute()}")
            elif isinstance(one, bool):
                yield flag
            else:
                yield from (flag, str(Path(one).absolute()) if option.name in FILES else str(one))


def _container(context: typer.Context, settings: Settings) -> Container:
    """What the backend would run, with the model where the container sees it."""
    from miyabi_llm import generate
    from miyabi_llm.cli import plans, stored
    from miyabi_llm.generate.images import arguments
    from miyabi_llm.store import Store

    params = context.params | {"extra": _extra(context)}
    refs, kind = _refs(params), params["generate"]
    if len(refs) != 1:
        raise BadUsage(f"--generate {kind} takes one model", hint="Make a service for each, or --generate systemd.")
    if params.get("lora"):
        raise BadUsage("adapters are not put into containers", hint="Use --generate systemd.")
    store = Store(settings.store)
    artifact = stored.find(refs[0], store, settings)
    gpus = int(params.get("gpus") or 0)
    backend = params.get("backend") or BY_FORMAT.get(artifact.format, artifact.format)
    image = generate.image(backend, params.get("image"), gpus)
    files = _files(artifact, store)
    plan = _plan(artifact, files, backend, image, params)
    inside = {str(path): f"{FOLDER}/{name}" for name, path in files.items()}
    inside |= {str(path.parents[name.count("/")]): FOLDER for name, path in files.items()}
    assert plan.argv is not None
    name = generate.identifier(params.get("name") or plans.alias(artifact))
    key = _path(params, "api_key_file")
    return generate.Container(
        name=name,
        model=plans.alias(artifact),
        image=image,
        args=tuple(inside.get(word, word) for word in arguments(backend, plan.argv)),
        env={k: v for k, v in plan.env.items() if isinstance(v, str)},
        mounts=tuple(generate.Mount(files[f.name], f"{FOLDER}/{f.name}", f.sha256, f.size) for f in artifact.files),
        port=int(params.get("port") or PORT),
        key_file=key.absolute() if key is not None else settings.config / "keys" / f"{name}.key",
        memory=_memory(artifact, files, plan, settings),
        health=plan.health_path,
        address=params["host"],
        gpus=gpus,
        nodes=int(params.get("nodes") or 1),
        threads=params.get("threads"),
    )


def _files(artifact: Artifact, store: Store) -> dict[str, Path]:
    with store.lease(artifact):
        return dict(store.files(artifact))


def _plan(
    artifact: Artifact, files: Mapping[str, Path], backend: str, image: Image, params: Mapping[str, Any]
) -> LaunchPlan:
    """The backend's own plan, for the program in the image: nothing of it has to be installed here."""
    from miyabi_llm import backends
    from miyabi_llm.backends.base import Detected
    from miyabi_llm.cli import plans
    from miyabi_llm.tools.program import Program

    variables = frozenset({image.key_variable})
    program = Program(backend, Path("/", *image.entry), (image.name,), "", "path", flags=FLAGS, environment=variables)
    spec = ServeSpec(
        artifact,
        files,
        plans.alias(artifact),
        host="0.0.0.0",
        port=int(params.get("port") or PORT),
        ctx=params.get("ctx") or _usual_ctx(files),
        threads=params.get("threads"),
        key=Secret("in the secret, not here"),
        extra=tuple(params.get("extra") or ()),
        kv_type=params.get("kv"),
        gpus=int(params.get("gpus") or 0),
        tensor_parallel=params.get("tensor_parallel") or int(params.get("gpus") or 0) or None,
        pipeline_parallel=params.get("pipeline_parallel"),
        nodes=int(params.get("nodes") or 1),
        attach=False,
    )
    plan = backends.get(backend).plan(spec, Detected(backend, True, program=program))
    if plan.argv is None or plan.files or "--model" not in plan.argv:
        raise BadUsage(f"no container is made for {backend}", hint="Use --generate systemd.")
    return plan


def _usual_ctx(files: Mapping[str, Path]) -> int | None:
    from miyabi_llm import fit

    try:
        return min(MOST_CTX, fit.read_header(files).context_length or MOST_CTX)
    except MiyabiError:
        return None  # no GGUF: the backend reads the model's own configuration


def _memory(artifact: Artifact, files: Mapping[str, Path], plan: LaunchPlan, settings: Settings) -> int:
    """Bytes to ask a cluster for: the estimate for this context, else the weights and something beside them."""
    from miyabi_llm import fit, hardware

    try:
        verdict = fit.judge(fit.read_header(files), hardware.look(settings.env), plan.ctx)
        return verdict.needed.total
    except MiyabiError:
        return artifact.size + UNKNOWN


def _key_step(container: Container) -> str:
    """The command that makes the key where there is none yet."""
    file = container.key_file
    return f"mkdir -p {shlex.quote(str(file.parent))} && (umask 077; openssl rand -hex 32 > {shlex.quote(str(file))})"
