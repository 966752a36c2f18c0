"""What a judgement of memory is made of, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from miyabi_llm.gguf import Header
from miyabi_llm.memory import RUNTIME
from miyabi_llm.paged import Weights
from miyabi_llm.sources.hf_files import Variant
from miyabi_llm.types import MemoryEstimate

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True, slots=True)
class How:
    """How the model is to be served, as far as its memory depends on it.

    `parallel` None leaves the number of slots to the backend. `amx` False says that the server was built without AMX
    though the processor has it. `runtime` is what the program takes beside its buffers, in bytes: the built-in
    figure, or the one measured on this machine.
    """

    backend: str = "llama-cpp"
    kv_type: str = "f16"
    parallel: int | None = None
    amx: bool = True
    runtime: int = RUNTIME


@dataclass(frozen=True, slots=True)
class Quant:
    """About how much another quantization of the same model would need, in bytes."""

    name: str
    weights: int
    total: int
    fits: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """One file, or set of shards, of a repository: `size` is exact, `total` about what serving it needs, in bytes.

    `largest_ctx` in tokens, None when not even a short context fits. `best` marks the largest file that fits.
    """

    name: str
    file: str
    size: int
    total: int
    fits: bool
    largest_ctx: int | None
    best: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a model: its GGUF header or its weights in the hub's layout, and where they were read.

    `size` is that of the file (or all its shards) the header is of; `variants` are all files of its repository.
    """

    place: str
    header: Header | None = None
    weights: Weights | None = None
    size: int = 0
    variants: tuple[Variant, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuLayers:
    """How many layers of `of` (the output counts as one) a card takes, and the bytes they need there."""

    layers: int
    of: int
    bytes: int
    card: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What the header says about the model. `types`: tensor type -> bytes, most first."""

    architecture: str
    parameters: int
    layers: int | None
    context_length: int | None
    vocab_size: int | None
    file_type: str | None
    types: Mapping[str, int]
    chat_template: bool


@dataclass(frozen=True, slots=True)
class Fit:
    """The judgement. `fits` is None when the machine's memory could not be read. Memory in bytes, `ctx` in tokens.

    `available` is what may be used, the margin already taken off. `prompts` is what the server may keep of earlier
    prompts on top of `total`, as it is used. `advice` is in words, best first.
    """

    fits: bool | None
    device: Device
    ctx: int
    kv_type: str
    needed: MemoryEstimate
    total: int
    available: int
    largest_ctx: int | None
    facts: Facts
    advice: tuple[str, ...] = ()
    quants: tuple[Quant, ...] = ()
    notes: tuple[str, ...] = field(default=())
    backend: str = "llama-cpp"
    prompts: int = 0
    gpu: GpuLayers | None = None
    choices: tuple[Choice, ...] = ()
