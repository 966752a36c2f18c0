"""Several models behind one address: from names or a file to a plan, and the process that such a plan starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from miyabi_llm.errors import BadUsage, MachineLimit, MiyabiError

if TYPE_CHECKING:
    from miyabi_llm.cli.plans import Wanted
    from miyabi_llm.config import Settings
    from miyabi_llm.hardware import Hardware
    from miyabi_llm.serve.many.config import Config, Entry
    from miyabi_llm.serve.many.values import ModelOrder, ModelRow
    from miyabi_llm.store import Store
    from miyabi_llm.types import Artifact, LaunchPlan, Secret

KEY_VARIABLE = "MIYABI_SERVER_KEY"
LOCATE = ("MIYABI_", "OLLAMA_", "VLLM_", "LOCALAI_")  # variables by which settings and backends find what is theirs
GIB = 1 << 30
UNKNOWN = GIB  # what a model that is no GGUF file is taken to need beside its files


@dataclass(frozen=True, slots=True)
class Many:
    """What a person wants behind one address: the file's content or the names, and what goes for all of them."""

    config: Config
    wanted: Wanted
    memory: int | None = None
    name: str = "many"


def from_names(refs: list[str]) -> Config:
    """The list as it would stand in a file."""
    from miyabi_llm.serve.many.config import Config, Entry

    return Config(tuple(Entry(ref) for ref in refs))


def plan(many: Many, store: Store, settings: Settings) -> LaunchPlan:
    """The plan of the front; its notes say what each model is taken to need. Nothing is started.

    Raises ModelMissing, BackendMissing, BadUsage, PortTaken, and MachineLimit when the pinned models do not fit.
    """
    from miyabi_llm import hardware, serve
    from miyabi_llm.backends.base import client_url
    from miyabi_llm.proc import ports
    from miyabi_llm.serve.many.values import BACKEND, Order
    from miyabi_llm.types import Endpoint, LaunchPlan

    config, wanted = many.config, many.wanted
    host = config.host if config.host and wanted.host == "127.0.0.1" else wanted.host
    serve.check_exposure(host, wanted.key)
    machine = hardware.look(settings.env)
    models = tuple(_order(entry, many, store, settings, machine) for entry in config.models)
    _refuse_twins(models)
    budget = many.memory or config.memory or room(machine)
    _refuse_too_much(models, budget)
    port = wanted.port or config.port
    if port is None:
        port = ports.free(host, promised=serve.promised(settings))
    else:
        ports.refuse_busy(host, port)
    work = settings.run / "work" / f"{BACKEND}-{many.name}"
    order = Order(models, budget, host, port, work, config.hosts, config.origins)
    default = next((m for m in models if m.pin), models[0])
    file = work / "order.json"
    env = {k: v for k, v in settings.env.items() if k.startswith(LOCATE) and k != KEY_VARIABLE}
    env |= {"MIYABI_HOME": str(settings.home), "MIYABI_CACHE": str(settings.cache)}
    env |= {"MIYABI_CONFIG": str(settings.config)}
    return LaunchPlan(
        BACKEND,
        (sys.executable, "-P", "-m", "miyabi_llm.cli.many", str(file)),
        env | ({KEY_VARIABLE: wanted.key} if wanted.key else {}),
        Endpoint(client_url(host, port), default.alias, ("openai", "anthropic"), wanted.key),
        ctx=default.ctx,
        notes=tuple(_notes(models, budget)),
        files={file: order.to_json()},
    )


def _order(entry: Entry, many: Many, store: Store, settings: Settings, machine: Hardware) -> ModelOrder:
    """One model, resolved and estimated."""
    from miyabi_llm.cli import plans, stored
    from miyabi_llm.serve.many.values import ModelOrder

    given = many.wanted
    artifact = stored.find(entry.ref, store, settings)
    wanted = plans.Wanted(
        backend=entry.backend or given.backend,
        ctx=entry.ctx or given.ctx,
        threads=entry.threads or given.threads,
        key=serve_key(),
        extra=(*entry.extra, *given.extra),
        kv_type=entry.kv or given.kv_type,
    )
    with store.lease(artifact):
        made = plans.make(artifact, store, settings, wanted)
        memory = made.memory.total if made.memory else _needs(made, artifact, store, settings, machine)
    ttl = next((t for t in (entry.ttl, many.config.ttl, given.keep_s) if t is not None), None)
    return ModelOrder(
        ref=str(artifact.ref),
        alias=entry.alias or plans.alias(artifact),
        memory=memory,
        backend=made.backend,
        ctx=made.ctx,
        kv=wanted.kv_type,
        threads=wanted.threads,
        extra=wanted.extra,
        pin=entry.pin,
        ttl=ttl or None,
        process=entry.process,
        measured=not machine.gpus,
    )


