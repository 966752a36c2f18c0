"""A host that is not there is given up soon and named once; one that was there is worth more patience."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import httpcore
import pytest

from miyabi_llm.errors import NetworkError
from miyabi_llm.refs import ModelRef
from miyabi_llm.sources.hf import CONNECT, HfSource
from miyabi_llm.sources.http import HttpSource
from miyabi_llm.sources.net import Wire
from miyabi_llm.sources.ollama import OllamaSource
from miyabi_llm.sources.tries import Limits
from tests.faultd import OK, Fault, Faultd
from tests.sources.wires import DATA, QUICK, Puller, settings

QUICKLY = Limits(backoff=0.002, backoff_most=0.01)


class Nobody(httpcore.NetworkBackend):
    """A network on which `error` is the answer to every call; remembers how long each was waited for."""

    def __init__(self, error: type[Exception] = httpcore.ConnectTimeout) -> None:
        self.error, self.waited = error, list[float | None]()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[object] | None = None,
    ) -> httpcore.NetworkStream:
        self.waited.append(timeout)
        raise self.error(f"nobody at {host}")


def no_name(host: str, port: int) -> list[str]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize("error", [httpcore.ConnectTimeout, httpcore.ConnectError])
def test_two_short_tries_for_a_host_that_does_not_answer(error: type[Exception], tmp_path: Path) -> None:
    nobody = Nobody(error)
    wire = Wire(resolve=lambda host, port: ["93.184.215.14"], backend=nobody)
    source = HttpSource(settings(tmp_path), replace(QUICKLY, wire=wire))
    with pytest.raises(NetworkError, match=r"cannot be reached: .* \(2 times\)") as e:
        source.list(ModelRef.parse("https://far.example/d/m.gguf"))
    assert len(nobody.waited) == 2
    assert all(t is not None and t <= 3 for t in nobody.waited)
    assert e.value.message.count("m.gguf") == 1


def test_a_name_that_does_not_resolve(tmp_path: Path) -> None:
    asked = []
    wire = Wire(resolve=lambda host, port: asked.append(host) or no_name(host, port))
    made = settings(tmp_path, ollama_registry="https://registry.example")
    source = OllamaSource(made, replace(QUICKLY, wire=wire))
    with pytest.raises(NetworkError, match="cannot be resolved") as e:
        source.list(ModelRef.parse("ollama:tiny:1b"))
    assert asked == ["registry.example"] * 2
    assert e.value.message.count("tiny:1b") == 1


def test_the_hub_that_is_not_there_is_given_up_soon_and_named_once(tmp_path: Path) -> None:
    with Faultd() as gone:
        url = gone.url
    name = "hf:Org/Repo-GGUF@0123456789012345678901234567890123456789/repo-q4_k_m.gguf"
    started = time.monotonic()
    with pytest.raises(NetworkError, match=r"\(2 times\)") as e:
        HfSource(settings(tmp_path, hf_endpoint=url)).list(ModelRef.parse(name))
    assert time.monotonic() - started < 5
    assert e.value.message.startswith(f"{name}: {url} does not answer: ")
    assert e.value.message.count("Repo-GGUF") == 1


def test_the_hub_that_swallows_calls_is_given_up_soon(tmp_path: Path) -> None:
    """A listener whose queue is full drops further calls, as a firewall would."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = []
        for _ in range(3):
            caller = socket.socket()
            caller.setblocking(False)
            assert caller.connect_ex(full.getsockname()) in (0, errno.EINPROGRESS)
            waiting.append(caller)
        started = time.monotonic()
        try:
            made = settings(tmp_path, hf_endpoint=f"http://127.0.0.1:{full.getsockname()[1]}")
            source = HfSource(made, replace(QUICK, absent=1))
            with pytest.raises(NetworkError, match="does not answer"):
                source.list(ModelRef.parse("hf:a/b"))
        finally:
            for caller in waiting:
                caller.close()
    assert time.monotonic() - started < CONNECT + 2


def test_a_host_that_goes_away_for_a_while_is_waited_for(tmp_path: Path) -> None:
    """Bytes came from it: more tries than for one that never was there."""
    backend = Flaky(2)
    with Faultd() as server:
        server.put("/m.gguf", DATA)
        server.script("/m.gguf", OK, Fault(cut=1000))
        puller = Puller(tmp_path)
        limits = replace(QUICK, connections=1, absent=1, wire=Wire(stall=0.4, backend=backend))
        assert puller.pull(server.url + "/m.gguf", limits=limits) == DATA
    assert backend.refused == 2


class Flaky(httpcore.NetworkBackend):
    """Loopback, which refuses the second and the following calls, `refusals` in all."""

    def __init__(self, refusals: int) -> None:
        self.left, self.calls, self.refused = refusals, 0, 0

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[object] | None = None,
    ) -> httpcore.NetworkStream:
        self.calls += 1
        if self.calls > 1 and self.refused < self.left:
            self.refused += 1
            raise httpcore.ConnectError("refused")
        return httpcore.SyncBackend().connect_tcp(host, port, timeout)


def test_every_address_of_a_name_is_called(tmp_path: Path) -> None:
    nobody = Nobody()
    many = [f"93.184.215.{i}" for i in range(1, 4)]
    wire = Wire(connect=0.02, resolve=lambda host, port: many, backend=nobody)
    with pytest.raises(NetworkError):
        HttpSource(settings(tmp_path), replace(QUICKLY, absent=1, wire=wire)).list(
            ModelRef.parse("https://far.example/m.gguf")
        )
    assert nobody.waited == [0.02] * 3
