"""Who may ask, and how: rows H1 to H4, H7 and H8 of the fault table, and the limits of G13 and G14."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from miyabi_llm.gateway import door
from miyabi_llm.gateway.front import POSTS
from miyabi_llm.gateway.values import Order
from tests import clauded
from tests.gateway.house import HELLO, House, environment, free_port, policy, running

KEY = "client-key-0123456789abcdef"
GETS = ("/v1/models", "/models", "/v1/models/x", "/slots", "/miyabi/status", "/miyabi/events", "/api/tags", "/api/ps")
CANARY = "sk-ant-canary-7f3a9c1e"


@pytest.fixture(scope="module")
def claude() -> Iterator[clauded.Clauded]:
    with clauded.serving() as server:
        yield server


@pytest.fixture(scope="module")
def house(claude: clauded.Clauded) -> Iterator[House]:
    with running(policy(f"claude claude {claude.url}", mode="claude"), key=KEY) as found:
        yield found


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1])


def head(path: str, *more: str, host: str = "127.0.0.1", key: str = KEY, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", f"authorization: Bearer {key}", "connection: close"]
    return "\r\n".join([*lines, *more, "", ""]).encode()


JSON_HEAD = ("content-type: application/json", "content-length: 2")


@pytest.mark.parametrize("name", ["evil.com", "127.0.0.1.evil.com", "localhost.evil.com", "192.168.1.5", "", "a b"])
def test_H1_another_host(house: House, name: str) -> None:
    assert status(house.raw(head("/v1/messages", *JSON_HEAD, host=name))) in (400, 421)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST:8484", "[::1]:80", "localhost."])
def test_H1_our_own_names(house: House, name: str) -> None:
    assert status(house.raw(head("/health", host=name, method="GET"))) == 200


def test_H1_two_hosts_none_and_another_form(house: House) -> None:
    for data in (
        head("/v1/messages", "host: 127.0.0.1", *JSON_HEAD),
        b"POST /v1/messages HTTP/1.1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        head("http://evil.com/v1/messages", *JSON_HEAD),
        b"CONNECT evil.com:443 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    ):
        assert status(house.raw(data)) in (400, 421)


@pytest.mark.parametrize("origin", ["http://evil.com", "null", "https://127.0.0.1", "http://localhost:9999"])
def test_H2_pages_of_others(house: House, origin: str, claude: clauded.Clauded) -> None:
    before = len(claude.asked)
    for method in ("POST", "GET", "OPTIONS"):
        said = {"origin": origin, "access-control-request-method": "POST"}
        answer = house.http.request(method, "/v1/messages", headers=said, json=HELLO)
        assert answer.status_code == 403
        assert not [h for h in answer.headers if h.startswith("access-control-")]
    assert house.http.get("/miyabi/status", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert len(claude.asked) == before


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_H2_a_form_is_no_request(house: House, kind: str) -> None:
    answer = house.http.post("/v1/messages", content=b"{}", headers={"content-type": kind})
    assert answer.status_code == 415


@pytest.mark.parametrize("host", ["0.0.0.0", pytest.param("::", marks=pytest.mark.slow)])
def test_H3_no_open_door_without_a_key(host: str, tmp_path: Path) -> None:
    env = environment(MIYABI_HOME=str(tmp_path), MIYABI_CONFIG=str(tmp_path))
    ran = subprocess.run(
        [sys.executable, "-m", "miyabi_llm", "gateway", "--host", host],
        env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "needs a key" in ran.stderr


def test_H4_every_route_wants_the_key(house: House, claude: clauded.Clauded) -> None:
    """Without a key, with a wrong one, with one of another kind: the same answer, before the body is read."""
    before = len(claude.asked)
    with httpx.Client(base_url=house.url, trust_env=False) as http:
        basic = base64.b64encode(b"x:wrong").decode()
        bad = ({}, {"authorization": f"Bearer {KEY[:-1]}"}, {"authorization": f"Bearer {KEY} x"}, {"x-api-key": "x"})
        worse = ({"authorization": f"Basic {basic}"}, {"authorization": f"Digest {KEY}"}, {"cookie": f"key={KEY}"})
        for method, paths in (("POST", sorted(POSTS)), ("GET", GETS), ("DELETE", ("/v1/models",)), ("GET", ("/x",))):
            for path in paths:
                answers = [http.request(method, path, headers=h, json=HELLO) for h in (*bad, *worse)]
                assert {a.status_code for a in answers} == {401}, path
                assert len({a.text for a in answers}) == 1
        assert http.get("/health").json() == {"status": "ok"}
        for good in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
            assert http.get("/v1/models", headers=good).status_code == 200
        password = base64.b64encode(f"me:{KEY}".encode()).decode()
        assert http.get("/miyabi/status", headers={"authorization": f"Basic {password}"}).status_code == 200
        assert http.get("/v1/models", headers={"authorization": f"Basic {password}"}).status_code == 401
        assert "basic" in http.get("/miyabi/status").headers["www-authenticate"].lower()
    assert len(claude.asked) == before


def test_G14_limits_of_a_request(house: House) -> None:
    big = f"content-length: {1 << 40}"
    assert status(house.raw(head("/v1/messages", "content-type: application/json", big))) == 413
    assert status(house.raw(head("/v1/messages", f"x-big: {'x' * 100_000}", *JSON_HEAD))) == 400
    assert status(house.raw(head("/" + "x" * 100_000, *JSON_HEAD))) == 400
    assert status(house.raw(head("/v1/messages", *(f"x-{i}: 1" for i in range(300)), *JSON_HEAD))) == 400
    for more in (
        ("content-length: 5", "content-length: 6"),
        ("content-length: -1",),
        ("content-length: x",),
        ("transfer-encoding: chunked", "content-length: 5"),
        ("transfer-encoding: chunked, identity",),
        ("bad header",),
    ):
        data = house.raw(head("/v1/messages", "content-type: application/json", *more) + b"5\r\nhello\r\n0\r\n\r\n")
        assert status(data) == 400, more
    gzip = head("/v1/messages", "content-type: application/json", "content-encoding: gzip", "content-length: 2")
    assert status(house.raw(gzip + b"{}")) == 415
    assert status(house.raw(head("/v1/messages", "upgrade: websocket", *JSON_HEAD) + b"{}")) == 400


def test_G14_a_body_that_does_not_come(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "BODY_S", 0.3)
    begin = time.monotonic()
    data = house.raw(head("/v1/messages", "content-type: application/json", "content-length: 100") + b'{"mod')
    assert status(data) == 408
    assert time.monotonic() - begin < 15


def test_G14_a_body_that_breaks_off(house: House, claude: clauded.Clauded) -> None:
    before = len(claude.asked)
    with socket.create_connection(("127.0.0.1", house.port)) as s:
        s.sendall(head("/v1/messages", "content-type: application/json", "content-length: 100") + b'{"model"')
    with socket.create_connection(("127.0.0.1", house.port)) as s:
        s.sendall(head("/v1/messages", "content-type: application/json", "transfer-encoding: chunked") + b"5\r\n{}")
        s.shutdown(socket.SHUT_WR)
        s.recv(1 << 12)
    assert house.http.get("/health").status_code == 200
    assert len(claude.asked) == before


def test_G13_too_many_at_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "BUSY", 0)
    answer = house.messages()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_G13_a_thousand_connections(house: House) -> None:
    """They are all answered, and none is left in the books."""

    async def one(gate: asyncio.Semaphore) -> int:
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
            writer.write(head("/health", method="GET"))
            data = await reader.read()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            return status(data)

    async def all_() -> set[int]:
        gate = asyncio.Semaphore(300)
        return set(await asyncio.gather(*(one(gate) for _ in range(1000))))

    assert asyncio.run(all_()) == {200}
    assert house.gateway.status.busy == 0


def test_expect_continue_is_answered(house: House) -> None:
    data = b'{"model":"m","max_tokens":1,"messages":[]}'
    more = ("content-type: application/json", f"content-length: {len(data)}", "expect: 100-continue")
    with socket.create_connection(("127.0.0.1", house.port), timeout=20) as s:
        s.sendall(head("/v1/messages", *more))
        assert s.recv(100).startswith(b"HTTP/1.1 100")
        s.sendall(data)
        assert status(s.recv(1 << 16)) == 200


def test_what_is_not_there(house: House) -> None:
    for method, path, code in (
        ("GET", "/", 404), ("GET", "/v1/messages", 405), ("PUT", "/v1/messages", 405), ("POST", "/v1/x", 404),
        ("POST", "/v1/models", 405), ("GET", "/../etc/passwd", 404), ("POST", "/api/pull", 404),
    ):  # fmt: skip
        assert house.http.request(method, path, json=HELLO).status_code == code, path
    assert house.http.post("/v1/messages", json=HELLO, headers={"x-miyabi-probe": "1"}).status_code == 501
    assert house.http.post("/v1/chat/completions", json=[1]).json()["error"]["type"] == "invalid_request_error"


class Started:
    """The command `gateway` as a person starts it."""

    def __init__(self, home: Path, *words: str, **more: str) -> None:
        self.port = free_port()
        env = environment(MIYABI_HOME=str(home / "data"), MIYABI_CONFIG=str(home / "config"), **more)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "miyabi_llm", "gateway", "--port", str(self.port), *words],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.said = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if "Ctrl-C ends it" in line:
                return
        raise AssertionError(self.said)

    def ours(self) -> dict[str, psutil.Process]:
        """The processes of the gateway, by what they are."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return {
            c.cmdline()[-2]: c for c in found if "miyabi_llm.gateway.process" in c.cmdline() and "--" not in c.cmdline()
        }

    def stop(self) -> str:
        """End it as Ctrl-C does; all that it said."""
        self.process.send_signal(signal.SIGINT)
        rest, _ = self.process.communicate(timeout=60)
        self.said += rest
        return self.said


