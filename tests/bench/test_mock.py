"""The server of known timing keeps its times, tells its own, and counts what it saw."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import urllib.request
from typing import Any

import pytest

from miyabi_llm.bench import mock as program
from miyabi_llm.bench.engine import Engine
from miyabi_llm.bench.selftest import busy
from miyabi_llm.bench.speech import read, request
from miyabi_llm.bench.values import Item, Load, Target
from tests.bench.wire import ASK, Asker, mock

ITEM = Item("i", ({"role": "user", "content": "x" * 200_000},))


def get(target: Target, path: str) -> Any:
    with urllib.request.urlopen(target.endpoint.base_url + path, timeout=10) as answer:
        return json.load(answer)


def test_tokens_leave_at_their_times_and_never_before() -> None:
    with mock("--ttft", "0.03", "--itl", "0.01", "--tokens", "5", "--per-chunk", "2") as target:
        with Engine([target]) as engine:
            run = engine.run(Load(concurrency=3, requests=6), asker := Asker(request(target, ITEM)))
        stats = get(target, "/stats")
    assert run.failed == 0
    for raw in asker.got:
        sample = read(raw, "openai-chat")
        assert (sample.ok, sample.text, sample.output_tokens, len(sample.times_ns)) == (True, "tok tok " * 5, 10, 5)
        written = [int(n) for n in re.findall(rb'"sent_ns":(\d+)', b"".join(p.data for p in raw.pieces))]
        assert len(written) == 5
        assert all(w - raw.sent_ns >= 30_000_000 + i * 10_000_000 for i, w in enumerate(written)), "never before"
        assert written == sorted(written)
        assert all(at >= w - 1_000_000 for at, w in zip(sample.times_ns, written, strict=True))
    assert (len(stats["arrivals"]), len(stats["ends"])) == (6, 6)
    assert 0 <= stats["late_p50"] <= stats["late_p99"]
    assert 0 < busy(stats, stats["arrivals"][0], stats["ends"][-1]) <= 3


def test_requests_in_pieces_and_in_a_row() -> None:
    with mock("--ttft", "0.001", "--itl", "0", "--tokens", "1") as target:
        port = int(target.endpoint.base_url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as sock:
            for part in (ASK[:10], ASK[10:-1], ASK[-1:] + ASK + ASK[:5], ASK[5:]):
                sock.sendall(part)
            heard = b""
            while heard.count(b"[DONE]") < 3:
                heard += sock.recv(1 << 16)
        assert heard.count(b"HTTP/1.1 200 OK") == 3
        assert get(target, "/v1/models")["data"][0]["id"] == "mock"
        assert len(get(target, "/stats")["arrivals"]) == 3
        get(target, "/reset")
        assert get(target, "/stats")["arrivals"] == []


def test_a_client_that_leaves_is_not_counted_in_flight() -> None:
    with mock("--ttft", "30", "--itl", "0", "--tokens", "1") as target:
        port = int(target.endpoint.base_url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(ASK)
            sock.recv(1 << 16)
        for _ in range(100):
            stats = get(target, "/stats")
            if stats["ends"]:
                break
        assert (len(stats["arrivals"]), len(stats["ends"])) == (1, 1)


def test_busy_is_the_mean_of_answers_in_flight() -> None:
    stats = {"arrivals": [0, 0, 50], "ends": [100, 60]}
    assert busy(stats, 0, 100) == pytest.approx((100 + 60 + 50) / 100)
    assert busy(stats, 60, 100) == pytest.approx(2)


def test_it_ends_with_its_parents_pipe() -> None:
    command = [sys.executable, str(program.__file__), "--watch"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        process.stdin.close()
        assert process.wait(10) == 0
