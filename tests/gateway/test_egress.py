"""The way out: no permit, no byte; no record, no byte; and the process in front of it can reach nobody."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from miyabi_llm.gateway import cloud, hook, permit
from miyabi_llm.gateway.egress import Egress, clouds
from miyabi_llm.gateway.http1 import Failed
from miyabi_llm.gateway.permit import Desk, NoPermit, Permit
from miyabi_llm.route.values import Target, Upstream
from tests import clauded
from tests.gateway.house import environment

SEAL = b"k" * 32
BODY = b'{"model":"m","messages":[],"stream":false}'


Written = Callable[[str, str], bool]


def good(**changes: object) -> Permit:
    return replace(
        Permit(
            target="claude",
            path="/v1/messages",
            headers=(("content-type", "application/json"),),
            digest=permit.digest(BODY),
            verdict="PUBLIC",
            audit="r1",
            nonce="n1",
            expires=time.monotonic() + 25,
        ),
        **changes,  # type: ignore[arg-type]
    )


def test_a_permit_is_good_for_its_bytes_once() -> None:
    desk, text = Desk(SEAL), permit.sign(good(), SEAL)
    assert desk.check(text, BODY, time.monotonic()) == good(expires=permit.read(text, SEAL).expires)
    for number in range(100):
        desk.check(permit.sign(good(nonce=f"m{number}"), SEAL), BODY, time.monotonic())
    with pytest.raises(NoPermit, match="used"):
        desk.check(text, BODY, time.monotonic())


@pytest.mark.parametrize("verdict", ["INTERNAL", "CONFIDENTIAL", "public", ""])
def test_V4_no_permit_is_made_for_anything_but_public(verdict: str) -> None:
    with pytest.raises(NoPermit):
        permit.sign(good(verdict=verdict), SEAL)


def test_V4_no_permit_is_good_for_anything_else() -> None:
    text = permit.sign(good(), SEAL)
    cases: list[tuple[str, bytes, float]] = [
        (text, BODY + b" ", 0),
        (text, BODY, 31),
        (permit.sign(good(expires=time.monotonic() + 3600), SEAL), BODY, 0),
        (permit.sign(good(audit=""), SEAL), BODY, 0),
        (permit.sign(good(), b"other" * 8), BODY, 0),
        (text[:-1] + ("0" if text[-1] != "0" else "1"), BODY, 0),
        (text[5:], BODY, 0),
        ("", BODY, 0),
        ("ü.x", BODY, 0),
    ]
    for said, data, later in cases:
        with pytest.raises(NoPermit):
            Desk(SEAL).check(said, data, time.monotonic() + later)


def test_clouds_are_those_with_a_key() -> None:
    claude = Target("claude", "claude", Upstream("https://api.anthropic.com", dialects=("anthropic",)))
    other = Target("other", "claude", Upstream("https://x.example", dialects=("openai",), key_env="OTHER_KEY"))
    here = Target("here", "local", Upstream("http://127.0.0.1:1"))
    assert clouds((claude, other, here), {}) == {}
    found = clouds((claude, other, here), {"ANTHROPIC_API_KEY": "a", "OTHER_KEY": "b"})
    assert [(n, c.auth()) for n, c in found.items()] == [
        ("claude", (("x-api-key", "a"),)),
        ("other", (("authorization", "Bearer b"),)),
    ]
    assert clouds((claude,), {"ANTHROPIC_AUTH_TOKEN": "t"})["claude"].auth() == (("authorization", "Bearer t"),)
    assert "'a'" not in repr(found)


def sent(
    tmp_path: Path,
    server: clauded.Clauded,
    text: str,
    body: bytes,
    written: Written = lambda t, n: True,
) -> bytes:
    """What the process out answers to a permit, or Failed."""
    target = Target("claude", "claude", Upstream(server.url, dialects=("anthropic",)))

    async def run() -> bytes:
        sender = Egress(clouds((target,), {"ANTHROPIC_API_KEY": "a"}), SEAL, written)
        async with await asyncio.start_unix_server(sender.serve, str(tmp_path / "s")):
            answer = await cloud.send(tmp_path / "s", text, body)
            try:
                return await answer.read(1 << 20)
            finally:
                answer.close()
                sender.close()
                await asyncio.sleep(0.05)

    return asyncio.run(run())


def test_with_a_permit_it_is_sent_and_without_not_a_byte(tmp_path: Path) -> None:
    with clauded.serving() as server:
        assert b"Hello" in sent(tmp_path, server, permit.sign(good(), SEAL), BODY)
        assert server.connections == 1
        for text, body, written in (
            (permit.sign(good(), SEAL), BODY + b" ", True),
            (permit.sign(good(target="other"), SEAL), BODY, True),
            (permit.sign(good(), b"x" * 32), BODY, True),
            (permit.sign(good(), SEAL), BODY, False),
            ("", BODY, True),
        ):
            with pytest.raises(Failed) as e:
                sent(tmp_path, server, text, body, lambda t, n, w=written: w)  # type: ignore[misc]
            assert e.value.why == "permit"
        assert server.connections == 1


GUARDED = """
import asyncio, socket, subprocess, sys, os
from miyabi_llm.gateway import hook
hook.install(["10.9.0.0/16"], ["/tmp/ours.sock"])
def denied(what):
    try: what()
    except hook.EgressDenied: return True
    except OSError as e: return type(e).__name__
    return False
