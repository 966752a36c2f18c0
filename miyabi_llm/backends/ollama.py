"""Ollama: attach to one that runs, or start one of our own, and hand it models of our store."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from miyabi_llm.backends import managed, near
from miyabi_llm.backends.base import Capabilities, Control, Detected, InstallOptions, Unsupported, Way, client_url
from miyabi_llm.backends.ollama_values import address, go_seconds, host_of
from miyabi_llm.backends.ollama_words import check_adapters, model_name, renders_gguf
from miyabi_llm.config import Settings
from miyabi_llm.errors import BackendMissing, MiyabiError
from miyabi_llm.proc.ports import is_loopback
from miyabi_llm.store.adopt import folders
from miyabi_llm.tools.program import Program, Unusable, run_briefly
from miyabi_llm.types import Dialect, Endpoint, Format, LaunchPlan, OnEvent, Secret, ServeSpec

DEFAULT_CTX = 8192  # tokens, when nobody fitted one; Ollama's own choice depends on the graphics memory
LOOK_S = 1.0  # seconds a running server may take to say its version
SAY_S = 1.5  # seconds the program may take to say its own
_APP = Path("/Applications/Ollama.app/Contents/Resources/ollama")
KV_TYPES = ("f16", "q8_0", "q4_0")
DIALECTS: tuple[Dialect, ...] = ("openai", "anthropic", "ollama")
OWN_PORT = "Give --port N: then one of our own is started beside it."

_CAPABILITIES = Capabilities(
    dialects=DIALECTS,
    start=True,
    attach=True,
    several=True,
    load=True,
    unload=True,
    adapters=True,
    context=True,
    kv_type=True,
    limits=(
        "It demands no key, so it is never opened to other machines.",
        "It takes one adapter per model, a GGUF file.",
        "A file it cannot be lent is written again on import: twice its bytes on the disk.",
        "It has no metrics; the type of the KV cache can be set for a server of our own only.",
        "It was not run against the real program here.",
    ),
)


@dataclass(frozen=True, slots=True)
class Found(Detected):
    """How Ollama stands here; `models` is where one that runs would keep its models."""

    models: Path | None = None


@dataclass(frozen=True, slots=True)
class Ollama:
    """The `ollama` program, and its server wherever it runs on this machine or in this private network."""

    name: str = "ollama"
    accepts: frozenset[Format] = frozenset({"gguf", "ollama"})
    capabilities: Capabilities = _CAPABILITIES

    def detect(self, settings: Settings) -> Found:
        """The program on PATH, and a server on OLLAMA_HOST or the usual port."""
        program = _program(settings)
        good = program if isinstance(program, Program) else None
        rejected = (program,) if isinstance(program, Unusable) else ()
        running, version, why = _running(settings)
        if good is None and running is None:
            missing = f"{rejected[0].path} {rejected[0].reason}" if rejected else "is not installed"
            return Found(self.name, False, f"{missing}; {why}", rejected=rejected)
        return Found(
            self.name,
            True,
            why if running is not None else "",
            program=good,
            rejected=rejected,
            running=running,
            version=version or (good.version if good else ""),
            models=folders(settings).ollama[0],
        )

    def plan(self, spec: ServeSpec, found: Detected) -> LaunchPlan:
        """Attach when one runs and `spec` allows it, else `ollama serve` with a models folder of its own.

        Either way the model is handed over once the server answers. Raises BackendMissing without a program,
        Unsupported for what Ollama cannot do: a key that protects, a second adapter, options of the command line.
        """
        _refuse(spec)
        ctx = DEFAULT_CTX if spec.ctx is None else spec.ctx
        wanted = replace(spec, ctx=ctx, key=None)
        notes: tuple[str, ...] = (
            ("Ollama demands no key: every program on this machine can use it",) if spec.key else ()
        )
        if renders_gguf(found.version) is False:
            notes += (f"Ollama {found.version} does not use chat templates in GGUF files: update it to 0.30 or later",)
        if spec.attach and found.running is not None:
            return self._attach(wanted, found, found.running, notes)
        if found.program is None:
            raise BackendMissing("ollama is not installed", hint="Run `miyabi-llm backend install ollama`.")
        models = spec.work / "ollama" if spec.work else None
        # without a folder of its own it shares its owner's: then our names must keep out of theirs
        given = replace(wanted, attach=models is None, work=models)
        endpoint = Endpoint(client_url(spec.host, spec.port), model_name(given), DIALECTS, backend=self.name)
        return LaunchPlan(
            backend=self.name,
            argv=found.program.argv,
            env=_environment(wanted, models),
            endpoint=endpoint,
            health_path="/",
            ctx=ctx,
            notes=notes,
            links=_links(spec, models),  # taken away at the end: the folder stays, and must not hold a model's bytes
            handover=given,
        )

    def _attach(self, spec: ServeSpec, found: Detected, running: Endpoint, notes: tuple[str, ...]) -> LaunchPlan:
        if spec.kv_type or spec.parallel:
            what = "the type of its KV cache" if spec.kv_type else "how many requests it answers at once"
            raise Unsupported(
                f"the Ollama on {running.base_url} runs already: {what} is set at its start", hint=OWN_PORT
            )
        models = found.models if isinstance(found, Found) else None
        given = replace(spec, attach=True, work=models)
        said = f"the Ollama on {running.base_url} runs already: it is used, and left running"
        return LaunchPlan(
            backend=self.name,
            argv=None,
            env={},
            endpoint=replace(running, model=model_name(given)),
            health_path="/",
            ctx=spec.ctx,
            notes=(*notes, said),
            handover=given,
        )

    def ways(self, system: str) -> tuple[Way, ...]:
        """Package managers first; then what its makers publish, to be fetched and unpacked by hand."""
        archive = "https://ollama.com/download/ollama-linux-amd64.tar.zst"  # docs/linux.mdx of ollama
        by_system = {
            "Linux": (
                Way("package manager", ("brew", "install", "ollama")),
                Way("package manager", ("pacman", "-S", "--noconfirm", "ollama"), "as root; ollama-cuda with a GPU"),
                Way("by hand", ("curl", "-fLO", archive), "then `sudo tar x -C /usr -f ollama-linux-amd64.tar.zst`"),
                Way("container", ("docker", "run", "-d", "-p", "127.0.0.1:11434:11434", "ollama/ollama"), _CONTAINER),
            ),
            "Darwin": (
                Way("package manager", ("brew", "install", "ollama")),
                Way("by hand", (), "the app from https://ollama.com/download"),
            ),
            "Windows": (
                Way("package manager", ("winget", "install", "--exact", "--id", "Ollama.Ollama")),
                Way("by hand", (), "OllamaSetup.exe from https://ollama.com/download"),
            ),
        }
        return by_system.get(system, ())

    def install(self, settings: Settings, on_event: OnEvent, options: InstallOptions) -> Program:
        """By the package manager that is here, never as another user. Raises BackendMissing with the steps."""
        found = _program(settings)
        if isinstance(found, Program):
            return found
        if settings.offline:
            raise BackendMissing("ollama is not installed, and you are offline by choice", hint=settings.offline_hint)
        return managed.install(self, settings, on_event)

    def control(self, endpoint: Endpoint) -> Control:
        """Its models: listed, loaded, unloaded, pulled, deleted, and ours handed over."""
        from miyabi_llm.backends.ollama_control import OllamaControl

        return OllamaControl(endpoint)


_OPEN = "Ollama demands no key: every program on this machine can use it"
_CONTAINER = "it cannot be lent our files: they are sent to it, and written twice"


def _refuse(spec: ServeSpec) -> None:
    if not is_loopback(spec.host):
        raise Unsupported(
            f"Ollama demands no key: on {spec.host} every machine that reaches it could use it",
            hint="Leave out --host, or use `--backend llama-cpp`, which demands one.",
        )
    if spec.extra:
        raise Unsupported("`ollama serve` takes no options", hint="Leave out what stands after --.")
    if spec.nodes > 1 or spec.tensor_parallel or spec.pipeline_parallel:
        raise Unsupported("Ollama splits a model by itself, on one machine", hint="Use `--backend vllm`.")
    if spec.kv_type is not None and spec.kv_type not in KV_TYPES:
        raise Unsupported(f"Ollama has no KV cache of type {spec.kv_type}", hint=f"Types: {', '.join(KV_TYPES)}.")
    check_adapters(len(spec.adapters))


def _links(spec: ServeSpec, models: Path | None) -> Mapping[Path, Path]:
    """The model's blobs under the names the server knows them by."""
    if models is None:
        return {}
    ggufs = [f for f in spec.artifact.files if f.name in spec.files and f.name.lower().endswith(".gguf")]
    return {models / "blobs" / f"sha256-{f.sha256}": spec.files[f.name] for f in ggufs}


