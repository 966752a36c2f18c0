"""A LoRA adapter merged into its base: scaled as its trainer scales it, and seen to change what the server says.

llama.cpp's converter writes one alpha for the whole adapter and forgets `use_rslora` and `alpha_pattern` without a
word; what it would get wrong is put right in a copy before it reads it.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from miyabi_llm import gguf, safetensors
from miyabi_llm.client import Client, llama
from miyabi_llm.errors import BadUsage, Corrupt, GateFailed, Missing, MiyabiError
from miyabi_llm.quantize import convert
from miyabi_llm.quantize.card import said
from miyabi_llm.quantize.convert import Kit
from miyabi_llm.quantize.original import Folder, lay_out
from miyabi_llm.quantize.source import Source, open_source
from miyabi_llm.quantize.work import Work, working
from miyabi_llm.store.adopt import hash_file
from miyabi_llm.tools import quantizing
from miyabi_llm.types import Adapter, Artifact, Event

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGE_FIRST = "Merge it into the model first (peft: merge_and_unload), then quantize the result."
SAME = 1e-5  # share of probability that moved, below which nothing did
NEAR = 0.01  # and what rounding the merged weights to 16 bits may move
PROMPTS = (
    *("The capital of Japan is", "def add(a, b):\n    return", "Q: What is 2 + 2?\nA:", "日本の首都は"),
    *("Once upon a time", '{"name": "', "SELECT * FROM"),
)
_PARTS = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+?)\.(?P<part>lora_(?:A|B)\.weight|lora_embedding_(?:A|B))$")


@dataclass(frozen=True, slots=True)
class Scaling:
    """How an adapter has to be written for llama.cpp: its `alpha`, and by what tensors are multiplied besides."""

    alpha: float
    factors: Mapping[str, float]
    note: str = ""


def scaling(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> Scaling:
    """The correction for an adapter with this configuration and these tensors (name -> shape). Pure.

    peft scales a module by alpha / r, with rsLoRA by alpha / sqrt(r), each alpha by `alpha_pattern`; llama.cpp scales
    by one alpha / r. Raises BadUsage for what no LoRA file of llama.cpp can hold: DoRA, whole modules, biases.
    """
    refuse(config, tensors)
    alpha = float(config["lora_alpha"])
    patterns = config.get("alpha_pattern") or {}
    factors: dict[str, float] = {}
    for name, shape in tensors.items():
        m = _PARTS.match(name)
        assert m is not None  # refuse() has seen to it
        if "_B" not in m["part"]:
            continue
        # embedding_B is (out, r), like B
        own = next((float(v) for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", m["module"])), alpha)
        factors[name] = own / alpha * (math.sqrt(shape[-1]) if config.get("use_rslora") else 1.0)
    kinds = set(factors.values())
    why = [word for word, there in (("rsLoRA", config.get("use_rslora")), ("alpha_pattern", patterns)) if there]
    if kinds <= {1.0}:
        return Scaling(alpha, {})
    note = f"{' and '.join(why)}: the scale that llama.cpp's converter leaves out was put in"
    if len(kinds) == 1:
        return Scaling(alpha * kinds.pop(), {}, note)
    return Scaling(alpha, {k: v for k, v in factors.items() if v != 1.0}, note)


def refuse(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> None:
    """Raise BadUsage for an adapter that cannot be converted without loss, saying why."""
    if config.get("peft_type") != "LORA":
        raise BadUsage(f"the adapter is {config.get('peft_type')}, not LoRA", hint=MERGE_FIRST)
    if config.get("use_dora") or any("lora_magnitude_vector" in name for name in tensors):
        raise BadUsage("the adapter is DoRA, which no LoRA file of llama.cpp can hold", hint=MERGE_FIRST)
    if whole := config.get("modules_to_save"):
        raise BadUsage(f"the adapter holds whole modules ({', '.join(map(str, whole))})", hint=MERGE_FIRST)
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise BadUsage("the adapter trains biases, which no LoRA file of llama.cpp can hold", hint=MERGE_FIRST)
    if config.get("trainable_token_indices") or config.get("layer_replication"):
        raise BadUsage("the adapter changes tokens or layers", hint=MERGE_FIRST)
    if odd := [name for name in tensors if not _PARTS.match(name)]:
        raise BadUsage(f"{odd[0]} of the adapter is no part of a LoRA", hint=MERGE_FIRST)
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not alpha or not math.isfinite(alpha):
        raise BadUsage(f"the adapter's lora_alpha is {alpha!r}", hint="It has to be a number other than 0.")


def check(lora: Path) -> None:
    """Raise what `merged` would raise for the adapter itself, before a base is converted for it."""
    _files(lora)
    if lora.is_dir():
        scaling(*read(lora))


def merged(base: Source, original: Folder | None, lora: Path, kit: Kit) -> Source:
    """`base` with the adapter at `lora` (peft's folder, or a GGUF) merged in, published, as a source to quantize.

    Raises BadUsage, Corrupt, GateFailed when the adapter changes nothing or the merged file is not base and adapter.
    """
    files = _files(lora)
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
            adapter, note = _converted(lora, original, kit, work)
            if note:
                kit.on_event(Event("warning", "adapter", note))
            target, moved = _merge(base, adapter, kit, work)
            earlier = base.artifact.card.get("lineage") if base.artifact else None
            card = {
                "converted": {
                    "from": said(base.ref),
                    "adapter": lora.name,
                    "sha256": digests,
                    "tool": "llama.cpp llama-export-lora",
                    "corrected": note,
                    "gates": moved,
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
            convert.publish(work, target, artifact, kit)
    return open_source(ref, kit.store, kit.settings.user_home)


def _files(lora: Path) -> list[Path]:
    if lora.is_file() and lora.suffix == ".gguf":
        return [lora]
    files = [lora / CONFIG, lora / WEIGHTS]
    for path in files:
        if not path.is_file():
            raise Missing(f"{path} is not there", hint="--lora takes peft's folder in safetensors, or a GGUF adapter.")
    return files


def read(lora: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Configuration and tensors (name -> shape) of an adapter in peft's layout. Raises Corrupt."""
    try:
        config = json.loads((lora / CONFIG).read_bytes())
    except ValueError as e:
        raise Corrupt(f"{lora / CONFIG} is no JSON: {str(e)[:120]}") from None
    with (lora / WEIGHTS).open("rb") as f:
        header = safetensors.read(f, (lora / WEIGHTS).stat().st_size)
    return (config if isinstance(config, dict) else {}), {t.name: t.shape for t in header.tensors}


def _converted(lora: Path, original: Folder | None, kit: Kit, work: Work) -> tuple[Path, str]:
    """The adapter as GGUF, and what had to be corrected."""
    if lora.is_file():
        with lora.open("rb") as f:
            header = gguf.read(f, lora.stat().st_size)
        if header.text("general.type") != "adapter":
            raise BadUsage(f"{lora} is a model, no adapter", hint="--lora takes peft's folder, or a GGUF adapter.")
        return lora.absolute(), ""
    assert original is not None
    config, tensors = read(lora)
    how = scaling(config, tensors)
    converter = kit.converter(kit.on_event)
    kit.on_event(Event("phase", "adapter", f"{len(tensors)} tensors"))
    copy = work.folder / "adapter"
    copy.mkdir()
    (copy / CONFIG).write_text(json.dumps(config | {"lora_alpha": how.alpha}), encoding="utf-8")
    if how.factors:
        converter.scale((lora / WEIGHTS).absolute(), copy / WEIGHTS, how.factors, work.folder)
    else:
        (copy / WEIGHTS).symlink_to((lora / WEIGHTS).absolute())
    base, _ = lay_out(original, work.folder / "base")
    target = work.folder / "adapter.gguf"
    converter.adapter(copy, base, target, work.folder)
    return target, how.note


def _merge(base: Source, adapter: Path, kit: Kit, work: Work) -> tuple[Path, dict[str, float]]:
    """The merged file, and how far the answers moved: by the adapter, and from there by merging."""
    kit.on_event(Event("phase", "gates", "the server with the adapter off and on"))
    with kit.start(base.first, (Adapter("adapter", adapter),)) as endpoint, Client(endpoint) as client:
        off = [llama.chances(client, p, adapter=0.0) for p in PROMPTS]
        on = [llama.chances(client, p, adapter=1.0) for p in PROMPTS]
    changed = _most(off, on)
    if changed < SAME:
        raise GateFailed("the adapter changes nothing in what the server says", hint="Is it for another base?")
    target = work.target()
    kit.on_event(Event("phase", "merge", adapter.name))
    quantizing.Tools(kit.programs((quantizing.EXPORT,)), kit.settings.env, work.folder).merge(
        base.first, adapter, target
    )
    kit.on_event(Event("phase", "gates", "the server with the merged file"))
    with kit.start(target, ()) as endpoint, Client(endpoint) as client:
        whole = [llama.chances(client, p) for p in PROMPTS]
    rest = _most(on, whole)
    if rest > NEAR and rest > changed / 2:
        raise GateFailed(
            f"the merged file is not base and adapter: {rest:.4f} of the probability lies elsewhere",
            hint="Nothing was published. Merge it with peft, then quantize the result.",
        )
    return target, {"moved_by_adapter": round(changed, 6), "moved_by_merging": round(rest, 6)}


def _most(a: Sequence[Mapping[int, float]], b: Sequence[Mapping[int, float]]) -> float:
    """The largest move over the prompts that both were told the chances of. Raises MiyabiError without any."""
    told = [moved(x, y) for x, y in zip(a, b, strict=True) if x and y]
    if not told:
        raise MiyabiError("the server told no chances to compare")
    return max(told)


def moved(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """How much probability lies elsewhere, 0 to 1, of two sets of log-probabilities by token. Pure."""
    return 0.5 * sum(abs(math.exp(a.get(k, -math.inf)) - math.exp(b.get(k, -math.inf))) for k in {*a, *b})