def tcp(host, port=9): return lambda: socket.create_connection((host, port), 0.01)
def dial(*address): return lambda: socket.socket().connect_ex(address)
def udp(host):
    return lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (host, 53))
def stream(host): return lambda: asyncio.run(asyncio.open_connection(host, 9))
def unix(path): return lambda: socket.socket(socket.AF_UNIX).connect(path)
out = {
  "tcp": denied(tcp("192.0.2.1")), "ex": denied(dial("192.0.2.1", 9)), "udp": denied(udp("192.0.2.1")),
  "six": denied(lambda: socket.socket(socket.AF_INET6).connect(("2001:db8::1", 9))),
  "mapped": denied(lambda: socket.socket(socket.AF_INET6).connect(("::ffff:192.0.2.1", 9))),
  "name": denied(tcp("example.com")), "lookup": denied(lambda: socket.gethostbyname("example.com")),
  "asyncio": denied(stream("192.0.2.1")), "wild": denied(tcp("0.0.0.0")),
  "unix": denied(unix("/tmp/other.sock")), "run": denied(lambda: subprocess.run(["true"])),
  "exec": denied(lambda: os.execv("/bin/true", ["true"])), "system": denied(lambda: os.system("true")),
  "spawn": denied(lambda: os.posix_spawn("/bin/true", ["true"], {})),
}
bad = [k for k, v in out.items() if v is not True]
fine = {
  "loop": denied(tcp("127.0.0.1", 1)), "localhost": denied(tcp("localhost", 1)),
  "lan": denied(dial("10.9.1.1", 9)) if False else "skipped", "ours": denied(unix("/tmp/ours.sock")),
}
bad += [k for k, v in fine.items() if v is True]
print(bad)
"""


def test_the_guarded_process_reaches_nobody(tmp_path: Path) -> None:
    """Each way out is denied by the interpreter itself; loopback and our own socket are not."""
    ran = subprocess.run(
        [sys.executable, "-c", GUARDED], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.stdout.strip(), ran.returncode) == ("[]", 0), ran.stderr


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.1.2.3", False),
        ("10.9.2.3", True), ("0.0.0.0", False), ("::", False), ("8.8.8.8", False), ("localhost", False),
        ("fe80::1%eth0", False), ("169.254.169.254", False), ("", False),
    ],
)  # fmt: skip
def test_what_counts_as_local(host: str, local: bool) -> None:
    assert hook.is_local(host, hook.networks(["10.9.0.0/16"])) is local