def _environment(spec: ServeSpec, models: Path | None) -> Mapping[str, str | Secret]:
    """All that `ollama serve` is told: it has no options."""
    host = f"[{spec.host}]" if ":" in spec.host else spec.host
    env: dict[str, str | Secret] = {
        "OLLAMA_HOST": f"{host}:{spec.port}",
        "OLLAMA_CONTEXT_LENGTH": str(spec.ctx),
        "OLLAMA_KEEP_ALIVE": go_seconds(spec.keep_s or 0),  # it is started for this model: it keeps it unless told
        "OLLAMA_NOPRUNE": "1",  # a blob we lend has no manifest for a moment
        "OLLAMA_NO_CLOUD": "1",
    }
    if models is not None:
        env["OLLAMA_MODELS"] = str(models)
    if spec.parallel is not None:
        env["OLLAMA_NUM_PARALLEL"] = str(spec.parallel)
    if spec.kv_type is not None:
        env |= {"OLLAMA_KV_CACHE_TYPE": spec.kv_type, "OLLAMA_FLASH_ATTENTION": "1"}  # needed for quantized types
    return env


def _program(settings: Settings) -> Program | Unusable | None:
    """The first `ollama` of PATH, or of the usual place of the app."""
    path = near.on_path("ollama", settings.env.get("PATH", ""), _APP)
    if path is None:
        return None
    # asked against a port where nobody answers: else it says the version of the server that runs
    env = {**settings.env, "OLLAMA_HOST": "127.0.0.1:1"}
    said = run_briefly((str(path), "--version"), timeout=SAY_S, env=env)
    if said.trouble:
        return Unusable("ollama", path, said.trouble)
    if not (version := parse_version(said.text)):
        first = next((line.strip() for line in said.text.splitlines() if line.strip()), "")
        return Unusable("ollama", path, f"is no Ollama: --version says {first[:80]!r}")
    return Program("ollama", path, (str(path), "serve"), version, "path")


