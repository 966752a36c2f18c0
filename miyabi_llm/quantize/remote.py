"""A model that is not here, as far as its first bytes tell: enough to plan with, and nothing to quantize.

llama-quantize plans from a header alone when the file behind it has the right length, so a file of that length is made
of which only the header has bytes (llama.cpp's --dry-run, run here with sparse files).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from miyabi_llm import gguf
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage
from miyabi_llm.gguf import Header
from miyabi_llm.quantize.source import Source
from miyabi_llm.refs import ModelRef
from miyabi_llm.shards import join
from miyabi_llm.sources import peek
from miyabi_llm.sources.base import Source as Origin
from miyabi_llm.sources.hf import HfSource
from miyabi_llm.types import RemoteFile

FULL = ("BF16", "F16", "F32")  # which file of a repository a quantization should start from, the smallest first
REMOTE = ("hf", "https", "ollama")  # schemes whose files have beginnings to fetch


@contextmanager
def peeked(ref: ModelRef, settings: Settings) -> Iterator[Source]:
    """The model at its source for as long as the block lasts, its header fetched and no weight.

    Raises BadUsage when there is no GGUF file, ModelMissing, NetworkError, Corrupt.
    """
    origin, files = _files(ref, settings)
    settings.cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="plan-", dir=settings.cache) as folder:
        paths, headers = dict[str, Path](), dict[str, Header]()
        for file in files:
            header, head = peek.beginning(origin, file, _head)
            name = file.name.rpartition("/")[2]
            paths[name], headers[name] = Path(folder) / name, header
            with paths[name].open("wb") as f:
                f.write(head)
                f.truncate(header.size)
        yield Source(ref, None, paths, join(headers))


def _head(data: bytes, size: int) -> tuple[Header, bytes]:
    header = gguf.read(data, size)
    return header, data[: header.data_offset]


def _files(ref: ModelRef, settings: Settings) -> tuple[Origin, tuple[RemoteFile, ...]]:
    """The files of the model that is meant; of a hub repository that does not say which, the one at full precision."""
    origin = peek.in_order(ref.scheme, settings)
    if isinstance(origin, HfSource) and not ref.file and not ref.quant:
        quants = {v.quant: files for v, files in origin.variants(ref)}
        if named := next((quants[kind] for kind in FULL if kind in quants), None):
            return origin, named
    files = tuple(f for f in origin.list(ref).files if peek.is_model(f.name))
    if not files:
        raise BadUsage(
            f"{ref} has no GGUF file: its sizes are known when it is here",
            hint=f"`miyabi-llm quantize {ref} --pull --plan` brings it first.",
        )
    return origin, files
