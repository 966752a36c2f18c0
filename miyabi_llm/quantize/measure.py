"""Measuring a quantized file against its source, with everything cached by content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miyabi_llm.errors import DiskFull, InvalidMeasurement, MiyabiError
from miyabi_llm.proc import Exit
from miyabi_llm.quantize import quality
from miyabi_llm.quantize.sizes import logits_bytes
from miyabi_llm.quantize.values import Limits, Quality
from miyabi_llm.store import Fs
from miyabi_llm.store.fs import explained, write_atomic
from miyabi_llm.store.locks import take
from miyabi_llm.tools import quantizing
from miyabi_llm.tools.quantize_output import parse_divergence, parse_rows
from miyabi_llm.tools.quantizing import Tools, Window
from miyabi_llm.types import Event, OnEvent, silent

BASES_KEPT = 4 << 30  # bytes of recorded bases that stay in the cache, the last used first
# llama.cpp leaks its logger, "though this design may cause logs to be lost if not flushed before the program exits"
# (common/log.cpp): one short run in twenty to forty ends without its statistics, more on a busy machine.
TRIES = 6
_HEAD = struct.Struct("<8sIii")
_BEGUN = struct.Struct("<8sI")  # what is written before the tokens are counted; nothing more when they are too few


@dataclass(frozen=True, slots=True)
class Base:
    """A source's recorded probabilities. `key` names source, text, windows, program and machine by content."""

    logits: Path
    key: str
    chunks: int


@dataclass(frozen=True, slots=True)
class Meter:
    """Measures files against one base. A file that is surely beyond `limits` is given up; `against` names the base."""

    tools: Tools
    window: Window
    cache: Path
    against: str
    limits: Limits = field(default_factory=Limits)
    on_event: OnEvent = silent

    def has(self, name: str) -> bool:
        """Whether the base called `name` is in the cache."""
        return whole(self.cache / "quantize" / "bases" / f"{name}.kld", self.window) is not None

    def record(self, model: Path, text: Path, name: str) -> Base:
        """The recorded base called `name`, from the cache or made now; of two at once the second waits.

        Raises Corrupt when what was written is not whole, MiyabiError.
        """
        folder = self.cache / "quantize" / "bases"
        folder.mkdir(parents=True, exist_ok=True)
        lock = take(Fs(), folder / f"{name}.lock", exclusive=True)
        assert lock is not None  # without a timeout it waits
        try:
            place = folder / f"{name}.kld"
            if (chunks := whole(place, self.window)) is None:
                return self._record(model, text, place, name)
            os.utime(place)
            self.on_event(Event("phase", "base", "what the source predicts is known from an earlier run"))
            return Base(place, name, chunks)
        finally:
            lock.release(remove=True)

    def _record(self, model: Path, text: Path, place: Path, name: str) -> Base:
        self.on_event(Event("phase", "base", "recording what the source predicts"))
        fresh = self.tools.folder / "base.kld"
        trouble: MiyabiError = DiskFull("")
        for _ in range(TRIES):
            said = self.tools.record(model, text, fresh, self.window, self.on_event)
            if (chunks := whole(fresh, self.window)) is not None:
                os.replace(fresh, place)
                evict(place.parent, keep=place)
                return Base(place, name, chunks)
            if fresh.exists() and fresh.stat().st_size == _BEGUN.size:
                raise quantizing.too_short(said.text)  # the program ends with code 0, its words may be lost
            # it does not look whether its bytes arrive
            trouble = quantizing.explain(quantizing.PERPLEXITY, Exit(), said.text, short=True)
            if not isinstance(trouble, DiskFull):
                break
            self.on_event(Event("warning", "base", "the program ended early without a word; once more"))
        raise trouble

    def measure(self, model: Path, base: Base, sha256: str) -> Quality:
        """Compare `model`, whose bytes are `sha256`, with the base: from the cache or now. Raises MiyabiError."""
        name = key({"base": base.key, "file": sha256})
        if (known := remembered(self.cache, name)) is not None:
            self.on_event(Event("phase", "compare", "known from an earlier run"))
            return dataclasses.replace(known, against=self.against)
        for _ in range(TRIES):
            ended = self.tools.compare(
                model, base.logits, self.window, lambda row: quality.hopeless(row, self.limits), self.on_event
            )
            found, rows = parse_divergence(ended.text), parse_rows(ended.text)
            if found is not None and len(rows) == base.chunks:
                result = quality.judged(found, self.window, self.against)
                remember(self.cache, name, result)
                return result
            if ended.stopped and rows:
                return quality.early(rows[-1], rows, self.window, self.against)
            self.on_event(Event("warning", "compare", "the program lost its last lines; once more"))
        raise InvalidMeasurement("the comparison ended without its statistics", hint=ended.text[-400:])


def key(facts: Mapping[str, Any]) -> str:
    """A name made of content: equal facts, equal name."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def whole(path: Path, window: Window) -> int | None:
    """The number of windows in a file of recorded probabilities, None when it is cut short or another kind."""
    try:
        with path.open("rb") as f:
            magic, ctx, vocab, chunks = _HEAD.unpack(f.read(_HEAD.size))
            size = os.fstat(f.fileno()).st_size
    except (OSError, struct.error):
        return None
    if magic != b"_logits_" or ctx != window.ctx or min(vocab, chunks) < 1:
        return None
    return int(chunks) if size == logits_bytes(window, vocab, chunks) else None


def tokens(path: Path) -> tuple[int, ...]:
    """The token ids that a whole file of recorded probabilities was made of. Raises OSError, struct.error."""
    with path.open("rb") as f:
        _, ctx, _, chunks = _HEAD.unpack(f.read(_HEAD.size))
        return struct.unpack(f"<{ctx * chunks}i", f.read(4 * ctx * chunks))


def evict(folder: Path, *, keep: Path, limit: int = BASES_KEPT) -> None:
    """Remove the bases that were not used for longest, until the others take at most `limit` bytes."""
    found = sorted(((p.stat().st_mtime, p.stat().st_size, p) for p in folder.glob("*.kld") if p != keep), reverse=True)
    total = keep.stat().st_size
    for _, size, path in found:
        total += size
        if total > limit:
            path.unlink(missing_ok=True)


def remembered(cache: Path, name: str) -> Quality | None:
    """The quality that was measured before under that name, or None."""
    known = _read(cache / "quantize" / "quality" / f"{name}.json")
    try:
        return Quality(**known) if known is not None else None
    except TypeError:
        return None  # of another version


def remember(cache: Path, name: str, found: Quality) -> None:
    """Keep a complete measurement for the next time. Raises MiyabiError."""
    if not found.stopped:
        path = cache / "quantize" / "quality" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with explained(path):
            write_atomic(Fs(), path, json.dumps(dataclasses.asdict(found)).encode())


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
