"""llama.cpp's server: GGUF models, in the OpenAI and the Anthropic dialect."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from miyabi_llm.backends.base import Capabilities, Detected, InstallOptions, Unsupported, Way, client_url
from miyabi_llm.config import Settings
from miyabi_llm.errors import BackendMissing, BadUsage
from miyabi_llm.memory import KV_TYPES
from miyabi_llm.tools import llama_cpp
from miyabi_llm.tools.program import Program
from miyabi_llm.types import Endpoint, Format, LaunchPlan, OnEvent, ServeSpec

if TYPE_CHECKING:
    from miyabi_llm.backends.base import Control

KEY_VARIABLE = "LLAMA_API_KEY"
DEFAULT_CTX = 8192  # tokens, when nobody fitted one: the model's own limit may need more memory than there is
# MiB of earlier prompts the server may keep. Its own default is 8192, which grows until the machine swaps.
DEFAULT_CACHE_RAM = 512

CAPABILITIES = Capabilities(
    dialects=("openai", "anthropic"),
    start=True,
    key=True,
    several=True,
    load=True,
    unload=True,
    adapters=True,
    context=True,
    kv_type=True,
    metrics=True,
    verified="real",
    limits=(
        "GGUF files only",
        "several machines: no (its RPC backend is not used: its security record speaks against it)",
    ),
)


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """`llama-server`, or the unified `llama serve`."""

    name: str = "llama-cpp"
    accepts: frozenset[Format] = frozenset({"gguf"})
    capabilities: Capabilities = CAPABILITIES

    def detect(self, settings: Settings) -> Detected:
        """Our own installations, then PATH."""
        found = llama_cpp.search(llama_cpp.SERVER, settings)
        if found.program is not None:
            tools = llama_cpp.beside(settings)
            version = found.program.version
            return Detected(
                self.name, True, program=found.program, rejected=found.rejected, tools=tools, version=version
            )
        reason = "; ".join(f"{r.path} {r.reason}" for r in found.rejected) or "is not installed"
        return Detected(self.name, False, reason, rejected=found.rejected)

    def plan(self, spec: ServeSpec, found: Detected) -> LaunchPlan:
        """The server's command line for `spec`; flags its --help does not list are left out.

        GPU layers are left to llama.cpp's own fitting. The key goes by the environment. `extra` comes last, so it
        wins. Raises BackendMissing without a usable program, BadUsage when `spec` holds no GGUF file, or `extra` an
        option that says which model is served where to whom.
        """
        program = found.program
        if program is None:
            raise BackendMissing("llama-server is not installed", hint=llama_cpp.INSTALL_HINT)
        if spec.key and KEY_VARIABLE not in program.environment:
            raise BackendMissing(f"{program.path} takes no key by {KEY_VARIABLE}", hint=llama_cpp.INSTALL_HINT)
        if spec.nodes > 1:
            raise Unsupported("llama-cpp serves on one machine", hint="Use `--backend vllm --nodes N`.")
        _refuse_ours(spec.extra)
        check_kv(spec.kv_type)
        ctx = DEFAULT_CTX if spec.ctx is None else spec.ctx
        endpoint = Endpoint(
            client_url(spec.host, spec.port), spec.alias, ("openai", "anthropic"), spec.key, backend=self.name
        )
        return LaunchPlan(
            backend=self.name,
            argv=(*program.argv, *_arguments(spec, ctx, program), *spec.extra),
            env={KEY_VARIABLE: spec.key} if spec.key else {},
            endpoint=endpoint,
            ctx=_last_ctx(spec.extra, ctx),
        )

    def ways(self, system: str) -> tuple[Way, ...]:
        """A pinned published build or one from pinned source; then the package managers of the system."""
        ours = (
            Way("release", ("miyabi-llm", "backend", "install", "llama-cpp"), "a pinned build, checked by its hash"),
            Way("build", ("miyabi-llm", "backend", "install", "llama-cpp", "--from", "build"), "from pinned source"),
        )
        managers = {
            "Linux": (("brew", "install", "llama.cpp"), ("conda", "install", "-c", "conda-forge", "llama.cpp")),
            "Darwin": (("brew", "install", "llama.cpp"), ("port", "install", "llama.cpp")),
            "Windows": (("winget", "install", "llama.cpp"),),
        }
        return (*ours, *(Way("package manager", command) for command in managers.get(system, ())))

    def install(self, settings: Settings, on_event: OnEvent, options: InstallOptions) -> Program:
        """A good one on PATH, a pinned published build, or a build from pinned source."""
        from miyabi_llm.tools.install import install

        return install(settings, on_event, source=options.source, tools=options.tools)

    def control(self, endpoint: Endpoint) -> Control:
        """Its models, and loading and unloading them where it runs as a router."""
        from miyabi_llm.backends.llama_control import LlamaControl

        return LlamaControl(self.name, endpoint)


def check_kv(kv_type: str | None) -> None:
    """Raises BadUsage for a type that llama.cpp has no KV cache of."""
    if kv_type is not None and kv_type not in KV_TYPES:
        raise BadUsage(f"--kv: {kv_type!r} is no cache type of llama.cpp", hint=f"It has: {', '.join(KV_TYPES)}.")


def _arguments(spec: ServeSpec, ctx: int, program: Program) -> Iterator[str]:
    model, projector = model_files(spec.files)
    yield from ("--model", str(model), "--alias", spec.alias)
    yield from ("--host", spec.host, "--port", str(spec.port), "--ctx-size", str(ctx))
    if projector is not None and program.has("--mmproj"):
        yield from ("--mmproj", str(projector))
    if spec.threads is not None:
        yield from ("--threads", str(spec.threads))
    if spec.parallel is not None:
        yield from ("--parallel", str(spec.parallel))
    if spec.kv_type is not None:
        yield from ("--cache-type-k", spec.kv_type, "--cache-type-v", spec.kv_type)
    if spec.adapters:
        yield from ("--lora", ",".join(str(a.path) for a in spec.adapters))
    if spec.keep_s and program.has("--sleep-idle-seconds"):
        yield from ("--sleep-idle-seconds", str(max(1, round(spec.keep_s))))
    if program.has("--log-verbosity"):  # 4: what it allocates and where; prompts are not logged below 5
        yield from ("--log-verbosity", "4")
    if program.has("--cache-ram"):
        yield from ("--cache-ram", str(DEFAULT_CACHE_RAM if spec.cache_ram is None else spec.cache_ram))
    if program.has("--jinja"):
        yield "--jinja"
    # both names mean the same; newer servers list both
    if page := next((flag for flag in ("--no-ui", "--no-webui") if program.has(flag)), None):
        yield page
    if program.has("--offline"):
        yield "--offline"


_FIRST = re.compile(r"-0*1-of-\d+\.gguf$")


def model_files(files: Mapping[str, Path]) -> tuple[Path, Path | None]:
    """The model's GGUF file, the first of its parts when it is split, and its projector for images if it has one.

    Raises BadUsage when there is no GGUF file, or several that are not parts of one model.
    """
    names = sorted(name for name in files if name.lower().endswith(".gguf"))
    projectors = [name for name in names if Path(name).name.lower().startswith("mmproj")]
    models = [name for name in names if name not in projectors]
    parts = [name for name in models if _FIRST.search(name)]
    if len(models) > 1 and len(parts) != 1:
        raise BadUsage(f"several models, no telling which to serve: {', '.join(models)}", hint="Pull one file of it.")
    if not models:
        raise BadUsage("no GGUF file in this model", hint="llama-cpp serves GGUF files only.")
    return files[(parts or models)[0]], files[projectors[0]] if projectors else None


# What the proof of a served model rests on: the option of the program -> ours.
_OURS = {"--host": "--host", "--port": "--port", "--api-key": "--key", "--api-key-file": "--api-key-file"}
_OURS |= dict.fromkeys(("-m", "--model", "-a", "--alias", "-hf", "--hf-repo", "-mu", "--model-url"), "REF")


def _refuse_ours(extra: tuple[str, ...]) -> None:
    for word in extra:
        if word in _OURS:
            raise BadUsage(f"{word} cannot be given after --", hint=f"Use `miyabi-llm serve` with {_OURS[word]}.")


def _last_ctx(extra: tuple[str, ...], ctx: int) -> int:
    """The context size that holds in the end: the user's own words come last."""
    for flag, value in pairwise(extra):
        if flag in ("-c", "--ctx-size") and value.isdigit():
            ctx = int(value)
    return ctx
