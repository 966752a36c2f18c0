"""From a stored model to a launch plan: what every command that starts a server does first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from miyabi_llm.errors import MachineLimit, MiyabiError, ModelMissing
from miyabi_llm.types import Adapter, Secret, ServeSpec

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.fit import How
    from miyabi_llm.hardware import Hardware
    from miyabi_llm.store import Store
    from miyabi_llm.types import Artifact, LaunchPlan

LEAST_CTX = 1024  # tokens: a smaller context is not tried by itself when the memory runs out


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a person wants a model served; None where the machine decides."""

    backend: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    ctx: int | None = None
    threads: int | None = None
    key: Secret | None = None
    extra: tuple[str, ...] = ()
    kv_type: str | None = None
    adapters: tuple[Adapter, ...] = ()
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    nodes: int = 1
    keep_s: float | None = None
    alias: str | None = None


def make(artifact: Artifact, store: Store, settings: Settings, wanted: Wanted) -> LaunchPlan:
    """The plan for `artifact`; its notes say what was chosen and why. The caller holds a lease meanwhile.

    Raises BadUsage (a host others can reach, without a key), BackendMissing, MachineLimit, PortTaken.
    """
    from miyabi_llm import backends, fit, hardware, serve

    serve.check_exposure(wanted.host, wanted.key)
    choice = backends.choose(artifact, wanted.backend, settings, nodes=wanted.nodes)
    files = store.files(artifact)
    machine = hardware.look(settings.env)
    how = fit.how_here(settings, choice.backend.name, wanted.kv_type)
    ctx, notes = _context(files, machine, wanted.ctx, how)
    port = port_for(wanted, settings)
    spec = ServeSpec(
        artifact,
        files,
        wanted.alias or alias(artifact),
        wanted.host,
        port,
        ctx,
        wanted.threads or machine.usable_cores or None,
        key=wanted.key,
        extra=wanted.extra,
        kv_type=wanted.kv_type,
        adapters=wanted.adapters,
        gpus=len(machine.gpus),
        tensor_parallel=wanted.tensor_parallel,
        pipeline_parallel=wanted.pipeline_parallel,
        nodes=wanted.nodes,
        keep_s=wanted.keep_s,
        attach=wanted.port is None,
        work=settings.run / "work" / serve.name_for(wanted.alias or alias(artifact)),
    )
    plan = choice.backend.plan(spec, choice.detected)
    if wanted.ctx is None and ctx is not None and ctx >= 2 * LEAST_CTX and plan.ctx == ctx and plan.argv is not None:
        smaller = choice.backend.plan(replace(spec, ctx=ctx // 2), choice.detected)
        plan = replace(plan, smaller=smaller)
    if wanted.extra and plan.ctx is not None and plan.ctx != ctx:  # the person's own words come last, and win
        _, notes = _context(files, machine, plan.ctx, how, given=True)
    if wanted.backend in (None, "auto"):
        notes = (f"backend {choice.backend.name}: {choice.reason}", *notes)
    return fit.expected(replace(plan, notes=(*plan.notes, *notes)), files, machine, settings)


def port_for(wanted: Wanted, settings: Settings) -> int:
    """The one asked for, or the first free one; of several machines the address may be another one's."""
    from miyabi_llm import serve
    from miyabi_llm.proc import ports

    if wanted.nodes > 1:
        return wanted.port or ports.FIRST
    if wanted.port is None:
        return ports.free(wanted.host, promised=serve.promised(settings))
    ports.refuse_busy(wanted.host, wanted.port)
    return wanted.port


def adapter(text: str) -> Adapter:
    """`NAME=PATH`, or a path that names it. Raises ModelMissing when nothing is there."""
    name, equals, place = text.partition("=")
    path = Path(place if equals else text).expanduser().absolute()
    if not path.exists():
        raise ModelMissing(f"--lora {text}: {path} is not there", hint="Give a GGUF adapter, or a folder of peft's.")
    return Adapter(name if equals else path.stem, path)


def alias(artifact: Artifact) -> str:
    """What clients call the model: its name, or its file's for a model without one."""
    ref = artifact.ref
    if ref.scheme in ("catalog", "hf", "ollama"):
        return str(ref).replace(",", "-")  # servers split aliases at commas
    return Path(artifact.files[0].name).stem.replace(",", "-") or "model"


def _context(
    files: Mapping[str, Path], machine: Hardware, asked: int | None, how: How, *, given: bool = False
) -> tuple[int | None, tuple[str, ...]]:
    """The context to serve with, in tokens, and what to say about it.

    Raises MachineLimit when what was asked for can never fit, unless it was `given` to the program itself.
    """
    from miyabi_llm import fit

    try:
        verdict = fit.judge(fit.read_header(files), machine, asked, how)
    except MiyabiError:
        return asked, ()  # no GGUF, or a header we cannot read: the backend decides, and says so if it cannot either
    limit, most = verdict.facts.context_length, verdict.largest_ctx
    if asked is not None:
        needed, room = verdict.needed, machine.ram_total + sum(g.memory_total or 0 for g in machine.gpus)
        if machine.ram_total and not given and needed.kv + needed.compute > room:  # weights can stay on the disk
            most_hint = f"Use --ctx {min(most, limit or most)} or less." if most else "`miyabi-llm fit` says what does."
            raise MachineLimit(f"a context of {asked} tokens needs more memory than this machine has", hint=most_hint)
        if verdict.fits is False:
            return asked, ("this context may not fit the memory; `miyabi-llm fit` says what does",)
        if limit and asked > limit:
            return asked, (f"the model was trained for {limit} tokens only",)
        return asked, ()
    if verdict.fits is False and most is None:
        return min(verdict.ctx, 2048), ("the model may not fit the memory; `miyabi-llm fit` says more",)
    if verdict.fits is False and most is not None and most < verdict.ctx:
        return most, (f"context {most} tokens: more does not fit the memory",)
    more = min(limit or verdict.ctx, most or verdict.ctx)
    hint = f"; up to {more} would fit (--ctx)" if more > verdict.ctx else ""
    return verdict.ctx, (f"context {verdict.ctx} tokens{hint}",)
