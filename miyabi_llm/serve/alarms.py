"""What is wrong with a server that is up: loud, and with the fix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from miyabi_llm.types import Finding

MIB: Final = 1 << 20
SWAPPED: Final = 16 * MIB  # less is the kernel's housekeeping
LEAST_FREE: Final = 256 * MIB
_OFFLOADED: Final = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_THREADS: Final = re.compile(r"system_info: n_threads = (\d+)")
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Seen:
    """How a ready server stands, as far as it can be told; None where it cannot.

    `gpus` is how many cards the machine has, `offloaded` the layers on them of `layers`; `gpu_bytes` and `bytes` what
    of the model lies on a card and in all. `asked_ctx` and `ctx` in tokens, `slots` that requests share it. `reused`
    is how many of `repeated` tokens came out of the prompt cache when the same prompt was sent again. `threads` it
    computes with, `cores` this process may use. `swapped` bytes of it, `free` bytes of the machine. `template`:
    whether the model has a chat template.
    """

    backend: str = ""
    gpus: int = 0
    offloaded: int | None = None
    layers: int | None = None
    gpu_bytes: int | None = None
    bytes: int | None = None
    on_cpu: bool | None = None
    asked_ctx: int | None = None
    ctx: int | None = None
    slots: int | None = None
    reused: int | None = None
    repeated: int | None = None
    cache_off: bool = False
    threads: int | None = None
    cores: int | None = None
    swapped: int = 0
    free: int | None = None
    template: bool | None = None


def alarms(seen: Seen) -> tuple[Finding, ...]:
    """Everything a person should know at once, gravest first. Pure."""
    return (*_gpu(seen), *_context(seen), *_memory(seen), *_cache(seen), *_threads(seen), *_template(seen))


def _gpu(s: Seen) -> Iterator[Finding]:
    if not s.gpus:
        return
    rebuild = {
        "llama-cpp": "miyabi-llm backend install llama-cpp",
        "vllm": "install vLLM for your card: this is a build for the processor",
        "ollama": "look at `ollama ps` and the server's log: its driver libraries are not found",
    }.get(s.backend, "use a build of the program for your card")
    if s.offloaded == 0 or s.on_cpu or (s.gpu_bytes == 0 and s.bytes):
        text = "the machine has a graphics card, and the model runs on the processor"
        yield Finding("gpu", "warn", text, rebuild)
    elif s.offloaded is not None and s.layers and s.offloaded < s.layers:
        text = f"{s.offloaded} of {s.layers} layers are on the graphics card, the rest on the processor"
        yield Finding("gpu", "warn", text, "a smaller file, a shorter --ctx or --kv q8_0 lets more of it fit")
    elif s.gpu_bytes is not None and s.bytes and s.gpu_bytes < s.bytes:
        share = f"{s.gpu_bytes / _GIB:.1f} of {s.bytes / _GIB:.1f} GiB"
        fix = "a smaller file or a shorter --ctx lets all of it fit"
        yield Finding("gpu", "warn", f"{share} are on the graphics card, the rest on the processor", fix)


def _context(s: Seen) -> Iterator[Finding]:
    if s.ctx is None or s.asked_ctx is None or s.ctx >= s.asked_ctx:
        return
    text = f"a request has {s.ctx} tokens of context, {s.asked_ctx} were asked for"
    if s.slots and s.slots > 1 and s.ctx * s.slots >= s.asked_ctx:
        text += f": {s.slots} slots share it"
        fix = f"--ctx {s.asked_ctx * s.slots}, or fewer slots"
    elif s.backend == "ollama":
        fix = "OLLAMA_CONTEXT_LENGTH of the server, or num_ctx of the model, is smaller"
    else:
        fix = "the model or the server's own options limit it: `miyabi-llm show` tells what it was trained for"
    yield Finding("context", "warn", text, fix, {"ctx": s.ctx, "asked": s.asked_ctx})


def _memory(s: Seen) -> Iterator[Finding]:
    fix = "a smaller file, a shorter --ctx or --kv q8_0; `miyabi-llm fit` says what fits"
    if s.swapped > SWAPPED:
        text = f"{s.swapped // MIB} MiB of the server are swapped out: it will crawl"
        yield Finding("swap", "warn", text, fix, {"swapped": s.swapped})
    if s.free is not None and s.free < LEAST_FREE:
        text = f"only {max(0, s.free) // MIB} MiB of memory are left: the next long prompt may end the server"
        yield Finding("memory", "warn", text, fix, {"free": s.free})


def _cache(s: Seen) -> Iterator[Finding]:
    if s.reused == 0 and s.repeated:
        text = "the prompt cache is off: the same prompt was computed twice"
        fix = "leave out --no-cache-prompt" if s.backend == "llama-cpp" else "switch the server's prefix cache on"
        yield Finding("prompt cache", "warn", text, fix)
    elif s.cache_off:
        text = "earlier prompts are not kept: conversations that take turns are computed anew"
        fix = "leave out --cache-ram 0" if s.backend == "llama-cpp" else "switch the server's prefix cache on"
        yield Finding("prompt cache", "warn", text, fix)


def _threads(s: Seen) -> Iterator[Finding]:
    if s.threads and s.cores and s.threads > s.cores:
        text = f"it computes with {s.threads} threads, there are {s.cores} cores for it: that is slower"
        yield Finding("threads", "warn", text, f"--threads {s.cores}")


def _template(s: Seen) -> Iterator[Finding]:
    if s.template is False:
        text = "a base model without a chat template: it continues text, it was not taught to answer"
        yield Finding("chat template", "warn", text, "take the model's instruct variant for chats")


@dataclass(frozen=True, slots=True)
class Said:
    """What a server's log tells of how it runs."""

    offloaded: int | None = None
    layers: int | None = None
    threads: int | None = None
    cache_off: bool = False
    on_cpu: bool | None = None


def read_llama(log: str) -> Said:
    """Out of llama-server's log (verbosity 4). A build without any card says nothing of layers: none are. Pure."""
    layers = _OFFLOADED.findall(log)
    threads = _THREADS.findall(log)
    told = "load_tensors:" in log
    return Said(
        offloaded=int(layers[-1][0]) if layers else 0 if told else None,
        layers=int(layers[-1][1]) if layers else None,
        threads=int(threads[-1]) if threads else None,
        cache_off="prompt cache is disabled" in log,
    )


def read_vllm(log: str) -> Said:
    """Out of vLLM's log: the engine says its configuration in one line. Pure."""
    device = re.findall(r"device_config=(?:device\(type=')?(\w+)", log)
    caching = re.findall(r"enable_prefix_caching=(True|False)", log)
    return Said(on_cpu=device[-1] == "cpu" if device else None, cache_off=bool(caching) and caching[-1] == "False")
