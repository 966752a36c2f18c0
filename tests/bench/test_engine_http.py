"""What servers do on the wire, and what the load engine makes of it."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from miyabi_llm.bench.engine import Engine
from miyabi_llm.bench.engine.connection import KERNEL_STAMPS
from miyabi_llm.bench.values import Load, Raw, Run, Target
from miyabi_llm.types import Endpoint
from tests.bench.wire import BODY, OK, Asker, Wire, answers, serving

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
FEW = Load(concurrency=1, requests=3, timeout_s=5)


def measure(target: Target, load: Load = FEW, *, stamps: bool = True, asker: Asker | None = None) -> tuple[Run, Asker]:
    asker = asker or Asker()
    with Engine([target], stamps=stamps) as engine:
        run = engine.run(load, asker)
    assert len(asker.got) == len(asker.asked) == run.sent
    return run, asker


def body(raw: Raw) -> bytes:
    return b"".join(p.data for p in raw.pieces)


@pytest.mark.parametrize("stamps", [True, False])
@pytest.mark.parametrize(
    "parts",
    [
        (OK,),
        (OK[:40], OK[40:]),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", OK),
        (CHUNKED, b"%x\r\n%b\r\n" % (len(BODY), BODY), b"0\r\n\r\n"),
        (OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nmine",),  # nobody asked for the second
        (OK + b"and more",),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(BODY), BODY),
    ],
    ids=["one piece", "two pieces", "1xx", "chunked", "a second answer", "rubbish after it", "close"],
)
def test_whole_answers(parts: tuple[bytes, ...], *, stamps: bool) -> None:
    def handle(wire: Wire) -> None:
        while wire.heard():
            wire.say(*parts)

    with serving(handle) as target:
        run, asker = measure(target, stamps=stamps)
    assert [(r.status, body(r), r.error) for r in asker.got] == [(200, BODY, "")] * 3
    assert (run.failed, run.aborted) == (0, "")
    for raw in asker.got:
        assert raw.intended_ns <= raw.sent_ns <= raw.end_ns
        assert all(raw.sent_ns <= p.at for p in raw.pieces)


@pytest.mark.parametrize("stamps", [True, False])
def test_a_body_that_ends_with_its_connection(*, stamps: bool) -> None:
    def handle(wire: Wire) -> None:
        wire.heard()
        wire.say(b"HTTP/1.0 200 OK\r\n\r\n", BODY[:5], BODY[5:])

    with serving(handle) as target:
        run, asker = measure(target, stamps=stamps)
    assert [(r.status, body(r), r.error) for r in asker.got] == [(200, BODY, "")] * 3
    assert run.failed == 0


@pytest.mark.parametrize("stamps", [True, False])
@pytest.mark.parametrize(
    ("parts", "error", "status"),
    [
        ((), "broken", 0),
        ((b"HTTP/1.1 200 OK\r\ncontent-le",), "broken", 0),
        ((OK[:-5],), "cut", 200),
        ((CHUNKED, b"5\r\nab"), "cut", 200),
        ((b"SSH-2.0-OpenSSH_9.2\r\n",), "garbled", 0),
        ((b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",), "garbled", 0),
    ],
    ids=["nothing", "half a head", "half a body", "half a chunk", "another protocol", "upgrade"],
)
def test_lost_answers(parts: tuple[bytes, ...], error: str, status: int, *, stamps: bool) -> None:
    def handle(wire: Wire) -> None:
        if wire.heard():
            wire.say(*parts)

    with serving(handle) as target:
        run, asker = measure(target, stamps=stamps)
    assert [(r.error, r.status) for r in asker.got] == [(error, status)] * 3
    assert run.failed == 3


@pytest.mark.parametrize("stamps", [True, False])
def test_a_kept_connection_that_the_server_closes_is_no_error(*, stamps: bool) -> None:
    """It answers, then takes the next request on the same connection and closes without a word, as in the race."""

    def handle(wire: Wire) -> None:
        wire.heard()
        wire.say(OK)
        wire.heard()

    with serving(handle) as target:
        run, asker = measure(target, Load(concurrency=2, requests=20), stamps=stamps)
    assert (run.failed, len(asker.got)) == (0, 20)
    assert run.retried >= 8


def test_it_is_sent_again_only_once_and_only_unheard() -> None:
    def handle(wire: Wire) -> None:
        if wire.heard() and wire.number == 0:
            wire.say(OK)
            wire.heard()
            wire.say(b"HTTP/1.1 200")

    with serving(handle) as target:
        run, asker = measure(target)
    assert [r.error for r in asker.got] == ["", "broken", "broken"]
    assert run.retried == 0, "a byte of the answer came, or the connection was new"


def test_a_status_is_a_failure_with_its_words() -> None:
    def handle(wire: Wire) -> None:
        while wire.heard():
            wire.say(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nfull")

    with serving(handle) as target:
        run, asker = measure(target)
    assert [(r.status, body(r), r.error) for r in asker.got] == [(503, b"full", "")] * 3
    assert run.failed == 3


@pytest.mark.parametrize("stamps", [True, False])
def test_a_request_larger_than_any_buffer(*, stamps: bool) -> None:
    big = bytes(range(256)) * (1 << 14)  # 4 MiB
    heard: list[bytes] = []

    def handle(wire: Wire) -> None:
        time.sleep(0.05)  # the sender finds the buffers full
        while got := wire.heard():
            heard.append(got.partition(b"\r\n\r\n")[2])
            wire.say(OK)

    ask = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(big), big)
    with serving(handle) as target:
        run, _ = measure(target, Load(concurrency=1, requests=1, timeout_s=20), stamps=stamps, asker=Asker(ask))
    assert run.failed == 0
    assert heard == [big]


def test_an_answer_before_the_request_is_out_ends_the_connection() -> None:
    ask = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (1 << 23) + bytes(1 << 23)
    seen: list[int] = []

    def handle(wire: Wire) -> None:
        seen.append(wire.number)
        wire.sock.recv(1000)
        wire.say(b"HTTP/1.1 413 Large\r\ncontent-length: 0\r\n\r\n")
        time.sleep(0.3)

    with serving(handle) as target:
        _, asker = measure(target, Load(concurrency=1, requests=2, timeout_s=5), asker=Asker(ask))
    assert [r.status for r in asker.got] == [413, 413]
    assert len(seen) == 2, "the half-sent request would be taken for the next one"


def test_ipv6() -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError as e:
        pytest.skip(f"no IPv6 on this machine: {e}")
    with serving(answers, host="::1") as target:
        run, _ = measure(target)
    assert run.failed == 0


def test_a_name_with_two_addresses_of_which_one_answers() -> None:
    with serving(answers) as target:
        named = Target("t", Endpoint(target.endpoint.base_url.replace("127.0.0.1", "localhost"), "m"))
        run, _ = measure(named)
    assert run.failed == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://no-such-host.invalid:80", "http://" + "x" * 80 + ":80"])
def test_nobody_there(url: str) -> None:
    run, asker = measure(Target("t", Endpoint(url, "m")))
    assert asker.errors == ["connect"] * 3
    assert all(r.detail for r in asker.got)
    assert (run.failed, run.health.kernel_stamps) == (3, False)


def test_a_server_that_hangs() -> None:
    def handle(wire: Wire) -> None:
        wire.heard()
        wire.say(OK[:30])
        wire.heard()

    begin = time.monotonic()
    with serving(handle) as target:
        run, asker = measure(target, Load(concurrency=2, requests=2, timeout_s=0.3))
    assert asker.errors == ["timeout"] * 2
    assert run.failed == 2
    assert time.monotonic() - begin < 10


def test_connections_stay_open_from_run_to_run_and_stale_ones_are_noticed() -> None:
    wires: list[Wire] = []

    def handle(wire: Wire) -> None:
        wires.append(wire)
        answers(wire)

    with serving(handle) as target, Engine([target]) as engine:
        for _ in range(2):
            assert engine.run(FEW, Asker()).failed == 0
        assert len(wires) == 1
        wires[0].sock.shutdown(socket.SHUT_RDWR)  # the server's patience is over while nobody runs
        run = engine.run(FEW, Asker())
    assert (run.failed, run.retried, len(wires)) == (0, 0, 2)


@pytest.mark.skipif(not KERNEL_STAMPS, reason="no kernel receive times on this system")
def test_the_kernel_knows_when_a_piece_came_while_we_slept() -> None:
    """The loop is held for 80 ms while the answer comes: our clock says late, the kernel's stamp does not."""
    said: list[int] = []
    go = threading.Event()

    def handle(wire: Wire) -> None:
        while wire.heard():
            go.wait(5)
            said.append(time.perf_counter_ns())
            wire.say(OK)
            time.sleep(0.001)

    class Sleeper(Asker):
        def next(self, stream: int):  # type: ignore[no-untyped-def]
            if len(self.asked) == 1:
                threading.Timer(0.0, go.set).start()
                time.sleep(0.08)
            return super().next(stream)

    with serving(handle) as target:
        run, asker = measure(target, Load(concurrency=2, requests=2), asker=Sleeper())
    first = min(asker.got, key=lambda r: r.sent_ns)
    piece = first.pieces[-1]
    assert run.health.kernel_stamps
    assert piece.kernel_ns - min(said) < (piece.read_ns - min(said)) / 2
    assert run.health.clock_step < 0.001
