"""An importance matrix: which weights matter, by a calibration text that is never the text of the evaluation."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from miyabi_llm import gguf
from miyabi_llm.errors import BadUsage, InvalidMeasurement
from miyabi_llm.gguf import Array
from miyabi_llm.quantize import measure
from miyabi_llm.refs import Digest
from miyabi_llm.store.adopt import hash_file
from miyabi_llm.tools.quantizing import Tools
from miyabi_llm.types import Event, OnEvent, silent

AUTO = "auto"
TEXT = "calibration.txt"  # the shipped text, under miyabi_llm/data
FILE = "imatrix.gguf"  # its name in the work's folder: llama-quantize writes it into the model
LINE = 24  # letters of a line from which it is compared: shorter ones ("end", "}") stand in any text
OVERLAP = 0.02  # share of the evaluation's lines that may stand in the calibration's text as well


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix in the work's folder under `name`, and where it comes from."""

    name: str
    provenance: Mapping[str, Any]

    @property
    def words(self) -> tuple[str, ...]:
        """The words for llama-quantize."""
        return ("--imatrix", self.name)


@dataclass(frozen=True, slots=True)
class Wish:
    """`what`: auto, a text or a matrix; `evaluation`: the text that is measured on, None for ours."""

    what: str
    evaluation: Path | None
    cache: Path


def overlap(calibration: str, evaluation: str) -> float:
    """The share of the evaluation's lines, by their hashes, that stand in the calibration text too. Pure."""
    known, asked = set(_lines(calibration)), list(_lines(evaluation))
    return sum(line in known for line in asked) / len(asked) if asked else 0.0


def _lines(text: str) -> Iterable[bytes]:
    for line in text.splitlines():
        plain = re.sub(r"\s+", " ", line).strip().casefold()
        if len(plain) >= LINE:
            yield hashlib.sha256(plain.encode()).digest()[:16]


def plain(path: Path) -> str:
    """A file's text; of conversations in .jsonl what is said in them. Raises BadUsage."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise BadUsage(f"{path} is not UTF-8 text: {e.reason} at byte {e.start}") from e
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror}", hint="Name a text file.") from e
    if path.suffix != ".jsonl":
        return text
    return "\n".join(word for line in text.splitlines() for word in _strings(line))


def _strings(line: str) -> Iterable[str]:
    try:
        todo = [json.loads(line)]
    except ValueError:
        return
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            todo += value.values() if isinstance(value, dict) else value


def given(what: str, folder: Path) -> Matrix | None:
    """The matrix when it was made before, else None. Raises BadUsage."""
    return None if what == AUTO else _given(Path(what), folder)


def bring(wish: Wish, model: Path, digests: Mapping[str, Digest], tools: Tools, on_event: OnEvent = silent) -> Matrix:
    """The matrix that was wished for: a file made before, or made now on a text (`auto`: the shipped one).

    Raises BadUsage when the file is neither a matrix nor text, InvalidMeasurement when the text is the evaluation's.
    """
    what = wish.what
    if (made := given(what, tools.folder)) is not None:
        on_event(Event("phase", "imatrix", f"{Path(what).name}, made before"))
        return made
    text = _text(what, tools.folder)
    other = plain(wish.evaluation) if wish.evaluation else _shipped("evaluation.txt")
    share = overlap(text.read_text(encoding="utf-8"), other)
    if share > OVERLAP:
        raise InvalidMeasurement(
            f"{100 * share:.0f}% of the evaluation's lines are in the calibration text: the loss would look too small",
            hint="Calibrate on one text and measure on another.",
        )
    sha256 = hash_file(text)
    key = measure.key({"source": sorted(digests.values()), "text": sha256, "program": list(tools.version)})
    kept = wish.cache / "quantize" / "imatrix" / f"{key}.gguf"
    if kept.is_file() and _read(kept) is not None:
        on_event(Event("phase", "imatrix", "known from an earlier run"))
    else:
        on_event(Event("phase", "imatrix", f"on {'our calibration text' if what == AUTO else Path(what).name}"))
        tools.imatrix(model, text.name, FILE, on_event)
        if _read(tools.folder / FILE) is None:
            raise BadUsage("no importance matrix was made of this text", hint="It may be too short: 1,000 words do.")
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f".{kept.name}.{os.getpid()}.part")
        shutil.copyfile(tools.folder / FILE, part)
        part.replace(kept)
    shutil.copyfile(kept, tools.folder / FILE)
    facts = _read(kept) or {}
    return Matrix(
        FILE,
        {
            "made": "by llama-imatrix here",
            "text": "shipped with miyabi-llm" if what == AUTO else Path(what).name,
            "text_sha256": sha256,
            "overlap": round(share, 4),
            "sha256": hash_file(kept),
        }
        | facts,
    )


def _given(path: Path, folder: Path) -> Matrix | None:
    """A matrix file, linked into the folder; None when the file is text. Raises BadUsage."""
    try:
        with path.open("rb") as f:
            head = f.read(4096)
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror}", hint="--imatrix takes auto, a text, or a matrix.") from e
    if head[:4] == b"GGUF":
        facts = _read(path)
        if facts is None:
            raise BadUsage(f"{path} is a model, no importance matrix", hint="llama-imatrix writes one.")
        name = FILE
    elif b"\0" in head:
        facts, name = {}, "imatrix.dat"  # the older format says little about itself
    else:
        return None
    (folder / name).symlink_to(path.absolute())
    told = {"made": "before", "file": path.name, "sha256": hash_file(path), "overlap": None}
    return Matrix(name, told | facts)


def _read(path: Path) -> dict[str, Any] | None:
    """What a matrix says about itself: its texts by name, chunks and their tokens; None when the file is none."""
    with path.open("rb") as f:
        header = gguf.read(f, path.stat().st_size, whole_arrays=True)
    if header.text("general.type") != "imatrix":
        return None
    texts = header.kv.get("imatrix.datasets")
    names = [str(t).replace("\\", "/").rsplit("/", 1)[-1] for t in texts.items] if isinstance(texts, Array) else []
    return {
        "datasets": names,
        "chunks": header.number("imatrix.chunk_count"),
        "tokens_per_chunk": header.number("imatrix.chunk_size"),
    }


def _text(what: str, folder: Path) -> Path:
    """The calibration text, copied: what was hashed is what is read. Raises BadUsage."""
    target = folder / TEXT
    target.write_text(_shipped(TEXT) if what == AUTO else plain(Path(what)), encoding="utf-8")
    return target


def _shipped(name: str) -> str:
    return resources.files("miyabi_llm").joinpath("data", name).read_text(encoding="utf-8")
