"""A LoRA adapter merged into its base by llama.cpp or by peft, and seen to change what the server says as it should."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from miyabi_llm import gguf, hardware
from miyabi_llm.client import Client, llama
from miyabi_llm.errors import BadUsage, GateFailed, MiyabiError
from miyabi_llm.quantize import adapters, convert
from miyabi_llm.quantize.card import said
from miyabi_llm.quantize.convert import Kit
from miyabi_llm.quantize.original import Folder, lay_out, open_folder
from miyabi_llm.quantize.source import Source, open_source
from miyabi_llm.quantize.trainer import Trainer
from miyabi_llm.quantize.work import Work, working
from miyabi_llm.refs import ModelRef
from miyabi_llm.store.adopt import hash_file
from miyabi_llm.tools import quantizing
from miyabi_llm.types import Adapter, Artifact, Event

SAME = 1e-5  # share of probability that moved, below which nothing did
NEAR = 0.01  # and what rounding the merged weights to 16 bits may move
ROOM = 5  # bytes of memory for each parameter that peft's side takes, in 32 bits
PROMPTS = (
    *("The capital of Japan is", "def add(a, b):\n    return", "Q: What is 2 + 2?\nA:", "日本の首都は"),
    *("Once upon a time", '{"name": "', "SELECT * FROM"),
)

Said = Sequence[tuple[Sequence[int], Mapping[int, float]]]  # for each prompt its ids, and log-probabilities by token


@dataclass(frozen=True, slots=True)
class _Merged:
    """A merged file on its way, and what the card says of it."""

    file: Path
    tool: str
    note: str
    gates: Mapping[str, Any]


def merged(base: Source, original: Folder | None, lora: Path, kit: Kit) -> Source:
    """`base` with the adapter at `lora` (peft's folder, or a GGUF) merged in, published, as a source to quantize.

    Raises BadUsage, Corrupt, GateFailed when the adapter changes nothing or the merged file is not base and adapter.
    """
    files = adapters.files(lora)
    if len(base.files) > 1:
        raise BadUsage(
            "an adapter is merged into a model in one file only", hint="`llama-gguf-split --merge` joins it."
        )
    if lora.is_dir() and original is None:
        raise BadUsage(
            f"{base.ref} is no safetensors model: the adapter's layers cannot be mapped",
            hint="Give the base in safetensors, or the adapter as GGUF.",
        )
    digests = {f"base/{n}": d for n, d in base.digests().items()}
    digests |= {f"adapter/{p.name}": hash_file(p) for p in files}
    ref = convert.full_name(base.ref, convert.word(lora.name.removesuffix(".gguf")))
    if convert.taken(ref, digests, kit) is None:
        with working(kit.store, kit.settings.cache) as work:
            convert.check_disk(base.size + convert.SLACK, kit.store)
            started = time.monotonic()
            if original is not None and lora.is_dir() and adapters.merge_first(*adapters.read(lora)):
                made = _by_peft(base, original, lora, ref, kit, work)
            else:
                made = _by_llama_cpp(base, original, lora, kit, work)
            earlier = base.artifact.card.get("lineage") if base.artifact else None
            card = {
                "converted": {
                    "from": said(base.ref),
                    "adapter": lora.name,
                    "sha256": digests,
                    "tool": made.tool,
                    "corrected": made.note,
                    "gates": dict(made.gates),
                    "seconds": round(time.monotonic() - started, 1),
                },
                "lineage": [
                    *(earlier if isinstance(earlier, list) else []),
                    {"step": "merge", "from": said(base.ref), "adapter": lora.name, "sha256": sorted(digests.values())},
                ],
            }
            now = datetime.now(UTC).isoformat(timespec="seconds")
            license_ = base.artifact.license if base.artifact else None
            artifact = Artifact(ref, "gguf", (), "local", f"{said(base.ref)} and an adapter", now, license_, card)
            convert.publish(work, made.file, artifact, kit)
    return open_source(ref, kit.store, kit.settings.user_home)


def _by_llama_cpp(base: Source, original: Folder | None, lora: Path, kit: Kit, work: Work) -> _Merged:
    """The adapter converted and merged by llama.cpp's programs; the server asked without, with, and merged."""
    adapter, note = converted(lora, original, kit, work)
    if note:
        kit.on_event(Event("warning", "adapter", note))
    kit.on_event(Event("phase", "gates", "the server with the adapter off and on"))
    with kit.start(base.first, (Adapter("adapter", adapter),)) as endpoint, Client(endpoint) as client:
        off = _say(client, adapter=0.0)
        on = _say(client, adapter=1.0)
    changed = _changed(off, on)
    gates = {"moved_by_adapter": changed}
    if lora.is_dir() and original is not None:
        gates |= _held_against_peft(on, original, lora, changed, kit, work)
    target = work.target()
    kit.on_event(Event("phase", "merge", adapter.name))
    tools = quantizing.Tools(kit.programs((quantizing.EXPORT,)), kit.settings.env, work.folder)
    tools.merge(base.first, adapter, target)
    kit.on_event(Event("phase", "gates", "the server with the merged file"))
    rest = _most(on, _served(target, kit))
    if rest > NEAR and rest > changed / 2:
        raise GateFailed(
            f"the merged file is not base and adapter: {rest:.4f} of the probability lies elsewhere",
            hint="Nothing was published. Merge it with peft, then quantize the result.",
        )
    return _Merged(target, "llama.cpp llama-export-lora", note, gates | {"moved_by_merging": round(rest, 6)})


def _by_peft(base: Source, original: Folder, lora: Path, ref: ModelRef, kit: Kit, work: Work) -> _Merged:
    """The adapter merged by peft into the safetensors, and those converted with every gate of a conversion."""
    why = adapters.merge_first(*adapters.read(lora))
    trainer = Trainer(kit.settings, work.folder, kit.on_event)
    trainer.install()
    kit.on_event(Event("phase", "merge", f"by peft: the adapter {why}"))
    place, _ = lay_out(original, work.folder / "peft-base")
    told = trainer.merge(place, lora, work.folder / "merged")
    whole = open_folder(ModelRef.parse(str(work.folder / "merged")), kit.store, kit.settings.user_home)
    # what the merged model must be is what the original was; only an input and output that were one may be two now
    promise = replace(original.promise, tied=whole.promise.tied)
    target, facts = convert.written(replace(whole, promise=promise), ref, kit, work)
    kit.on_event(Event("phase", "gates", "the server with the base and with the merged file"))
    off, on = _served(base.first, kit), _served(target, kit)
    changed = _changed(off, on)
    gates = {"moved_by_adapter": changed, "merged_kld": told["kld"], "merged_same_top": told["same_top"]}
    gates |= _compare(on, place, lora, changed, trainer)
    tool = f"peft merge_and_unload ({why}), {facts['tool']}"
    return _Merged(target, tool, "", gates | {"conversion": facts["gates"]})


def _held_against_peft(
    on: Said, original: Folder, lora: Path, changed: float, kit: Kit, work: Work
) -> dict[str, float]:
    """How far the server with the adapter is from peft, where peft is here and has the memory it needs."""
    trainer = Trainer(kit.settings, work.folder, kit.on_event)
    need, free = original.parameters * ROOM + convert.SLACK, hardware.look(kit.settings.env).ram_available
    lacking = (
        "its environment is not here (`miyabi-llm finetune install`)" if not trainer.here
        else f"it needs {need >> 20:,} MiB of memory, {free >> 20:,} are free" if free and free < need
        else None
    )  # fmt: skip
    if lacking is not None:
        kit.on_event(Event("warning", "adapter", f"not compared with peft: {lacking}"))
        return {}
    place, _ = lay_out(original, work.folder / "peft-base")
    return _compare(on, place, lora, changed, trainer)


def _compare(on: Said, base: Path, lora: Path, changed: float, trainer: Trainer) -> dict[str, float]:
    """The server against peft. Raises GateFailed when they differ by more than rounding."""
    trainer.on_event(Event("phase", "gates", "the server against peft"))
    told = [(ids, chances) for ids, chances in on if chances]
    theirs = trainer.chances(base, lora, [(ids, list(chances)) for ids, chances in told])
    rest = max(adapters.moved(mine, other) for (_, mine), other in zip(told, theirs, strict=True))
    if rest > NEAR and rest > changed / 2:
        raise GateFailed(
            f"the server does not say what the trainer says: {rest:.4f} of the probability lies elsewhere, "
            f"and the adapter moves {changed:.4f}",
            hint="Nothing was published. Was the adapter trained on this base?",
        )
    return {"moved_from_trainer": round(rest, 6)}


def converted(lora: Path, original: Folder | None, kit: Kit, work: Work) -> tuple[Path, str]:
    """The adapter as GGUF in the work's folder, and what had to be corrected. Raises BadUsage as `adapters.scaling`."""
    if lora.is_file():
        with lora.open("rb") as f:
            header = gguf.read(f, lora.stat().st_size)
        if header.text("general.type") != "adapter":
            raise BadUsage(f"{lora} is a model, no adapter", hint="--lora takes peft's folder, or a GGUF adapter.")
        return lora.absolute(), ""
    assert original is not None
    config, tensors = adapters.read(lora)
    how = adapters.scaling(config, tensors)
    converter = kit.converter(kit.on_event)
    kit.on_event(Event("phase", "adapter", f"{len(tensors)} tensors"))
    copy = work.folder / "adapter"
    copy.mkdir()
    (copy / adapters.CONFIG).write_text(json.dumps(config | {"lora_alpha": how.alpha}), encoding="utf-8")
    weights = (lora / adapters.WEIGHTS).absolute()
    if how.factors:
        converter.scale(weights, copy / adapters.WEIGHTS, how.factors, work.folder)
    else:
        (copy / adapters.WEIGHTS).symlink_to(weights)
    base, _ = lay_out(original, work.folder / "base")
    target = work.folder / "adapter.gguf"
    converter.adapter(copy, base, target, work.folder)
    return target, how.note


def _served(model: Path, kit: Kit) -> Said:
    with kit.start(model, ()) as endpoint, Client(endpoint) as client:
        return _say(client)


def _say(client: Client, adapter: float | None = None) -> Said:
    """What the server says to each prompt."""
    return [(llama.tokenize(client, p, special=True), llama.chances(client, p, adapter=adapter)) for p in PROMPTS]


def _changed(off: Said, on: Said) -> float:
    """How far the adapter moves the server. Raises GateFailed when it does not."""
    changed = _most(off, on)
    if changed < SAME:
        raise GateFailed("the adapter changes nothing in what the server says", hint="Is it for another base?")
    return round(changed, 6)


def _most(a: Said, b: Said) -> float:
    """The largest move over the prompts that both were told the chances of. Raises MiyabiError without any."""
    told = [adapters.moved(x, y) for (_, x), (_, y) in zip(a, b, strict=True) if x and y]
    if not told:
        raise MiyabiError("the server told no chances to compare")
    return max(told)
