"""Faults planted in copies of a finished file, to see that the gate finds each of them: a gate nobody tried is a hope.

Each fault changes bytes in place, so that the file stays one that llama.cpp loads without a word.
"""

from __future__ import annotations

import mmap
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm import gguf
from miyabi_llm.errors import MiyabiError

HEAD = 64 << 20  # bytes in which the keys lie
NORMAL, CONTROL = 1, 3  # llama.cpp's llama_token_type
_WIDTH = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: what goes wrong in real life, and how it is planted. `failure` is its number in the list of them."""

    name: str
    failure: int
    words: str
    plant: Callable[[mmap.mmap, gguf.Header], bool]


def plant(source: Path, target: Path, fault: Fault) -> bool:
    """Copy `source` to `target` with the fault in it; False where this model cannot have the fault."""
    shutil.copyfile(source, target)
    target.chmod(0o600)
    with target.open("r+b") as f:
        header = gguf.read(f, target.stat().st_size, whole_arrays=True)
        with mmap.mmap(f.fileno(), 0) as data:
            done = fault.plant(data, header)
    if not done:
        target.unlink()
    return done


def _value(data: mmap.mmap, key: str) -> tuple[int, int] | None:
    """Where the value of a key begins, and its type."""
    mark = struct.pack("<Q", len(key)) + key.encode()
    at = data.find(mark, 0, min(HEAD, len(data)))
    if at < 0:
        return None
    at += len(mark)
    return at + 4, struct.unpack_from("<I", data, at)[0]


def _number(data: mmap.mmap, key: str, value: int) -> bool:
    found = _value(data, key)
    if found is None or found[1] not in _WIDTH:
        return False
    at, kind = found
    data[at : at + _WIDTH[kind]] = value.to_bytes(_WIDTH[kind], "little")
    return True


def types(data: mmap.mmap, header: gguf.Header) -> bool:
    """Every control token becomes an ordinary one: its text in a prompt is read letter by letter."""
    found = _value(data, "tokenizer.ggml.token_type")
    if found is None:
        return False
    at = found[0]  # the element type, the count, then the elements
    count = struct.unpack_from("<Q", data, at + 4)[0]
    kinds = list(struct.unpack_from(f"<{count}i", data, at + 12))
    if CONTROL not in kinds:
        return False
    data[at + 12 : at + 12 + 4 * count] = struct.pack(f"<{count}i", *(NORMAL if k == CONTROL else k for k in kinds))
    return True


def eos(data: mmap.mmap, header: gguf.Header) -> bool:
    """Another token is named as the end of an answer."""
    return _number(data, "tokenizer.ggml.eos_token_id", 5)


def template(data: mmap.mmap, header: gguf.Header) -> bool:
    """The template asks for the answer in another way, by one letter."""
    return _text(data, "tokenizer.chat_template", b"assistant", b"assistent")


def no_template(data: mmap.mmap, header: gguf.Header) -> bool:
    """The template is lost; the server takes one of its own."""
    return _rename(data, "tokenizer.chat_template", "tokenizer.chat_templatx")


def begin(data: mmap.mmap, header: gguf.Header) -> bool:
    """A token is put before every prompt that the training never saw there."""
    return _number(data, "tokenizer.ggml.add_bos_token", 1)


def splitter(data: mmap.mmap, header: gguf.Header) -> bool:
    """Text is split into words by the rules of another tokenizer."""
    return any(_text(data, "tokenizer.ggml.pre", a, b) for a, b in ((b"qwen2", b"gpt-2"), (b"llama-bpe", b"starcoder")))


def weights(data: mmap.mmap, header: gguf.Header) -> bool:
    """The matrices of the second layer stand in the first: what a wrong merge or a cut file may give."""
    by_name = {t.name: t for t in header.tensors}
    done = False
    for part in ("attn_q", "attn_output", "ffn_up", "ffn_down"):
        one, other = by_name.get(f"blk.0.{part}.weight"), by_name.get(f"blk.1.{part}.weight")
        if one is not None and other is not None and (one.type, one.nbytes) == (other.type, other.nbytes):
            a, b = (header.data_offset + t.offset for t in (one, other))
            data[a : a + one.nbytes] = data[b : b + one.nbytes]
            done = True
    return done


def positions(data: mmap.mmap, header: gguf.Header) -> bool:
    """Positions turn at another speed."""
    found = _value(data, f"{header.architecture}.rope.freq_base")
    if found is None or found[1] != 6:
        return False
    at = found[0]
    data[at : at + 4] = struct.pack("<f", struct.unpack_from("<f", data, at)[0] / 50)
    return True


def _text(data: mmap.mmap, key: str, old: bytes, new: bytes) -> bool:
    """Change bytes within the text of a key, as many as there were."""
    found = _value(data, key)
    if found is None or len(old) != len(new):
        return False
    at = found[0]
    size = struct.unpack_from("<Q", data, at)[0]
    text = data[at + 8 : at + 8 + size]
    if old not in text:
        return False
    data[at + 8 : at + 8 + size] = text.replace(old, new)
    return True


def _rename(data: mmap.mmap, key: str, other: str) -> bool:
    mark = struct.pack("<Q", len(key)) + key.encode()
    at = data.find(mark, 0, min(HEAD, len(data)))
    if at < 0 or len(key) != len(other):
        return False
    data[at + 8 : at + len(mark)] = other.encode()
    return True


FAULTS: tuple[Fault, ...] = (
    Fault("template", 1, "another template, by one letter", template),
    Fault("no template", 16, "the template is lost", no_template),
    Fault("weights", 2, "the matrices of one layer in another", weights),
    Fault("positions", 2, "positions turn at another speed", positions),
    Fault("begin", 5, "a token before every prompt", begin),
    Fault("end", 18, "another token ends an answer", eos),
    Fault("types", 11, "control tokens typed as ordinary ones", types),
    Fault("splitter", 12, "another splitting into words", splitter),
)
BY_NAME: Mapping[str, Fault] = {f.name: f for f in FAULTS}


def fault(name: str) -> Fault:
    """The fault of that name. Raises MiyabiError."""
    if name not in BY_NAME:
        raise MiyabiError(f"no fault is called {name!r}")
    return BY_NAME[name]