def test_H7_H8_the_processes(tmp_path: Path, claude: clauded.Clauded) -> None:
    """Started by its command: the key is in one process only, the way out is for one user only, and it all ends."""
    file = tmp_path / "policy.toml"
    file.write_text(policy(f"claude claude {claude.url}", mode="claude"))
    started = Started(tmp_path, "--policy", str(file), "--key", ANTHROPIC_API_KEY=CANARY)
    try:
        key = next((tmp_path / "data" / "run").glob("*.key")).read_text().strip()
        url, before = f"http://127.0.0.1:{started.port}", len(claude.asked)
        body = HELLO | {"stream": True}
        answer = httpx.post(f"{url}/v1/messages", json=body, headers={"x-api-key": key}, trust_env=False, timeout=30)
        assert answer.content == b"".join(clauded.pieces())
        assert claude.asked[before][1]["x-api-key"] == CANARY
        processes = started.ours()
        assert set(processes) == {"egress", "front"}
        assert CANARY not in str(processes["front"].environ())
        assert processes["egress"].environ()["ANTHROPIC_API_KEY"] == CANARY
        for pid in (
            started.process.pid,
            *(p.pid for p in psutil.Process(started.process.pid).children(recursive=True)),
        ):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
            assert CANARY not in words
            assert key not in words
        socket_file = Order.from_json(next((tmp_path / "data").rglob("order.json")).read_text()).socket
        assert stat.S_IMODE(os.stat(socket_file).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(socket_file.parent).st_mode) == 0o700
        status_ = httpx.get(f"{url}/miyabi/status", headers={"x-api-key": key}, trust_env=False).text
        files = [p for p in (tmp_path / "data").rglob("*") if p.is_file() and p.suffix != ".key"]
        assert files
        kept = "".join(p.read_bytes().decode("latin-1") for p in files)
        pids = [p.pid for p in processes.values()]
    finally:
        said = started.stop()
    for canary in (CANARY, key):
        assert canary not in said + status_ + kept
    assert not [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]
    assert started.process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["egress", "front"])
