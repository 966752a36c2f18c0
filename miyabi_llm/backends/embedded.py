"""The embedded backend: llama-cpp-python in a child of ours, for when no server program is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from miyabi_llm.backends.base import Capabilities, Detected, InstallOptions, Unsupported, Way, client_url
from miyabi_llm.backends.llama_cpp import DEFAULT_CTX, check_kv, model_files
from miyabi_llm.config import Settings
from miyabi_llm.errors import BackendMissing, BadUsage
from miyabi_llm.tools.program import Program
from miyabi_llm.types import Endpoint, Format, LaunchPlan, OnEvent, ServeSpec

if TYPE_CHECKING:
    from miyabi_llm.backends.base import Control

KEY_VARIABLE = "MIYABI_EMBEDDED_KEY"
INSTALL_HINT = "Run `miyabi-llm backend install embedded`."
ELSEWHERE = "llama-server can: `miyabi-llm serve REF --backend llama-cpp`."

CAPABILITIES = Capabilities(
    dialects=("openai",),
    start=True,
    key=True,
    context=True,
    kv_type=True,
    verified="real",
    limits=(
        "GGUF files only, one model",
        "one request at a time: others wait, the seventeenth is turned away with 503",
        "text only: no images, tools, logprobs or embeddings; they are refused, not passed over",
        "layers go to a GPU all or none: they are not fitted to its memory",
        "no metrics",
    ),
)


@dataclass(frozen=True, slots=True)
class Embedded:
    """llama.cpp as a library, behind a small server of ours in a process of its own."""

    name: str = "embedded"
    accepts: frozenset[Format] = frozenset({"gguf"})
    capabilities: Capabilities = CAPABILITIES

    def detect(self, settings: Settings) -> Detected:
        """The interpreter the user names, our own installation, or the interpreter we run in."""
        from miyabi_llm.tools import embedded

        found = embedded.search(settings)
        if found.program is not None:
            return Detected(self.name, True, program=found.program, version=found.program.version)
        reason = "; ".join(f"{r.path} {r.reason}" for r in found.rejected) or "is not installed"
        return Detected(self.name, False, reason, rejected=found.rejected)

    def plan(self, spec: ServeSpec, found: Detected) -> LaunchPlan:
        """The child's command line for `spec`. The key goes by the environment; `extra` comes last, so it wins.

        Raises BackendMissing without an interpreter, Unsupported for what only a real server does, BadUsage when
        `spec` holds no GGUF file, or `extra` an option that says which model is served where to whom.
        """
        if found.program is None:
            raise BackendMissing("llama-cpp-python is not installed", hint=INSTALL_HINT)
        _refuse(spec)
        check_kv(spec.kv_type)
        ctx = DEFAULT_CTX if spec.ctx is None else spec.ctx
        return LaunchPlan(
            backend=self.name,
            argv=(*found.program.argv, *_arguments(spec, ctx), *spec.extra),
            env={KEY_VARIABLE: spec.key} if spec.key else {},
            endpoint=Endpoint(client_url(spec.host, spec.port), spec.alias, ("openai",), spec.key, backend=self.name),
            ctx=ctx,
        )

    def ways(self, system: str) -> tuple[Way, ...]:
        """An environment of our own; servers are not started on Windows."""
        if system == "Windows":
            return (Way("by hand", note="use WSL, then as on Linux"),)
        note = "pinned by hash; llama.cpp itself is the one of `backend install llama-cpp`, compiled once"
        return (Way("environment", ("miyabi-llm", "backend", "install", "embedded"), note),)

    def install(self, settings: Settings, on_event: OnEvent, options: InstallOptions) -> Program:
        """llama-cpp-python in an environment of its own."""
        from miyabi_llm.tools import embedded

        return embedded.install(settings, on_event, source=options.source)

    def control(self, endpoint: Endpoint) -> Control:
        """Its version and its one model."""
        from miyabi_llm.backends.embedded_control import EmbeddedControl

        return EmbeddedControl(endpoint)


def _arguments(spec: ServeSpec, ctx: int) -> Iterator[str]:
    model, projector = model_files(spec.files)
    if projector is not None:
        raise Unsupported("embedded reads no images: this model has a projector for them", hint=ELSEWHERE)
    yield from ("--model", str(model), "--alias", spec.alias)
    yield from ("--host", spec.host, "--port", str(spec.port), "--ctx-size", str(ctx))
    if spec.threads is not None:
        yield from ("--threads", str(spec.threads))
    if spec.kv_type is not None:
        yield from ("--cache-type", spec.kv_type)
    if spec.gpus:
        yield from ("--gpu-layers", "-1")


def _refuse(spec: ServeSpec) -> None:
    """What is asked for and cannot be had; and options after -- that are ours."""
    asked = {
        "LoRA adapters": bool(spec.adapters),
        "several requests at once (--parallel)": (spec.parallel or 1) > 1,
        "several machines": spec.nodes > 1,
        "unloading when idle": bool(spec.keep_s),
    }
    for what, wanted in asked.items():
        if wanted:
            raise Unsupported(f"embedded has no {what}", hint=ELSEWHERE)
    for word in spec.extra:
        if word.partition("=")[0] in ("--host", "--port", "--model", "--alias"):
            raise BadUsage(f"{word} cannot be given after --", hint="`miyabi-llm serve --help` names its own options.")
