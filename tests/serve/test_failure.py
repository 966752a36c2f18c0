"""What a dead server's last words mean."""

from __future__ import annotations

import pytest

from miyabi_llm.errors import MachineLimit, MiyabiError, PortTaken, ServerFailed
from miyabi_llm.proc import Exit
from miyabi_llm.serve.failure import explain
from miyabi_llm.types import Endpoint, LaunchPlan

PLAN = LaunchPlan("llama-cpp", ("/opt/llama-server",), {}, Endpoint("http://127.0.0.1:8080", "tiny"))


@pytest.mark.parametrize(
    ("said", "kind", "words", "hint"),
    [
        (
            "error loading model: unknown model architecture: 'qwen9'",
            ServerFailed,
            "(qwen9)",
            "install",
        ),
        ("error: invalid argument: --frob", ServerFailed, "the option --frob", "--help"),
        (
            "error while loading shared libraries: libgomp.so.1: cannot open",
            ServerFailed,
            "(libgomp.so.1)",
            "install",
        ),
        ("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory", MachineLimit, "GPU", "--ctx"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", MachineLimit, "too little memory", "--ctx"),
        (
            "insufficient memory\nfailed to allocate buffer of size 1",
            MachineLimit,
            "memory",
            "fit",
        ),
        ("ggml_aligned_malloc: insufficient memory (attempted 52.28 MB)", MachineLimit, "too little memory", "--ctx"),
        ("GGML_ASSERT(x) failed\n#0  0x00 in y ()\n58\t../z.h: No such file", ServerFailed, "x) failed", "doctor"),
        ("start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080", PortTaken, "port 8080", "--port"),
        ("gguf_init_from_file_impl: failed to read magic", ServerFailed, "damaged", "verify tiny"),
        ("", ServerFailed, "exit code 1", "doctor"),
        ("something nobody has seen", ServerFailed, "| something nobody has seen", "doctor"),
    ],
)
def test_known_last_words(said: str, kind: type[MiyabiError], words: str, hint: str) -> None:
    error = explain(PLAN, Exit(code=1), said, ready=False)
    assert type(error) is kind
    assert words in error.message
    assert hint in (error.hint or "")
    assert error.details["log"] == said
    assert "0x00" not in error.message, "a debugger's stack is for the log"


@pytest.mark.parametrize(
    ("ended", "kind", "words"),
    [
        (Exit(signal=9, memory_kills=1), MachineLimit, "killed by the kernel: out of memory"),
        (Exit(signal=9, memory_kills=None), MachineLimit, "most likely for lack of memory"),
        (Exit(signal=9, memory_kills=0), ServerFailed, "killed by SIGKILL"),
        (Exit(signal=11), ServerFailed, "killed by SIGSEGV"),
        (Exit(signal=4), ServerFailed, "instructions this processor does not have"),
        (Exit(signal=9, lost=True, memory_kills=0), ServerFailed, "its guard was killed"),
    ],
)
def test_signals(ended: Exit, kind: type[MiyabiError], words: str) -> None:
    error = explain(PLAN, ended, "loading", ready=True)
    assert type(error) is kind
    assert words in error.message
    assert "tiny: llama-cpp died" in error.message


def test_only_the_last_lines_are_in_the_message() -> None:
    said = "\n".join(f"line {i}" for i in range(100))
    message = explain(PLAN, Exit(code=1), said, ready=False).message
    assert "line 99" in message
    assert "line 50" not in message