def test_when_one_process_dies_both_are_started_again(tmp_path: Path, claude: clauded.Clauded, victim: str) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(policy(f"claude claude {claude.url}", mode="claude"))
    started = Started(tmp_path, "--policy", str(file), ANTHROPIC_API_KEY=CANARY)
    try:
        before = started.ours()
        before[victim].kill()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError, psutil.Error):
                now = started.ours()
                if set(now) == {"egress", "front"} and not {p.pid for p in now.values()} & {
                    p.pid for p in before.values()
                }:
                    answer = httpx.post(f"http://127.0.0.1:{started.port}/v1/messages", json=HELLO, timeout=30)
                    if answer.status_code == 200:
                        break
            time.sleep(0.1)
        else:
            raise AssertionError("it did not come back")
    finally:
        started.stop()


def test_it_is_a_server_like_every_other(tmp_path: Path, claude: clauded.Clauded) -> None:
    """Detached, listed, asked, stopped; and a dry run starts nothing."""
    file = tmp_path / "policy.toml"
    file.write_text(policy(f"claude claude {claude.url}", mode="claude"))
    env = environment(MIYABI_HOME=str(tmp_path / "data"), MIYABI_CONFIG=str(tmp_path), ANTHROPIC_API_KEY=CANARY)

    def run(*words: str) -> Any:
        command = [sys.executable, "-m", "miyabi_llm", *words, "--json"]
        ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert ran.returncode == 0, ran.stderr
        assert CANARY not in ran.stdout + ran.stderr
        return json.loads(ran.stdout)

    assert run("gateway", "--dry-run")["endpoint"]["model"] == "gateway"
    assert run("ps") == []
    info = run("gateway", "--detach", "--policy", str(file))
    try:
        assert [(s["name"], s["backend"], s["state"]) for s in run("ps")] == [("gateway", "gateway", "ready")]
        key = Path(info["endpoint"]["key_file"]).read_text().strip()
        url = info["endpoint"]["base_url"]
        answer = httpx.post(f"{url}/v1/messages", json=HELLO, headers={"x-api-key": key}, trust_env=False, timeout=30)
        assert answer.headers["x-miyabi-target"] == "claude"
        assert httpx.post(f"{url}/v1/messages", json=HELLO, trust_env=False).status_code == 401
    finally:
        run("stop", "gateway")
    assert run("ps") == []
