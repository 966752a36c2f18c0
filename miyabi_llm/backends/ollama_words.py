"""What an Ollama calls our models, which versions do what, and when to worry about a loaded one; pure."""

from __future__ import annotations

import re

from miyabi_llm.backends.base import ModelState, Unsupported
from miyabi_llm.backends.ollama_values import Shown
from miyabi_llm.errors import BadUsage
from miyabi_llm.gguf import Header
from miyabi_llm.refs import ModelRef
from miyabi_llm.store.link import OURS
from miyabi_llm.types import ServeSpec

RENDERS = (0, 30)  # the first version that uses the chat template in a GGUF file
PART_MOST = 80  # letters of a part of a name

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def model_name(spec: ServeSpec) -> str:
    """The name the model has at the server, with its tag.

    On a server of our own it is the alias; on one that runs already it stands in our corner of the names, so that no
    model of its owner is replaced.
    """
    text = spec.alias.lower()
    last = re.split(r"[/\\]", text)[-1]
    base, _, tag = last.partition(":") if not last.startswith(("hf:", "ollama:", "catalog:")) else _after(last)
    tag = _part(tag) or "latest"
    if tag in ("cloud", "local") or tag.endswith("-cloud"):  # these say where a model runs
        tag += "-gguf"
    short = f"{_part(base.removesuffix('.gguf')) or 'model'}:{tag}"
    return f"{OURS}/{short}" if spec.attach else short


def library_name(ref: ModelRef) -> str:
    """What Ollama calls a model that it fetches by itself: of its own library, or of the hub. Raises BadUsage."""
    if ref.scheme == "ollama" and not ref.file:
        return f"{ref.name}:{ref.revision}" if ref.revision else ref.name
    if ref.scheme == "hf" and not ref.file and not ref.revision:
        return f"hf.co/{ref.name}:{ref.quant}" if ref.quant else f"hf.co/{ref.name}"
    raise BadUsage(
        f"Ollama cannot fetch {ref} by itself",
        hint="It knows `ollama:NAME:TAG` and `hf:ORG/REPO:QUANT`. `serve --backend ollama` lends it the others.",
    )


def _after(last: str) -> tuple[str, str, str]:
    return last.partition(":")[2].partition(":")


def _part(text: str) -> str:
    return re.sub(r"[^a-z0-9_.-]+", "-", text).lstrip("-.")[:PART_MOST]


def check_adapters(count: int) -> None:
    """Raise Unsupported for more adapters than Ollama takes."""
    if count > 1:
        raise Unsupported("Ollama takes one adapter per model", hint="Merge them into the model first.")


def version_of(text: str) -> tuple[int, int, int] | None:
    """The numbers of a version; None for none, and for 0.0.0, which is what a build from source says."""
    m = _VERSION.search(text)
    found = (int(m[1][:9]), int(m[2][:9]), int(m[3][:9])) if m else None
    return found if found and any(found) else None


def renders_gguf(version: str) -> bool | None:
    """Whether this version uses the chat template in the GGUF file; None where the version says nothing."""
    found = version_of(version)
    return None if found is None else found >= RENDERS


def differs(shown: Shown, header: Header) -> str:
    """How the model there differs from the file we gave; empty when it does not, as far as both sides say."""
    pairs: list[tuple[str, object, object]] = [
        ("architecture", shown.architecture, header.architecture),
        ("parameters", shown.parameters, header.parameters),
    ]
    if shown.quantization not in ("", "unknown") and header.file_type:
        pairs.append(("quantization", shown.quantization.upper(), header.file_type.upper()))
    return "; ".join(f"{what} {there}, given {ours}" for what, there, ours in pairs if there and there != ours)


def alarms(state: ModelState, spec: ServeSpec) -> tuple[str, ...]:
    """What is wrong with a model that is loaded, each with its mend."""
    found = []
    whole, gpu = state.memory or 0, state.gpu_memory or 0
    if whole and 0 < gpu < whole:
        part = 100 * gpu // whole
        found.append(f"{state.name}: only {part}% of it is on the GPU, the rest is slow; use a smaller --ctx or quant")
    elif whole and gpu == 0 and spec.gpus:
        found.append(f"{state.name}: there is a GPU, and none of it is there; the server's log says why")
    if spec.ctx and state.ctx and state.ctx < spec.ctx:
        found.append(
            f"{state.name}: the context is {state.ctx} tokens, not the {spec.ctx} asked for; "
            "the model may not be trained for more, or its memory not suffice"
        )
    return tuple(found)