def _needs(made: LaunchPlan, artifact: Artifact, store: Store, settings: Settings, machine: Hardware) -> int:
    """Bytes a model takes whose plan does not say: by its header, or by the size of its files where it has none."""
    from miyabi_llm import fit

    try:
        how = fit.how_here(settings, made.backend)
        return fit.judge(fit.read_header(store.files(artifact)), machine, made.ctx, how).total
    except MiyabiError:
        return artifact.size + UNKNOWN


def serve_key() -> Secret:
    """A key for a plan that is only looked at: some backends plan otherwise without one."""
    from miyabi_llm import serve

    return serve.new_key()


def room(machine: Hardware) -> int:
    """Bytes that models may take when nobody says: of the card with most free memory, else of the machine. Pure."""
    from miyabi_llm.fit.layers import GPU_MARGIN
    from miyabi_llm.memory import MARGIN

    cards = [g.memory_free - GPU_MARGIN for g in machine.gpus if g.kind != "metal" and g.memory_free]
    return max(0, *cards) if cards else max(0, machine.ram_available - MARGIN)


def _refuse_twins(models: tuple[ModelOrder, ...]) -> None:
    names = [m.alias for m in models]
    if twice := {n for n in names if names.count(n) > 1}:
        raise BadUsage(f"two models are called {', '.join(sorted(twice))}", hint="Give one an `alias` in models.yaml.")


def _refuse_too_much(models: tuple[ModelOrder, ...], budget: int) -> None:
    if budget < 1:
        raise MachineLimit("how much memory there is cannot be seen here", hint="Say it with --memory.")
    pinned = sum(m.memory for m in models if m.pin)
    if pinned > budget:
        raise MachineLimit(
            f"the pinned models need {pinned >> 20} MiB of {budget >> 20} MiB", hint="Unpin one, or --ctx less."
        )


def _notes(models: tuple[ModelOrder, ...], budget: int) -> list[str]:
    from miyabi_llm.cli.show import human

    needs = ", ".join(f"{m.alias} {human(m.memory)}{' pinned' if m.pin else ''}" for m in models)
    notes = [f"{human(budget)} for all models; they need {needs}"]
    if sum(m.memory for m in models) > budget:
        notes.append("not all fit at once: the one used longest ago is unloaded when another is asked for")
    notes += [f"{m.alias} alone needs more than that" for m in models if m.memory > budget]
    return notes


def rows(found: tuple[ModelRow, ...]) -> list[tuple[str, ...]]:
    """The models of one server as lines of `ps`."""
    from miyabi_llm.cli.show import human

    return [
        (
            f"  {r.id}",
            r.state + (f" ({r.busy} busy)" if r.busy else ""),
            human(r.memory) if r.memory else "",
            human(r.estimate),
            str(r.ctx or ""),
            r.last_used or "never",
            ", ".join(("pinned",) * r.pinned + ((f"ttl {r.ttl:g} s",) if r.ttl else ())),
        )
        for r in found
    ]


HEADER = ("  MODEL", "STATE", "MEMORY", "ESTIMATE", "CTX", "LAST USED", "")


def main(argv: list[str]) -> int:
    """The process that a plan of ours starts: `python -m miyabi_llm.cli.many ORDER.json`."""
    import asyncio

    from miyabi_llm import backends, config
    from miyabi_llm.cli import plans
    from miyabi_llm.serve import new_key
    from miyabi_llm.serve.many.run import Work, front
    from miyabi_llm.serve.many.values import Order
    from miyabi_llm.store import Store
    from miyabi_llm.types import Secret

    key = os.environ.pop(KEY_VARIABLE, "")
    settings = config.load()
    order = Order.from_json(Path(argv[0]).read_text(encoding="utf-8"))
    store = Store(settings.store)
    models = {m.alias: m for m in order.models}
    with ExitStack() as stack:
        try:
            artifacts = _leased(models, store, stack)
        except MiyabiError as e:
            _say(f"cannot start: {e.message}")
            return e.exit_code

        def make(alias: str) -> LaunchPlan:
            m = models[alias]
            wanted = plans.Wanted(
                m.backend, ctx=m.ctx, threads=m.threads, key=new_key(), extra=m.extra, kv_type=m.kv, alias=m.alias
            )
            if not m.measured and backends.get(m.backend or "").capabilities.sleep:
                wanted = replace(wanted, keep_s=1.0)  # when it sleeps is ours to say; that it can must be asked for
            made = plans.make(artifacts[alias], store, settings, wanted)
            return replace(made, smaller=None)  # its memory is planned: nobody else decides on another context

        return asyncio.run(front(Work(order, Secret(key) if key else None, make, settings.env, _say)))


def _leased(models: Mapping[str, ModelOrder], store: Store, stack: ExitStack) -> dict[str, Artifact]:
    from miyabi_llm.refs import ModelRef

    found = {alias: store.find(ModelRef.parse(m.ref)) for alias, m in models.items()}
    for artifact in {id(a): a for a in found.values()}.values():
        stack.enter_context(store.lease(artifact))
    return found


def _say(text: str) -> None:
    print(f"[miyabi-llm] {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
