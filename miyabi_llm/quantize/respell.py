"""Control tokens in an evaluation text: llama-perplexity reads them as plain letters, so they get another spelling.

It tokenizes its file without looking for control tokens: `<|im_start|>` would become six pieces that no server ever
feeds to the model. In a copy of the source that serves for recording only, each control token is made a user-defined
one, which is always found, under a spelling of equal length that llama.cpp does not know as a control token's (it
makes those control tokens again). Ids and weights stay; the text is written in the new spelling.
"""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

from miyabi_llm.gguf import Header

CONTROL, USER_DEFINED = 3, 4  # llama.cpp's llama_token_type
_ARRAY, _STRING, _I32 = 9, 8, 5  # GGUF's types of values
_TOKENS, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"


def respell(head: bytearray) -> dict[str, str]:
    """Change a GGUF header in place; old spelling -> new one. Empty when it has no tokens or types, or no control.

    A token without letters, or whose new spelling another token has, is left as it is.
    """
    texts, types = _start(head, _TOKENS, _STRING), _start(head, _TYPES, _I32)
    if texts is None or types is None or texts[1] != types[1]:
        return {}
    places, at = [], texts[0]
    for _ in range(texts[1]):
        (size,) = struct.unpack_from("<Q", head, at)
        places.append((at + 8, size))
        at += 8 + size
    taken = {bytes(head[a : a + n]) for a, n in places}
    found = {}
    for i, (a, n) in enumerate(places):
        where = types[0] + 4 * i
        old = bytes(head[a : a + n])
        new = old.swapcase()  # of ASCII letters only, so the length stays
        if struct.unpack_from("<i", head, where) == (CONTROL,) and new not in taken:
            head[a : a + n] = new
            struct.pack_into("<i", head, where, USER_DEFINED)
            found[old.decode("utf-8", "replace")] = new.decode("utf-8", "replace")
    return found


def _start(head: bytearray, key: str, kind: int) -> tuple[int, int] | None:
    """Where the items of an array begin, and how many there are."""
    name = key.encode()
    mark = struct.pack("<Q", len(name)) + name + struct.pack("<II", _ARRAY, kind)
    at = head.find(mark)
    if at < 0 or head.find(mark, at + 1) >= 0:
        return None
    (count,) = struct.unpack_from("<Q", head, at + len(mark))
    return at + len(mark) + 8, count


def spell(text: str, spelling: Mapping[str, str]) -> str:
    """`text` with every old spelling replaced, the longest first."""
    if not spelling:
        return text
    words = sorted(spelling, key=len, reverse=True)
    return re.sub("|".join(re.escape(w) for w in words), lambda m: spelling[m[0]], text)


def copy(first: Path, files: Mapping[str, Path], header: Header, folder: Path) -> tuple[Path, dict[str, str]]:
    """A copy of the model for recording and its spelling; of a model in parts only the first is copied.

    The copy is the whole file, shared with the original where the filesystem can. Raises OSError.
    """
    folder.mkdir()
    for name, path in files.items():
        if path.absolute() != first:
            (folder / name).symlink_to(path.absolute())
    target = folder / first.name
    shutil.copyfile(first, target)
    with target.open("r+b") as f:
        head = bytearray(f.read(header.data_offset))
        spelling = respell(head)
        f.seek(0)
        f.write(head)
    return target, spelling
