"""H9: whatever comes in and whatever a library prints, standard output carries JSON-RPC and nothing else."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.mcp.stdio import Reply, bounded, judge
from tests.mcp.pipe import HELLO, PATIENCE_S, ROOT, Pipe

NOISY = ["-m", "tests.mcp.noisy"]
PRODUCT = ["-m", "miyabi_llm", "mcp"]


@pytest.fixture
def noisy() -> Iterator[Pipe]:
    with Pipe(NOISY) as pipe:
        pipe.hello()
        yield pipe


def code(answer: dict[str, Any]) -> int:
    return int(answer["error"]["code"])


def test_H9_stray_prints_go_to_standard_error(noisy: Pipe) -> None:
    noisy.call(1, "noise")
    assert noisy.answer(1)["result"]["structuredContent"] == {"result": "done"}
    assert noisy.eof() == 0
    assert noisy.rest() == []
    for text in (b"a library says hello", b"and again", b"straight to the descriptor", b"a child says hello"):
        assert text in noisy.errors


def test_H9_what_is_no_message_is_answered_and_forgotten(noisy: Pipe) -> None:
    for data, wanted, number in [
        (b"this is no JSON\n", -32700, None),
        (b"\xff\xfe\x00\n", -32700, None),
        (b"[" * 100_000 + b"\n", -32700, None),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]\n', -32600, None),
        (b"42\n", -32600, None),
        (b'{"jsonrpc":"1.0","id":7,"method":"ping"}\n', -32600, 7),
        (b'{"jsonrpc":"2.0","id":"x"}\n', -32600, "x"),
        (b'{"jsonrpc":"2.0","id":true,"method":4}\n', -32600, None),
    ]:
        noisy.raw(data)
        answer = noisy.message()
        assert (code(answer), answer["id"]) == (wanted, number), data[:50]
    noisy.raw(b"\n \n\r\n")  # blank lines are none
    noisy.send({"jsonrpc": "2.0", "id": 9, "method": "no/such/method"})
    assert code(noisy.answer(9)) == -32601
    noisy.send({"jsonrpc": "2.0", "method": "no/such/notification"})
    noisy.send({"jsonrpc": "2.0", "id": 77, "result": {}})  # an answer to nothing that was asked
    noisy.send({"jsonrpc": "2.0", "id": 10, "method": "ping"})
    assert noisy.answer(10)["result"] == {}


def test_H9_a_line_without_end_is_refused_in_bounded_memory(noisy: Pipe) -> None:
    before = psutil.Process(noisy.process.pid).memory_info().rss
    for _ in range(64):
        noisy.raw(b"x" * (1 << 20))  # 64 MiB
    noisy.raw(b"\n")
    assert code(noisy.message()) == -32600
    grown = psutil.Process(noisy.process.pid).memory_info().rss - before
    assert grown < 56 << 20, f"{grown >> 20} MiB more"
    noisy.send({"jsonrpc": "2.0", "id": 1, "method": "ping"})
    assert noisy.answer(1)["result"] == {}


def test_H9_a_bug_names_its_log_and_an_error_its_next_step(noisy: Pipe) -> None:
    noisy.call(1, "bug")
    result = noisy.answer(1)["result"]
    text = result["content"][0]["text"]
    assert result["isError"]
    assert "KeyError" in text
    assert "stderr" in text
    assert "secret" not in text
    noisy.call(2, "missing")
    text = noisy.answer(2)["result"]["content"][0]["text"]
    assert "Run `miyabi-llm backend install ollama`." in text
    assert noisy.eof() == 0
    assert b"an inner secret" in noisy.errors  # the person who runs it finds the trace


def test_H9_cancel_reaches_the_tool_and_nothing_is_answered(noisy: Pipe, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    noisy.call(1, "slow", mark=str(mark))
    assert noisy.message()["params"]["progressToken"] == 1
    noisy.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})
    noisy.send({"jsonrpc": "2.0", "id": 2, "method": "ping"})
    assert noisy.answer(2)["result"] == {}
    assert until(mark.exists)
    assert noisy.eof() == 0


@pytest.mark.parametrize("end", ["eof", "SIGTERM", "SIGINT"])
def test_H9_the_end_cancels_what_runs(noisy: Pipe, tmp_path: Path, end: str) -> None:
    mark = tmp_path / "mark"
    noisy.call(1, "slow", mark=str(mark))
    noisy.message()
    if end == "eof":
        assert noisy.eof() == 0
    else:
        noisy.process.send_signal(getattr(signal, end))
        assert noisy.process.wait(PATIENCE_S) == 0
    assert mark.read_text() == "ended"


def test_H9_the_parent_is_killed_and_another_still_holds_the_pipe(tmp_path: Path) -> None:
    """The pipe stays open in this process: only a look at the parent tells."""
    read, write = os.pipe()
    told, out = tmp_path / "pid", tmp_path / "out"
    lines = [
        "import subprocess, sys, time, pathlib",
        f"out = open({str(out)!r}, 'wb')",
        f"p = subprocess.Popen([sys.executable, '-m', 'tests.mcp.noisy'], stdin={read}, stdout=out)",
        f"pathlib.Path({str(told)!r}).write_text(str(p.pid))",
        "time.sleep(3600)",
    ]
    parent = subprocess.Popen([sys.executable, "-c", "\n".join(lines)], pass_fds=[read], cwd=ROOT)
    try:
        assert until(lambda: told.exists() and told.read_text() != "")
        server = psutil.Process(int(told.read_text()))
        os.write(
            write, json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO}).encode() + b"\n"
        )
        assert until(lambda: out.read_bytes().endswith(b"\n"))  # it serves, and has seen its parent alive
        parent.kill()
        parent.wait()
        server.wait(PATIENCE_S)
    finally:
        parent.kill()
        os.close(read)
        os.close(write)


def test_the_reader_of_standard_output_goes() -> None:
    read, write = os.pipe()
    process = subprocess.Popen([sys.executable, *NOISY], stdin=subprocess.PIPE, stdout=write, cwd=ROOT)
    os.close(write)
    os.close(read)
    hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO}
    process.communicate(json.dumps(hello).encode() + b"\n", timeout=PATIENCE_S)
    assert process.returncode == 0


# what is missing first depends on whether vLLM is installed here
NO_VLLM = ("miyabi-llm backend install vllm", "miyabi-llm convert MODEL --to safetensors")


def test_H10_the_product_refuses_what_is_out_of_bounds(tmp_path: Path) -> None:
    with Pipe(PRODUCT, {"PATH": "/usr/bin:/bin"}) as pipe:
        said = pipe.hello()["result"]
        assert said["serverInfo"]["name"] == "miyabi-local-llm"
        refused = [
            ("llama_cpp_generate", {"prompt": "a", "max_tokens": 10**9}, "less than or equal to 32768"),
            ("llama_cpp_generate", {"prompt": ""}, "at least 1 character"),
            ("llama_cpp_generate", {"prompt": "a" * 1_000_001}, "at most 1000000"),
            ("local_generate", {"prompt": "a", "max_seconds": 10**9}, "less than or equal to 3600"),
            ("local_generate", {"prompt": "a", "model": "../../etc/passwd"}, "is a path"),
            ("local_generate", {"prompt": "a", "model": "/etc/passwd"}, "is a path"),
            ("local_generate", {"prompt": "a", "model": "qwen2.5-coder"}, "miyabi-llm pull"),
            ("local_generate", {"prompt": "a", "model": "x\ny"}, "control character"),
            ("batch_generate", {"prompts": ["a"] * 65}, "at most 64"),
            ("model_switch", {"model": "a", "backend": "openai"}, "'llama-cpp', 'vllm' or 'ollama'"),
            ("vllm_generate", {"prompt": "a"}, NO_VLLM),
            ("ollama_generate", {"prompt": "a"}, "ollama serve"),
        ]
        for number, (tool, arguments, words) in enumerate(refused):
            pipe.call(number, tool, **arguments)
            result = pipe.answer(number)["result"]
            assert result["isError"], (tool, arguments)
            text = result["content"][0]["text"]
            assert any(w in text for w in ((words,) if isinstance(words, str) else words)), (tool, text)
        assert pipe.eof() == 0
        assert pipe.rest() == []


def test_the_sdk_is_imported_for_this_command_alone() -> None:
    code = "import sys; from miyabi_llm.cli.app import COMMANDS; import miyabi_llm.cli.mcp; print('mcp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"


def test_initialize_says_what_the_newest_old_era_says() -> None:
    with Pipe(NOISY) as pipe:
        params = HELLO | {"protocolVersion": "1999-01-01"}
        pipe.send({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params})
        assert pipe.answer(1)["result"]["protocolVersion"].startswith("20")


@given(st.binary(max_size=300))
def test_any_line_is_judged(line: bytes) -> None:
    answer = judge(line.replace(b"\n", b" "))
    if answer is not None:
        assert json.loads(answer.text)["error"]["code"] in (-32700, -32600)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3)))
def test_json_that_is_no_message_is_an_invalid_request(value: Any) -> None:
    answer = judge(json.dumps(value).encode())
    assert answer is not None
    assert answer.code == -32600


@given(st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")), max_size=8), st.integers(1, 30))
def test_lines_are_bounded(lines: list[bytes], most: int) -> None:
    found = list(bounded(io.BytesIO(b"".join(line + b"\n" for line in lines)), most))
    assert len(found) == len(lines)
    for line, got in zip(lines, found, strict=True):
        if len(line) <= most:
            assert got == line + b"\n"
        else:
            assert isinstance(got, Reply)


def until(done: Any) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(done())
