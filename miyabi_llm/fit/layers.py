"""How much of a model a graphics card takes: layer by layer, from the header. Pure."""

from __future__ import annotations

import re
from typing import Final

from miyabi_llm.fit.values import GpuLayers
from miyabi_llm.gguf import Header
from miyabi_llm.hardware import Gpu
from miyabi_llm.memory import MIB, Use, compute_bytes, layer_caches

GPU_MARGIN: Final = 1024 * MIB  # llama.cpp's own --fit leaves this much of a device
_BLOCK: Final = re.compile(r"blk\.(\d+)\.")


def gpu_layers(header: Header, gpu: Gpu, ctx: int, use: Use) -> GpuLayers:
    """What `--gpu-layers` may be at most on that card, with llama.cpp's margin left free.

    As llama.cpp counts (`i_gpu_start` in llama-model.cpp): first the output, then the last block, and so on towards
    the first; each block brings its part of the cache. The embedding stays in the machine's memory, and tied
    embeddings have a second copy on the card as the output. Working memory is needed from the first layer on.
    """
    blocks, output = block_bytes(header)
    caches = layer_caches(header, ctx, use)
    caches += [0] * (len(blocks) - len(caches))
    room = (gpu.memory_free or 0) - GPU_MARGIN - compute_bytes(header, ctx, use) - 4 * (header.vocab_size or 0)
    taken, count = 0, 0
    for size in (output, *(b + c for b, c in zip(reversed(blocks), reversed(caches[: len(blocks)]), strict=True))):
        if taken + size > room:
            break
        taken, count = taken + size, count + 1
    return GpuLayers(count, len(blocks) + 1, taken, gpu.name)


def block_bytes(header: Header) -> tuple[list[int], int]:
    """Bytes of each block's tensors, and of the output: its matrix, or the embedding it is tied to."""
    blocks = [0] * min(header.layers or 0, 4096)
    output = embedding = 0
    tied = True
    for t in header.tensors:
        if match := _BLOCK.match(t.name):
            if int(match[1]) < len(blocks):
                blocks[int(match[1])] += t.nbytes
        elif t.name.startswith("output"):
            output += t.nbytes
            tied = tied and t.name != "output.weight"
        elif t.name == "token_embd.weight":
            embedding = t.nbytes
    return blocks, output + (embedding if tied else 0)
