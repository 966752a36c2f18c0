"""From a source and an order to a published, measured model: nothing is published before it was measured."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from miyabi_llm import gguf, hardware
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, Corrupt, DiskFull, GateFailed, InvalidMeasurement, MachineLimit, MiyabiError
from miyabi_llm.gguf import Header
from miyabi_llm.quantize import card as cards
from miyabi_llm.quantize import choose, evaluation, imatrix, measure, passing, provenance, quality, quarantine, sizes
from miyabi_llm.quantize.evaluation import Evaluation
from miyabi_llm.quantize.imatrix import Matrix
from miyabi_llm.quantize.measure import Base, Meter
from miyabi_llm.quantize.source import Source
from miyabi_llm.quantize.values import Limits, Made, Measured, Order, Plan, Planned, Quality
from miyabi_llm.quantize.work import Work, working
from miyabi_llm.refs import Digest
from miyabi_llm.store import Store
from miyabi_llm.store.adopt import hash_file
from miyabi_llm.tools import llama_cpp
from miyabi_llm.tools.moment import Kitchen, moment
from miyabi_llm.tools.program import Program
from miyabi_llm.tools.quantizing import Tools
from miyabi_llm.types import Event, OnEvent, silent

PROMPT = 600  # tokens that the server reads before its memory is looked at
SLACK = 64 << 20  # bytes left on a disk beside what is planned


@dataclass(frozen=True, slots=True)
class Shop:
    """Where and with what a model is quantized. `flags`: what the server's build uses of the processor.

    `programs` may have a llama-server: without it no conversations are rendered and no memory is measured.
    """

    store: Store
    settings: Settings
    programs: Mapping[str, Program]
    flags: frozenset[str] = frozenset()
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class _File:
    """A quantized file on its way into the store."""

    planned: Planned
    path: Path
    sha256: Digest
    argv: tuple[str, ...]
    measured: Measured
    header: Header


def plan(source: Source, order: Order, shop: Shop, on_event: OnEvent = silent) -> Plan:
    """What each type would give, without any work on the weights. Raises BadUsage, MiyabiError."""
    with _at_work(source, shop) as (_, tools):
        return _plan(source, order, shop, _equip(source, order, shop, tools)[0], on_event)


def quantize(source: Source, order: Order, shop: Shop, on_event: OnEvent = silent) -> Made:
    """Quantize, measure, choose and publish.

    Raises BadUsage, InvalidMeasurement (a source that was quantized before), MachineLimit (nothing fits), DiskFull,
    GateFailed (nothing within the limits: the best file lies in quarantine then, with a report), Corrupt. Nothing is
    published then, and no other file stays behind.
    """
    ref = cards.name(source, order, shop.store, shop.settings) if order.name else None
    with _at_work(source, shop) as (work, tools):
        tools, matrix = _equip(source, order, shop, tools)
        plan = _plan(source, order, shop, tools, on_event)
        check(plan, order)
        before: Mapping[str, Digest] = {}
        if order.imatrix and matrix is None:  # it changes what some tensors become
            before = source.digests()
            tools, matrix = _equip(source, order, shop, tools, before, on_event)
            plan = _plan(source, order, shop, tools, on_event)
        for kind in plan.order:
            cards.name(source, replace(order, types=(kind,)), shop.store, shop.settings)
        _check_disk(plan, shop)
        on_event(Event("phase", "source", f"hashing {source.ref}"))
        before = before or source.digests()
        text = evaluation.prepare(source, order, _kitchen(shop, work), on_event)
        limits = quality.limits(order)
        meter = Meter(tools, order.window, shop.settings.cache, cards.against(plan), limits, on_event)
        base, text = _record(source, meter, text, _base_key(before, text, order, tools))
        pick, tried = _try_all(source, plan, meter, base, work)
        if pick.measured.passed is False:
            raise _failed(source, pick, tried, limits, shop.store)
        measured = choose.mark_front(tried)
        memory = _resident(pick, plan, shop, work, on_event)
        if source.digests() != before:
            raise Corrupt(f"{source.ref} changed while it was quantized", hint="Nothing was published. Try again.")
        evidence = cards.Evidence(
            plan, pick.measured, measured, before, text, pick.argv, tools.version, limits, memory, pick.header,
            matrix.provenance if matrix else None,
        )  # fmt: skip
        ref = ref or cards.name(source, replace(order, types=(pick.planned.type,)), shop.store, shop.settings)
        artifact = cards.artifact(source, order, ref, evidence)
        artifact = passing.place(artifact, pick.path, source, tools, work, keep_split=order.passing.keep_split)
        shop.store.publish(artifact)
        on_event(Event("done", "quantize", str(ref)))
        notes = (*choose.notes(measured, pick.planned.type), *cards.notes(pick.measured, pick.planned, text))
        return Made(
            artifact, pick.planned, pick.measured.quality, pick.measured.speed, measured, plan, artifact.card, notes,
            memory, limits,
        )  # fmt: skip


def divergences(
    source: Source, files: Mapping[str, Path], order: Order, shop: Shop, on_event: OnEvent = silent
) -> dict[str, Quality]:
    """How far finished files, by type, are from their source on the order's text; nothing is made or published.

    Raises BadUsage for a text that is too short, MiyabiError.
    """
    with _at_work(source, shop) as (work, tools):
        text = evaluation.prepare(source, order, _kitchen(shop, work), on_event)
        found = provenance.judge(source.header, source.parts)
        against = cards.FULL if found.kind == "full" else cards.ROUNDED
        meter = Meter(tools, order.window, shop.settings.cache, against, on_event=on_event)
        base, _ = _record(source, meter, text, _base_key(source.digests(), text, order, tools))
        told = {}
        for kind, path in files.items():
            on_event(Event("phase", "measure", kind))
            told[kind] = meter.measure(path, base, hash_file(path))
        return told


def check(plan: Plan, order: Order) -> None:
    """Raise InvalidMeasurement for a source that was quantized before, MachineLimit when nothing fits."""
    if plan.provenance.kind != "full" and not order.requantize:
        raise InvalidMeasurement(
            f"{plan.source} was quantized before: {plan.provenance.evidence}. A loss against it would look too small",
            hint="Take the model at full precision, or go on with --requantize: the loss is then named what it is.",
            evidence=plan.provenance.evidence,
        )
    if order.types and (lacking := [p.type for p in plan.types if p.needs_imatrix]):
        raise BadUsage(
            f"{', '.join(lacking)}: an importance matrix is needed",
            hint="`--imatrix auto` makes one; or take another type: Q3_K_S and IQ3_S need none.",
        )
    if not plan.order:
        least = min(plan.types, key=lambda p: p.needed)
        raise MachineLimit(
            f"no type fits {(plan.budget or 0) >> 20} MiB at {plan.ctx} tokens",
            hint=f"The smallest, {least.type}, needs {-(-least.needed >> 20)} MiB; a smaller --ctx needs less.",
        )


@contextmanager
def _at_work(source: Source, shop: Shop) -> Iterator[tuple[Work, Tools]]:
    with ExitStack() as held:
        if source.artifact is not None:
            held.enter_context(shop.store.lease(source.artifact))
        work = held.enter_context(working(shop.store, shop.settings.cache))
        yield work, Tools(shop.programs, shop.settings.env, work.folder, shop.threads)


def _equip(
    source: Source, order: Order, shop: Shop, tools: Tools,
    digests: Mapping[str, Digest] | None = None, on_event: OnEvent = silent,
) -> tuple[Tools, Matrix | None]:  # fmt: skip
    """The tools with the words that go to llama-quantize as they are; a matrix is made only with the `digests`."""
    words = order.passing.words()
    if order.passing.keep_split and len(source.parts) < 2:
        raise BadUsage(f"{source.ref} is one file: there is no split to keep", hint="Leave out --keep-split.")
    if order.imatrix is None:
        return replace(tools, extra=words), None
    if digests is None:
        matrix = imatrix.given(order.imatrix, tools.folder)
    else:
        wish = imatrix.Wish(order.imatrix, order.text, shop.settings.cache)
        matrix = imatrix.bring(wish, source.first, digests, tools, on_event)
    return replace(tools, extra=(*words, *(matrix.words if matrix else ()))), matrix


def _plan(source: Source, order: Order, shop: Shop, tools: Tools, on_event: OnEvent) -> Plan:
    on_event(Event("phase", "plan", str(source.ref)))
    kinds = sizes.wanted(order.types, tools.types(), budget=order.budget is not None)
    found = []
    for i, kind in enumerate(kinds):
        on_event(Event("progress", "plan", done=i, total=len(kinds), unit="types"))
        dry = tools.dry_run(source.first, kind)
        if order.imatrix:
            dry = replace(dry, needs_imatrix=False)
        found.append(sizes.planned(source.header, dry, kind, order.ctx, shop.flags, order.budget))
    types = choose.mark_dominated(found)
    todo = choose.order(types, named=bool(order.types))
    text_bytes = order.text.stat().st_size if order.text and order.text.is_file() else order.window.ctx * 1000
    chunks = sizes.chunks_at_most(text_bytes, order.window)
    largest = sorted((p.size for p in types if p.type in todo), reverse=True)
    disk = {
        "models": sum(largest[:2]),  # the best so far, and the one under way
        "base": sizes.logits_bytes(order.window, source.header.vocab_size or 0, chunks),
    }
    if evaluation.is_chat(order):
        disk["copy"] = source.first.stat().st_size  # see respell
    judged = provenance.judge(source.header, source.parts)
    return Plan(str(source.ref), source.size, judged, order.ctx, order.budget, types, todo, disk)


def _check_disk(plan: Plan, shop: Shop) -> None:
    """Raise DiskFull, with the bytes, before anything is written. One disk may have to hold both."""
    store, cache = shop.store.root, shop.settings.cache
    same = store.stat().st_dev == cache.stat().st_dev
    work = plan.disk["base"] + plan.disk.get("copy", 0)
    for place, need in ((store, plan.disk["models"] + (work if same else 0)), (cache, work)):
        free = hardware.disk_free(place)
        if free is not None and free < need + SLACK:
            raise DiskFull(
                f"{place}: {(need + SLACK) >> 20:,} MiB are needed, {free >> 20:,} are free",
                hint="Free some space (`miyabi-llm prune` helps), or name fewer types.",
                needed=need + SLACK, free=free,
            )  # fmt: skip


def _kitchen(shop: Shop, work: Work) -> Kitchen:
    """With what the server of a moment runs. Raises BackendMissing without a llama-server."""
    server = shop.programs.get(llama_cpp.SERVER) or llama_cpp.find(llama_cpp.SERVER, shop.settings)
    return Kitchen(server, shop.settings.env, work.folder, shop.threads)


def _record(source: Source, meter: Meter, text: Evaluation, name: str) -> tuple[Base, Evaluation]:
    """What the source predicts on the text, from the cache or recorded now."""
    model, spelled = source.first, text.path
    if not meter.has(name):
        model, spelled = evaluation.for_recording(source, text, meter.tools.folder, meter.on_event)
    base = meter.record(model, spelled, name)
    return base, evaluation.compared(text, base.logits)


def _resident(pick: _File, plan: Plan, shop: Shop, work: Work, on_event: OnEvent) -> int | None:
    """Bytes that a server of the file has in memory at the planned context; None where that cannot be seen."""
    on_event(Event("phase", "memory", f"{pick.planned.type}: a server with {plan.ctx} tokens"))
    try:
        with moment(pick.path, _kitchen(shop, work), plan.ctx) as server:
            ids = [1 + i % 200 for i in range(min(PROMPT, plan.ctx // 2))]
            return server.memory(ids) or None
    except MiyabiError as e:  # a model is no worse for that, and the card says that it was not measured
        on_event(Event("warning", "memory", f"not measured: {e.message}"))
        return None


def _base_key(source: Mapping[str, Digest], text: Evaluation, order: Order, tools: Tools) -> str:
    return measure.key(
        {
            "source": sorted(source.values()),
            "text": [text.sha256, "chat" if text.chat else "plain"],
            "window": [order.window.ctx, order.window.chunks, order.window.batch],
            "program": list(tools.version),
            "machine": hardware.machine_key(),
        }
    )


def _try_all(source: Source, plan: Plan, meter: Meter, base: Base, work: Work) -> tuple[_File, list[Measured]]:
    """Make and measure the planned types in order. The pick is the first that passes; without any, the one that fails
    by the least. The other files are removed."""
    pick: _File | None = None
    measured: list[Measured] = []
    for kind in plan.order:
        made = _make(source, next(p for p in plan.types if p.type == kind), meter, base, work)
        measured.append(made.measured)
        kept, other = (made, pick) if pick is None or _better(made.measured, pick.measured) else (pick, made)
        if other is not None:
            other.path.unlink(missing_ok=True)
        pick = kept
        if pick.measured.passed is not False and plan.budget is not None:
            break
    assert pick is not None  # `check` has seen to an order that is not empty
    return pick, measured


def _better(new: Measured, old: Measured) -> bool:
    """Whether `new` takes the place of `old`, which came first. Pure."""
    if old.passed is not False:
        return False
    return new.passed is not False or new.quality.high < old.quality.high


def _make(source: Source, planned: Planned, meter: Meter, base: Base, work: Work) -> _File:
    """Quantize to one type, check the header, hash, measure. Raises Corrupt, MiyabiError."""
    kind, target, start = planned.type, work.target(), time.monotonic()
    meter.on_event(Event("phase", "quantize", kind))
    rounded = meter.against != cards.FULL
    argv = meter.tools.quantize(source.first, target, kind, requantize=rounded, on_event=meter.on_event)
    seconds = time.monotonic() - start
    header = verify_header(source, planned, target)
    sha256 = hash_file(target)
    meter.on_event(Event("phase", "measure", kind))
    loss = meter.measure(target, base, sha256)
    passed, why = quality.passes(loss, meter.limits), quality.failures(loss, meter.limits)
    speed = None
    if passed is not False:
        meter.on_event(Event("phase", "speed", kind))
        speed = meter.tools.bench(target)
    size = target.stat().st_size
    measured = Measured(kind, sha256, size, round(seconds, 2), loss, passed, speed=speed, why=why)
    return _File(planned, target, sha256, argv, measured, header)


def verify_header(source: Source, planned: Planned, target: Path) -> Header:
    """The file's header. Raises Corrupt unless it has the source's keys and exactly the planned tensors."""
    with target.open("rb") as f:
        made = gguf.read(f, target.stat().st_size)
    if made.histogram != planned.tensors:
        raise Corrupt(f"{planned.type}: the file's tensors are not those of the plan")
    if {t.name: t.shape for t in made.tensors} != {t.name: t.shape for t in source.header.tensors}:
        raise Corrupt(f"{planned.type}: the file's tensors are not the source's")
    own = ("general.file_type", "general.quantization_version", "split.", "quantize.")
    lost = sorted(k for k, v in source.header.kv.items() if not k.startswith(own) and made.kv.get(k) != v)
    if lost:
        raise Corrupt(f"{planned.type}: keys were lost or changed: {', '.join(lost[:5])}")
    return made


def _failed(source: Source, best: _File, measured: list[Measured], limits: Limits, store: Store) -> GateFailed:
    """The error of a gate that nothing passed; the file that failed by the least goes to quarantine with a report."""
    kind, rows = best.planned.type, [
        {"type": m.type, "size": m.size, "kld": m.quality.kld, "high": m.quality.high, "why": list(m.why)}
        for m in measured
    ]  # fmt: skip
    report = {
        "model": cards.said(source.ref), "type": kind, "sha256": best.sha256, "limits": asdict(limits),
        "why": list(best.measured.why), "measured": rows,
    }  # fmt: skip
    place, beside = quarantine.keep(store, best.path, report)
    more = [f"{m.type} {m.quality.kld:.4f}, up to {m.quality.high:.4f}" for m in measured if m.type != kind]
    tried = f"No better: {'; '.join(more)}. " if more else ""
    return GateFailed(
        f"{kind}: {'; '.join(best.measured.why)}",
        hint=f"{tried}Nothing was published. Take a larger type or budget, or a larger --max-kld. "
        f"The file and a report lie in {beside}.",
        measured=rows, quarantine=str(place), report=str(beside),
    )  # fmt: skip
