"""What the end of a run works with: llama.cpp's programs, found and never built in secret, and its converter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from miyabi_llm.config import Settings
from miyabi_llm.finetune.context import RunContext
from miyabi_llm.quantize.convert import Kit
from miyabi_llm.tools import converting, llama_cpp, quantizing
from miyabi_llm.tools.moment import Kitchen, moment
from miyabi_llm.tools.program import Program
from miyabi_llm.types import Adapter, Endpoint

CTX = 2048  # tokens of the server that a converted file is proved with
NEEDED = (quantizing.QUANTIZE, llama_cpp.SERVER)


def needed(ctx: RunContext) -> tuple[str, ...]:
    """The programs that this recipe's end needs."""
    return (*NEEDED, quantizing.PERPLEXITY) if ctx.recipe.export.max_kld is not None else NEEDED


def programs(names: tuple[str, ...], settings: Settings) -> Mapping[str, Program]:
    """The programs by name. Raises BackendMissing with the command that brings them."""
    return {name: llama_cpp.find(name, settings) for name in names}


def kitchen(ctx: RunContext) -> Kitchen:
    """With what a server of a moment runs. Raises BackendMissing."""
    ctx.run.work.mkdir(parents=True, exist_ok=True)
    return Kitchen(llama_cpp.find(llama_cpp.SERVER, ctx.settings), ctx.settings.env, ctx.run.work)


def kit(ctx: RunContext) -> Kit:
    """With what safetensors become a GGUF: the gates of `quantize`, a server of a moment to ask."""

    @contextmanager
    def start(model: Path, lora: tuple[Adapter, ...]) -> Iterator[Endpoint]:
        with moment(model, kitchen(ctx), CTX, lora) as server:
            yield Endpoint(server.url, "candidate", backend="llama-cpp")

    return Kit(
        ctx.store, ctx.settings, lambda hear: converting.get(ctx.settings, hear), start,
        lambda names: programs(names, ctx.settings), ctx.on_event,
    )  # fmt: skip
