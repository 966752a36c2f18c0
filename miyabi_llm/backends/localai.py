"""LocalAI: its server started on a folder of ours, with a generated model configuration and links to our files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miyabi_llm.backends.base import Capabilities, Detected, InstallOptions, Unsupported, Way, client_url
from miyabi_llm.backends.llama_cpp import DEFAULT_CTX, model_files
from miyabi_llm.backends.near import answers, on_path
from miyabi_llm.config import Settings
from miyabi_llm.errors import BackendMissing, BadUsage
from miyabi_llm.tools.program import Program, Unusable, run_briefly
from miyabi_llm.types import Endpoint, Format, LaunchPlan, OnEvent, Secret, ServeSpec

if TYPE_CHECKING:
    from miyabi_llm.backends.base import Control

PROGRAM = "local-ai"
USUAL = "http://127.0.0.1:8080"  # where a LocalAI that nobody told otherwise is found
ENGINE = "llama-cpp"  # LocalAI's own name of the engine that reads GGUF files
ENGINES = "engines"  # the key under which `detect` tells where LocalAI's engines lie
SYSTEM_ENGINES = Path("/var/lib/local-ai/backends")  # where LocalAI looks besides
VERSION_S = 2.0  # seconds it may take to say its version
INSTALL_HINT = "Run `miyabi-llm backend install localai`: it installs it, or says how."
_VERSION = re.compile(r"\bv?(\d+\.\d+\.\d+\S*)")


CAPABILITIES = Capabilities(
    dialects=("openai", "anthropic", "ollama"),
    start=True,
    key=True,
    load=True,
    unload=True,
    adapters=True,
    context=True,
    kv_type=True,
    metrics=True,
    verified="stand-in",
    limits=(
        "not run against the real program here: written from its sources, tested with a stand-in",
        "it needs its own llama-cpp engine (`local-ai backends install llama-cpp`): it downloads nothing by itself",
        "a LocalAI that runs already cannot be handed a model of our store: its models folder is its own",
        "one LoRA adapter at most; the idle time holds for the whole server",
        "containers are named as a way to install it, not started by us",
    ),
)


@dataclass(frozen=True, slots=True)
class LocalAI:
    """`local-ai run`. Written from its published sources; not run against the real program here."""

    name: str = "localai"
    accepts: frozenset[Format] = frozenset({"gguf"})
    capabilities: Capabilities = CAPABILITIES

    def detect(self, settings: Settings) -> Detected:
        """`local-ai` on PATH, where its engines lie, and a server that answers on its usual port."""
        running = _running()
        folder = settings.env.get("LOCALAI_BACKENDS_PATH") or settings.env.get("BACKENDS_PATH")
        engines = Path(folder).expanduser().absolute() if folder else settings.cache / "localai-engines"
        path = on_path(PROGRAM, settings.env.get("PATH", ""))
        if path is None:
            return Detected(self.name, False, "is not installed", running=running)
        said = run_briefly((str(path), "--version"), timeout=VERSION_S, env=settings.env)
        if said.trouble or said.code != 0:
            reason = said.trouble or f"--version ended with {said.code}"
            bad = (Unusable(PROGRAM, path, reason),)
            return Detected(self.name, False, f"{path} {reason}", rejected=bad, running=running)
        found = _VERSION.search(said.text)
        program = Program(PROGRAM, path, (str(path),), found[1] if found else "", "path")
        seen = next((p for root in (engines, SYSTEM_ENGINES) for p in _entries(root) if ENGINE in p.name), None)
        tools = {ENGINES: engines} | ({ENGINE: seen} if seen else {})
        return Detected(self.name, True, program=program, tools=tools, running=running, version=program.version)

    def plan(self, spec: ServeSpec, found: Detected) -> LaunchPlan:
        """A server of our own in `spec.work`: configuration, links, address; no downloads, no web page.

        Raises BackendMissing without the program, BadUsage without a GGUF file or a folder to work in, Unsupported for
        several machines or adapters.
        """
        if found.program is None:
            raise BackendMissing("local-ai is not installed", hint=INSTALL_HINT)
        _refuse(spec)
        if spec.work is None:
            raise BadUsage("localai needs a folder of its own to work in", hint="Give ServeSpec.work.")
        work = spec.work / str(spec.port)  # two servers of one model must not write into each other's
        ctx = DEFAULT_CTX if spec.ctx is None else spec.ctx
        links = _links(spec, work / "models")
        config = configuration(spec, ctx)
        folders = (
            *("--models-path", str(work / "models"), "--data-path", str(work / "data")),
            *("--localai-config-dir", str(work / "configuration"), "--upload-path", str(work / "upload")),
            *("--generated-content-path", str(work / "generated")),
        )
        engines = found.tools.get(ENGINES)
        notes = () if ENGINE in found.tools else (f"no {ENGINE} engine was found; if it fails: {engine_hint(engines)}",)
        return LaunchPlan(
            backend=self.name,
            argv=(
                *(*found.program.argv, "run", "--address", _address(spec.host, spec.port), *folders),
                *(("--backends-path", str(engines)) if engines else ()),
                *spec.extra,
            ),
            env=_environment(spec),
            endpoint=Endpoint(
                client_url(spec.host, spec.port), spec.alias, self.capabilities.dialects, spec.key, backend=self.name
            ),
            health_path="/readyz",
            ctx=ctx,
            notes=notes,
            # JSON is YAML too
            files={work / "models" / "miyabi-llm.yaml": json.dumps(config, ensure_ascii=False, indent=1) + "\n"},
            links=links,
            handover=spec,
        )

    def ways(self, system: str) -> tuple[Way, ...]:
        """The package manager, the published binary, the container."""
        page = "https://github.com/mudler/LocalAI/releases"
        engine = "then `local-ai backends install llama-cpp`"
        brew = Way("package manager", ("brew", "install", "localai"), engine)
        box = ("docker", "run", "-p", "127.0.0.1:8080:8080", "--name", "local-ai", "localai/localai:latest")
        container = Way("container", box, "its server; miyabi-llm does not start containers")
        names = {"Linux": "local-ai-Linux-x86_64 or local-ai-Linux-arm64", "Darwin": "local-ai-Darwin-arm64"}
        if system not in names:
            return (container, Way("by hand", (), "under WSL as on Linux"))
        hand = f"take {names[system]} from {page}, name it local-ai, put it on PATH, `chmod +x` it; {engine}"
        return (brew, Way("by hand", (), hand), container)

    def install(self, settings: Settings, on_event: OnEvent, options: InstallOptions) -> Program:
        """By the machine's package manager. Raises BackendMissing with the steps where there is none."""
        from miyabi_llm.backends import managed

        return managed.install(self, settings, on_event)

    def control(self, endpoint: Endpoint) -> Control:
        """Its models: list, load, unload."""
        from miyabi_llm.backends.localai_api import LocalAIControl

        return LocalAIControl(self.name, endpoint)


