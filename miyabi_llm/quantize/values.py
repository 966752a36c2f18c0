"""What was asked, planned, measured and made: the values of a quantization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from miyabi_llm.quantize.passing import Passing
from miyabi_llm.refs import ModelRef
from miyabi_llm.tools.quantize_output import Bench
from miyabi_llm.tools.quantizing import Window
from miyabi_llm.types import Artifact, MemoryEstimate

Kind = Literal["full", "quantized", "dequantized", "unknown"]


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted. `budget` in bytes of memory at `ctx` tokens; `max_kld` and `max_p999` in nats per token.

    `min_top` in per cent. `text` None: ours; a .jsonl file holds conversations, any other plain text. `imatrix`:
    "auto", or a file that is a matrix or a calibration text; `passing` goes to llama-quantize as it is.
    """

    types: tuple[str, ...] = ()
    budget: int | None = None
    max_kld: float | None = None
    max_p999: float | None = None
    min_top: float | None = None
    text: Path | None = None
    name: ModelRef | None = None
    ctx: int = 8192
    requantize: bool = False
    window: Window = field(default_factory=Window)
    imatrix: str | None = None
    passing: Passing = field(default_factory=Passing)


@dataclass(frozen=True, slots=True)
class Limits:
    """The gate: at most `kld` by the upper end of the mean's interval, at most `p999` at one token in a thousand, the
    most likely token the same for at least `top` per cent by the lower end. None: no limit."""

    kld: float | None = None
    p999: float | None = None
    top: float | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """What the source's numbers are; unknown where the weights are not here. `evidence` says how that is known."""

    kind: Kind
    evidence: str


@dataclass(frozen=True, slots=True)
class Planned:
    """One type before any work. `weights` are the exact bytes of the tensors, `size` the file's to some 100 bytes.

    `tensors`: tensor type -> (tensors, bytes). `fallbacks`: tensors that get another type than the label promises.
    `fits` is None without a budget. `dominated` names a type that is better and not larger.
    """

    type: str
    weights: int
    size: int
    saved: float
    bits: float
    tensors: Mapping[str, tuple[int, int]]
    fallbacks: int
    memory: MemoryEstimate
    needed: int
    fits: bool | None = None
    dominated: str | None = None
    needs_imatrix: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """All types that were looked at, the source they would come from, and the disk it takes at most, in bytes."""

    source: str
    source_size: int
    provenance: Provenance
    ctx: int
    budget: int | None
    types: tuple[Planned, ...]
    order: tuple[str, ...]
    disk: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Quality:
    """The loss against `against`, in nats per token; [`low`, `high`] is a 95% interval of the mean.

    `kld_error` is the tool's standard error over tokens. `same_top` is the share of tokens, in per cent, whose most
    likely next token stayed the same. After an early stop only these and `chunks` are known.
    """

    kld: float
    kld_error: float
    low: float
    high: float
    same_top: float
    chunks: int
    tokens: int
    against: str
    stopped: bool = False
    same_top_low: float | None = None
    p999: float | None = None
    maximum: float | None = None
    ppl: float | None = None
    ppl_error: float | None = None
    base_ppl: float | None = None
    ppl_ratio: float | None = None
    ppl_ratio_error: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """One file that was made and measured. `size` in bytes; `passed` is None without a gate; `why` it did not."""

    type: str
    sha256: str
    size: int
    seconds: float
    quality: Quality
    passed: bool | None
    best: bool = False
    speed: Bench | None = None
    why: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Handed:
    """The model at Ollama: its name there, the address, and how many probes rendered alike (0: no template)."""

    name: str
    url: str
    probes: int


@dataclass(frozen=True, slots=True)
class Made:
    """The published model and how it was chosen. `notes` are for the person.

    `resident`: bytes a server of it has in memory at the planned context, None where that could not be seen.
    """

    artifact: Artifact
    chosen: Planned
    quality: Quality
    speed: Bench | None
    measured: tuple[Measured, ...]
    plan: Plan
    card: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    resident: int | None = None
    limits: Limits = field(default_factory=Limits)
    handed: Handed | None = None