_CLIENT = re.compile(r"client version is (\S+)")
_ANY = re.compile(r"ollama version(?: is)?:? (\S+)", re.I)


def parse_version(text: str) -> str:
    """The program's own version out of `ollama --version`; empty where it says none. Pure."""
    found = _CLIENT.search(text) or _ANY.search(text)
    return found[1][:40] if found else ""


def _running(settings: Settings) -> tuple[Endpoint | None, str, str]:
    """A server that answers, its version, and a sentence: whose it is, or why there is none."""
    url = address(settings.env.get("OLLAMA_HOST", ""))
    from miyabi_llm.backends.ollama_api import OllamaApi  # brings httpx
    from miyabi_llm.client.http import is_local

    if not is_local(url):
        return None, "", f"OLLAMA_HOST names {host_of(url) or 'no host'}, which is not in this house: it is not asked"
    endpoint = Endpoint(url, "", DIALECTS, backend="ollama")
    try:
        with OllamaApi(endpoint) as api:
            version = api.look(LOOK_S)
    except MiyabiError:
        return None, "", f"no server answers on {url}"
    whose = "started by us" if _is_ours(url, settings) else "not started by us"
    return endpoint, version, f"runs on {url}, {whose}"


def _is_ours(url: str, settings: Settings) -> bool:
    """Whether a state file of ours names this address for an Ollama: what the file says, not proof."""
    with suppress(OSError):
        for path in settings.run.glob("*.json"):
            with suppress(OSError, ValueError, AttributeError, RecursionError):
                if os.path.getsize(path) < 1 << 20:
                    said = json.loads(path.read_bytes())
                    if said.get("backend") == "ollama" and said.get("base_url") == url:
                        return True
    return False