def engine_hint(engines: Path | None) -> str:
    """The command that brings LocalAI's engine for GGUF files. Pure."""
    return f"`local-ai backends install {ENGINE}" + (f" --backends-path {engines}`" if engines else "`")


def configuration(spec: ServeSpec, ctx: int) -> dict[str, Any]:
    """LocalAI's description of the model. File names are relative to its models folder: it refuses others. Pure."""
    model, projector = model_files(spec.files)
    body: dict[str, Any] = {
        "name": spec.alias,
        "backend": ENGINE,
        "parameters": {"model": _plain(model.name)},
        "context_size": ctx,
        "mmap": True,
    }
    if projector is not None:
        body["mmproj"] = _plain(projector.name)
    if spec.threads is not None:
        body["threads"] = spec.threads
    if spec.parallel is not None:
        body["options"] = [f"parallel:{spec.parallel}"]
    if spec.kv_type is not None:
        body |= {"cache_type_k": spec.kv_type, "cache_type_v": spec.kv_type}
    for adapter in spec.adapters:
        # the engine applies it only where a base is named; it reads no other use into the name
        body |= {"lora_adapter": _adapter(adapter.path), "lora_base": _plain(model.name), "lora_scale": 1.0}
    return body


def _links(spec: ServeSpec, folder: Path) -> dict[Path, Path]:
    """Every GGUF file under the name its configuration uses, flat in the models folder; parts keep their numbers."""
    files = {folder / _plain(p.name): p for n, p in spec.files.items() if n.lower().endswith(".gguf")}
    return files | {folder / _adapter(a.path): a.path for a in spec.adapters}


def _plain(name: str) -> str:
    """A file name LocalAI accepts: it refuses any with two dots in a row."""
    return re.sub(r"\.{2,}", ".", name)


def _adapter(path: Path) -> str:
    return f"adapter-{_plain(path.name)}"


def _environment(spec: ServeSpec) -> Mapping[str, str | Secret]:
    """Switches whose names as flags changed between its versions; the variables did not."""
    env: dict[str, str | Secret] = {
        "LOCALAI_DISABLE_WEBUI": "true",
        "LOCALAI_DISABLE_RUNTIME_SETTINGS": "true",
        "LOCALAI_AUTOLOAD_GALLERIES": "false",
        "LOCALAI_AUTOLOAD_BACKEND_GALLERIES": "false",
    }
    if spec.keep_s:
        env |= {"LOCALAI_WATCHDOG_IDLE": "true", "LOCALAI_WATCHDOG_IDLE_TIMEOUT": f"{max(1, round(spec.keep_s))}s"}
    return env | ({"LOCALAI_API_KEY": spec.key} if spec.key else {})


_OURS = {"--address": "--host and --port", "--models-path": "REF", "--api-keys": "--key", "--models-config-file": "REF"}


def _refuse(spec: ServeSpec) -> None:
    if spec.nodes > 1:
        raise Unsupported("localai serves on one machine here", hint="Use `--backend vllm --nodes N`.")
    if len(spec.adapters) > 1:
        raise Unsupported("localai takes one LoRA adapter", hint="Use `--backend llama-cpp` or merge them.")
    for adapter in spec.adapters:
        if adapter.path.suffix != ".gguf":
            raise Unsupported(f"{adapter.path} is no GGUF adapter", hint="Make one: `miyabi-llm convert`.")
    for word in spec.extra:
        if word.partition("=")[0] in _OURS:
            hint = f"Use `miyabi-llm serve` with {_OURS[word.partition('=')[0]]}."
            raise BadUsage(f"{word} cannot be given after --", hint=hint)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _running() -> Endpoint | None:
    """A LocalAI on its usual port, told by the page it has for finding it. Never raises."""
    status, body = answers(USUAL, "/.well-known/localai.json")
    if status != 200 or not isinstance(body, dict) or "endpoints" not in body:
        return None
    return Endpoint(USUAL, "", backend="localai")
