"""The published images of the backends, by name only: which version runs is for the person who runs it. Pure."""

from __future__ import annotations

from dataclasses import replace

from miyabi_llm.errors import BadUsage
from miyabi_llm.generate.values import Image

PIN = "pin the image: --image NAME:TAG@sha256:…, else each start may run another version"
_PYTHON = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)"

_LLAMA_CPP = Image(
    "ghcr.io/ggml-org/llama.cpp:server",
    "LLAMA_API_KEY",
    ("curl", "-fsS", "-o", "/dev/null"),
    key_option="--api-key-file",
)
_VLLM = Image(
    "docker.io/vllm/vllm-openai:latest",
    "VLLM_API_KEY",
    ("python3", "-c", _PYTHON),
    entry=("vllm", "serve"),
    shared_memory=True,
)


def image(backend: str, name: str | None, gpus: int) -> Image:
    """The image of a backend, or the one called `name` in its place. Raises BadUsage where there is none for it."""
    if backend == "llama-cpp":
        usual = "ghcr.io/ggml-org/llama.cpp:server-cuda" if gpus else _LLAMA_CPP.name
        return replace(_LLAMA_CPP, name=name or usual)
    if backend == "vllm":
        if not gpus and name is None:
            raise BadUsage(f"{_VLLM.name} wants a GPU", hint="Give --gpus N, or a build for CPUs with --image.")
        return replace(_VLLM, name=name or _VLLM.name)
    raise BadUsage(
        f"no container is made for {backend}",
        hint="Use --backend llama-cpp or vllm, or --generate systemd, which runs any backend.",
    )


def arguments(backend: str, argv: tuple[str, ...]) -> tuple[str, ...]:
    """A plan's command line as the image's server takes it: without the program, and without what only we install."""
    words = list(argv[argv.index("--model") :])
    if backend == "vllm":
        words = words[1:]  # `vllm serve` takes the model as its first word
        while "--middleware" in words:  # ours, and not in the image
            del words[words.index("--middleware") : words.index("--middleware") + 2]
    return tuple(words)
