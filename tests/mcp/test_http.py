"""Streamable HTTP: who is let in, and that a client that goes away is a cancelled call."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import httpx
import pytest
from mcp import Client

from miyabi_llm.errors import BadUsage
from miyabi_llm.mcp.http import Place
from miyabi_llm.types import Secret
from tests.mcp.clients import call, over
from tests.mcp.pipe import HELLO, PATIENCE_S, ROOT

INIT = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO}
TYPES = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
TOKEN = "a-token-of-the-test-0123456789"


@contextmanager
def serving(home: Path, *options: str) -> Iterator[str]:
    """The product's server on a port of its own, with a home of its own; its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "miyabi_llm", "mcp", "--http", "0", "--json", *options],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "A_TOKEN": TOKEN, "MIYABI_HOME": str(home)},
    )
    assert process.stdout is not None
    try:
        text = ""
        while not text.rstrip().endswith("}"):
            line = process.stdout.readline()
            assert line, "it ended"
            text += line
        yield json.loads(text)["url"]
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) in (0, -15, 143)
        process.stdout.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("home")) as found:
        yield found


def post(url: str, **headers: str) -> httpx.Response:
    return httpx.post(url, json=INIT, headers={**TYPES, **headers}, timeout=PATIENCE_S, trust_env=False)


def test_both_eras(url: str) -> None:
    async def work(client: Client) -> None:
        tools = (await client.list_tools()).tools
        five = {"ollama_generate", "llama_cpp_generate", "vllm_generate", "model_switch", "health_check"}
        more = {"local_generate", "list_models", "route_explain", "batch_generate"}
        assert {t.name for t in tools} == five | more
        assert all(t.output_schema and t.input_schema["type"] == "object" for t in tools)
        assert all(t.annotations is not None and t.annotations.open_world_hint is False for t in tools)
        assert (await call(client, "list_models"))["models"] == []

    for mode in ("legacy", "2026-07-28"):
        over(work, url, mode=mode)


def test_hosts_and_origins_of_others_are_refused(url: str) -> None:
    port = httpx.URL(url).port
    assert post(url).status_code == 200
    assert post(url, host="evil.example").status_code == 421
    assert post(url, host=f"127.0.0.1.evil.example:{port}").status_code == 421
    for origin in ("http://evil.example", "null", "https://127.0.0.1", f"http://127.0.0.1.evil.example:{port}"):
        assert post(url, origin=origin).status_code == 403, origin
    assert post(url, origin=f"http://127.0.0.1:{port}").status_code == 200
    plain = httpx.post(url, content=json.dumps(INIT), headers={"content-type": "text/plain"}, timeout=PATIENCE_S)
    assert plain.status_code in (400, 406, 415)  # what a page may send without a preflight
    assert "access-control-allow-origin" not in httpx.options(url, headers={"origin": "http://evil.example"}).headers


def test_two_host_headers_are_refused_before_the_body(url: str) -> None:
    at = httpx.URL(url)
    with socket.create_connection((at.host, at.port), timeout=PATIENCE_S) as raw:
        raw.sendall(f"POST /mcp HTTP/1.1\r\nHost: {at.host}:{at.port}\r\nHost: evil.example\r\n".encode())
        raw.sendall(b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
        assert raw.recv(100).split(b" ")[1] == b"400"


def test_a_token_is_wanted_on_every_request(tmp_path: Path) -> None:
    with serving(tmp_path, "--token-env", "A_TOKEN") as url:
        answers = {post(url, **headers).text for headers in ({}, {"authorization": f"Basic {TOKEN}"})}
        for wrong in ("Bearer", "Bearer wrong", f"Bearer {TOKEN}x", f"bearer  {TOKEN}", TOKEN):
            answer = post(url, authorization=wrong)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), wrong
            answers.add(answer.text)
        assert len(answers) == 1  # nothing tells one wrong token from another
        assert httpx.get(url, headers=TYPES, timeout=PATIENCE_S).status_code == 401
        assert post(url, authorization=f"Bearer {TOKEN}").status_code == 200


def test_others_need_a_token(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.7"):
        with pytest.raises(BadUsage, match="needs a token"):
            Place(host).check()
        Place(host, token=Secret("x")).check()
    command = [sys.executable, "-m", "miyabi_llm", "mcp", "--http", "0", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--token-file" in done.stderr
    readable = tmp_path / "token"
    readable.write_text("abc")
    readable.chmod(0o644)
    done = subprocess.run(
        [*command, "--token-file", str(readable)], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 1
    assert "can be read by others" in done.stderr


def test_the_names_it_may_be_called_by() -> None:
    wild = Place("0.0.0.0", token=Secret("x"), names=("gpu.lan",)).security()
    assert "gpu.lan:*" in wild.allowed_hosts
    assert "0.0.0.0:*" not in wild.allowed_hosts
    assert wild.enable_dns_rebinding_protection


def test_a_client_that_goes_away_is_a_cancelled_call(tmp_path: Path) -> None:
    """The fixture's slow tool marks its end; the client closes its connection."""
    mark, port = tmp_path / "mark", free_port()
    server = subprocess.Popen([sys.executable, "-m", "tests.mcp.noisy", "--http", str(port)], cwd=ROOT)
    try:
        url = f"http://127.0.0.1:{port}/mcp"

        async def work(client: Client) -> None:
            with anyio.move_on_after(PATIENCE_S) as scope:

                async def seen(done: float, total: float | None, message: str | None) -> None:
                    scope.cancel()

                await client.call_tool("slow", {"mark": str(mark)}, progress_callback=seen)
            deadline = anyio.current_time() + PATIENCE_S
            while not mark.exists() and anyio.current_time() < deadline:
                await asyncio.sleep(0.05)
            assert mark.exists()

        wait_for(port)
        for mode in ("legacy", "2026-07-28"):
            mark.unlink(missing_ok=True)
            over(work, url, mode=mode)
    finally:
        server.terminate()
        server.wait(PATIENCE_S)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            anyio.run(anyio.sleep, 0.1)
    raise AssertionError("nobody listens")
