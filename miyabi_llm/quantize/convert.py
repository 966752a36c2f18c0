"""From safetensors to a GGUF at full precision, which gets a name only when every gate says it is the same model."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from miyabi_llm import catalog, gguf, hardware
from miyabi_llm.client import Client, llama
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, Corrupt, DiskFull, GateFailed, ModelMissing
from miyabi_llm.quantize import gates, quarantine
from miyabi_llm.quantize.card import said
from miyabi_llm.quantize.gates import Answer
from miyabi_llm.quantize.original import Folder, lay_out
from miyabi_llm.quantize.work import Work, working
from miyabi_llm.refs import SCHEMES, Digest, ModelRef
from miyabi_llm.store import Store
from miyabi_llm.store.adopt import hash_file
from miyabi_llm.tools.converting import Converter, Look
from miyabi_llm.tools.program import Program
from miyabi_llm.types import Adapter, Artifact, Endpoint, Event, Finding, OnEvent, StoredFile, plain, silent

BYTES = 2  # of a parameter in F16 and BF16
SLACK = 256 << 20  # bytes of disk kept free
F16_MAX = 65504.0

Start = Callable[[Path, tuple[Adapter, ...]], AbstractContextManager[Endpoint]]


@dataclass(frozen=True, slots=True)
class Kit:
    """With what is converted. `converter` brings its environment when it is first asked; `start` starts a real server
    with a file and adapters; `programs` brings those of llama.cpp by name."""

    store: Store
    settings: Settings
    converter: Callable[[OnEvent], Converter]
    start: Start
    programs: Callable[[tuple[str, ...]], Mapping[str, Program]]
    on_event: OnEvent = silent


def to_gguf(folder: Folder, kit: Kit) -> Artifact:
    """The safetensors as a published GGUF in F16, or BF16 where F16 is too narrow; at once when it is there already.

    Raises BadUsage for what llama.cpp cannot convert or a name that is taken, Corrupt (NaN, changed meanwhile),
    DiskFull, GateFailed: the file lies in the store's quarantine then, with a report beside it.
    """
    ref = full_name(folder.ref)
    state, before = folder.state(), folder.digests()
    if (here := taken(ref, before, kit)) is not None:
        kit.on_event(Event("phase", "convert", f"{ref} is here already"))
        return here
    with working(kit.store, kit.settings.cache) as work:
        target, facts = written(folder, ref, kit, work)
        if folder.state() != state:
            raise Corrupt(f"{said(folder.ref)} changed while it was converted", hint="Nothing was published.")
        made = {"from": said(folder.ref), "sha256": dict(before), **facts}
        return publish(work, target, Artifact(
            ref, "gguf", (), "local", f"converted from {said(folder.ref)}", _now(),
            folder.artifact.license if folder.artifact else None, _lineage(folder, before, made),
        ), kit)  # fmt: skip


def written(folder: Folder, ref: ModelRef, kit: Kit, work: Work) -> tuple[Path, dict[str, Any]]:
    """A GGUF of the folder that passed every gate, not yet published as `ref`, and what the card says of it.

    Raises as `to_gguf`.
    """
    check_disk(folder.parameters * BYTES + SLACK, kit.store)
    converter = kit.converter(kit.on_event)
    if not converter.knows(kind := folder.promise.architecture):
        raise BadUsage(f"llama.cpp cannot convert {kind or 'it'}", hint="Pull a GGUF of this model instead.")
    started, state = time.monotonic(), folder.state()
    kit.on_event(Event("phase", "original", f"reading every weight of {said(folder.ref)}"))
    (work.folder / "layout").mkdir()
    place, mended = lay_out(folder, work.folder / "layout" / word(ref.name))
    target = work.target()
    look, outtype = _converted(folder, place, target, converter, work, kit)
    findings = inspect(target, folder, look, kit)
    if folder.state() != state:
        raise Corrupt(f"{said(folder.ref)} changed while it was converted", hint="Nothing was published.")
    pass_or_quarantine(target, ref, findings, kit)
    return target, {
        "tool": "llama.cpp convert_hf_to_gguf.py",
        "commit": converter.commit,
        "tools": dict(look.versions),
        "largest": look.largest,
        "gates": [{"name": f.name, "level": f.level, "message": f.message} for f in findings],
        "seconds": round(time.monotonic() - started, 1),
        "outtype": outtype,
        "notes": [mended] if mended else [],
    }


def _converted(
    folder: Folder, place: Path, target: Path, converter: Converter, work: Work, kit: Kit
) -> tuple[Look, str]:
    """Write the GGUF to `target` while every weight is looked at; F16 first, for hardly a model needs more room.

    What the look says, and the type that was taken. Raises Corrupt for numbers that are none.
    """
    with converter.looking(place, gates.probes(folder.promise), work.folder, kit.on_event) as looked:
        kit.on_event(Event("phase", "convert", "to F16"))
        converter.model(place, target, "f16", work.folder, kit.on_event)
        look = looked()
    if look.bad:
        raise Corrupt(f"{look.bad[0]} of {said(folder.ref)} holds numbers that are not finite", hint="Pull it again.")
    if look.largest <= F16_MAX:
        return look, "f16"
    kit.on_event(Event("phase", "convert", f"again, to BF16: a weight is {look.largest:g}"))
    target.unlink()
    converter.model(place, target, "bf16", work.folder, kit.on_event)
    return look, "bf16"


def inspect(target: Path, folder: Folder, look: Look, kit: Kit) -> tuple[Finding, ...]:
    """Every gate on a converted file, the cheap ones first; the server is asked only when those pass."""
    with target.open("rb") as f:
        header = gguf.read(f, target.stat().st_size, whole_arrays=True)
    found = (*gates.metadata(header, folder.promise), *gates.tensors(header, folder))
    if gates.failed(found):
        return found
    kit.on_event(Event("phase", "gates", f"{len(look.probes)} texts against the original's tokenizer"))
    with kit.start(target, ()) as endpoint, Client(endpoint) as client:
        answers = {one["name"]: _answer(client, one) for one in look.probes if not one.get("left")}
    return (*found, *gates.tokens(look.probes, answers, header))


def _answer(client: Client, one: Mapping[str, Any]) -> Answer:
    """What the server makes of a probe, on the way that a chat takes: rendered without, tokenized with its start."""
    text, special, prompt = str(one["rendered"]), bool(one["special"]), None
    if "messages" in one:
        prompt = text = llama.render(client, one["messages"], one.get("tools"))
        special = True
    other = gates.composed(text)
    nfc = llama.tokenize(client, other, special=special) if other is not None else None
    return Answer(prompt, llama.tokenize(client, text, special=special), nfc)


def pass_or_quarantine(target: Path, ref: ModelRef, findings: Sequence[Finding], kit: Kit) -> None:
    """Nothing when all gates passed; else the file goes to quarantine with a report. Raises GateFailed."""
    for f in findings:
        if f.level == "warn":
            kit.on_event(Event("warning", f.name, f.message))
    wrong = gates.failed(findings)
    if not wrong:
        return
    body = {"model": str(ref), "gates": plain(list(findings))}
    place, report = quarantine.keep(kit.store, target, body)
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    raise GateFailed(
        f"{ref} is not the original model: {wrong[0].name}: {wrong[0].message}{more}",
        hint=f"Nothing was published. The file and a report lie in {report}.",
        gates=plain(list(wrong)), quarantine=str(place),
    )  # fmt: skip


def publish(work: Work, target: Path, artifact: Artifact, kit: Kit) -> Artifact:
    """Give a finished file its place and its name."""
    sha256, size = hash_file(target), target.stat().st_size
    file = StoredFile(f"{word(str(artifact.ref).replace(':', '-'))}.gguf", Digest(sha256), size)
    made = Artifact(
        artifact.ref, "gguf", (file,), "local", artifact.source, artifact.pulled_at, artifact.license, artifact.card
    )
    kit.store.publish_blob(target, sha256)
    kit.store.publish(made)
    kit.on_event(Event("done", "convert", str(made.ref)))
    return made


def full_name(ref: ModelRef, adapter: str = "") -> ModelRef:
    """NAME:TAG-gguf, or NAME:gguf for a source without a tag; the word safetensors is left out. Pure."""
    last = ref.name.rstrip("/").rsplit("/", 1)[-1]
    tag = (ref.revision or "") if ref.scheme in ("catalog", "ollama") else ""
    tag = re.sub(r"-?(safetensors|latest|gguf)$", "", tag)
    parts = [p for p in (tag, adapter, "gguf") if p]
    return ModelRef.parse(f"{word(last)}:{word('-'.join(parts))}".lower())


def word(text: str) -> str:
    """A part of a name out of any text. Pure."""
    plain = re.sub(r"\.\.+", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", text)).strip("._-")[:100] or "model"
    return f"{plain}-model" if plain.lower() in SCHEMES else plain  # hf:x would be a name at the hub


def check_disk(need: int, store: Store) -> None:
    """Raise DiskFull, with the bytes, before anything is written."""
    free = hardware.disk_free(store.root)
    if free is not None and free < need:
        raise DiskFull(
            f"{store.root}: {need >> 20:,} MiB are needed, {free >> 20:,} are free",
            hint="Free some space; `miyabi-llm prune` helps.", needed=need, free=free,
        )  # fmt: skip


def taken(ref: ModelRef, sha256: Mapping[str, Digest], kit: Kit) -> Artifact | None:
    """The same file, when it is there already. Raises BadUsage when `ref` is another model's name."""
    try:
        catalog.load(kit.settings).find(ref)
        raise BadUsage(f"{ref} is a model of the catalog", hint="Rename the folder.")
    except ModelMissing:
        pass
    try:
        here = kit.store.find(ref)
    except ModelMissing:
        return None
    made = here.card.get("converted")
    if not isinstance(made, Mapping):
        raise BadUsage(f"{ref} is another model of the store", hint=f"`miyabi-llm rm {ref}`, or rename the folder.")
    return here if made.get("sha256") == dict(sha256) else None


def _lineage(folder: Folder, sha256: Mapping[str, Digest], made: Mapping[str, Any]) -> dict[str, Any]:
    before = folder.artifact.card.get("lineage") if folder.artifact else None
    step = {"step": "convert", "from": said(folder.ref), "sha256": sorted(sha256.values())}
    return {"converted": dict(made), "lineage": [*(before if isinstance(before, list) else []), step]}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
