"""A published build is installed only when every byte is the pinned one."""

import hashlib
import io
import os
import socket
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from miyabi_llm import hardware
from miyabi_llm.errors import BackendMissing, Corrupt, MiyabiError, NetworkError
from miyabi_llm.tools import installed, releases
from miyabi_llm.tools.install import World, install
from miyabi_llm.tools.llama_cpp import SERVER
from miyabi_llm.tools.lock import Asset, Lock
from miyabi_llm.types import Event, silent
from tests.tools.stubs import server, settings, source
from tests.tools.web import serving


def asset(body: bytes, base: str) -> Asset:
    here = hardware.look()
    name = f"{base}/b11312/llama-b11312-bin-test.tar.gz"
    sha = hashlib.sha256(body).hexdigest()
    return Asset(here.system, here.machine, "cpu", name, len(body), sha, "a test")  # type: ignore[arg-type]


def pack(tmp_path: Path, program: Path | None = None) -> bytes:
    """A release archive as published: one folder with programs and libraries, linked by name."""
    program = program or server(tmp_path / "made" / SERVER)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.add(program, f"llama-b11312/{SERVER}")
        lib = tarfile.TarInfo("llama-b11312/libllama.so.0")
        lib.size = 1 << 16
        tar.addfile(lib, io.BytesIO(os.urandom(1 << 16)))
        link = tarfile.TarInfo("llama-b11312/libllama.so")
        link.type, link.linkname = tarfile.SYMTYPE, "libllama.so.0"
        tar.addfile(link)
    return out.getvalue()


def world(tmp_path: Path, body: bytes, base: str) -> World:
    return World(pins=replace(source(tmp_path / "src.tar.gz"), assets=(asset(body, base),)))


@pytest.mark.parametrize("mode", ["good", "redirect"])
def test_a_pinned_build_is_installed_once(tmp_path: Path, mode: str) -> None:
    body, s = pack(tmp_path), settings(tmp_path)
    events: list[Event] = []
    with serving(body, mode) as (base, asked):
        program = install(s, events.append, world=world(tmp_path, body, base))
        first = len(asked)
        again = install(s, world=world(tmp_path, body, base))
    assert (program.how, program.build) == ("release", 11312)
    assert program.path.is_relative_to(s.cache)
    assert again == program
    assert len(asked) == first
    done = [e for e in events if e.kind == "progress"]
    assert done[-1].done == done[-1].total == len(body)
    assert not list(installed.root(s).glob(".new-*"))


@pytest.mark.parametrize(
    ("mode", "error"), [("flipped", Corrupt), ("longer", Corrupt), ("cut", NetworkError), ("404", NetworkError)]
)
def test_a_changed_build_installs_nothing(tmp_path: Path, mode: str, error: type[MiyabiError]) -> None:
    body, s = pack(tmp_path), settings(tmp_path)
    with serving(body, mode) as (base, _), pytest.raises(error) as e:
        install(s, source="release", world=world(tmp_path, body, base))
    assert "--from build" in str(e.value.hint)
    assert [p.name for p in installed.root(s).iterdir()] == [".lock"]


@pytest.mark.parametrize("kind", ["wrong machine", "no server"])
def test_a_build_that_does_not_run_here_is_not_installed(tmp_path: Path, kind: str) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xff\xfe" + bytes(200))
    other.chmod(0o755)
    body = pack(tmp_path, other)
    if kind == "no server":
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            tar.addfile(tarfile.TarInfo("README"))
        body = out.getvalue()
    s = settings(tmp_path)
    with serving(body) as (base, _), pytest.raises(BackendMissing):
        install(s, source="release", world=world(tmp_path, body, base))
    assert [p.name for p in installed.root(s).iterdir()] == [".lock"]


def test_offline_nothing_is_asked(tmp_path: Path) -> None:
    body, s = pack(tmp_path), settings(tmp_path, MIYABI_OFFLINE="1")
    with serving(body) as (base, asked), pytest.raises(NetworkError, match="offline"):
        install(s, source="release", world=world(tmp_path, body, base))
    assert asked == []


def test_no_pin_for_this_machine(tmp_path: Path) -> None:
    with pytest.raises(BackendMissing, match="no published build"):
        install(settings(tmp_path), source="release", world=World(pins=source(tmp_path / "s.tar.gz")))


def test_a_silent_network_is_known_in_seconds(tmp_path: Path) -> None:
    import httpx

    with socket.create_server(("127.0.0.1", 0), backlog=1) as deaf, httpx.Client(timeout=httpx.Timeout(0.3)) as client:
        start = time.monotonic()
        found = asset(b"x", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with pytest.raises(NetworkError):
            releases.fetch(found, tmp_path / "x", silent, client=client)
        assert time.monotonic() - start < 3
    assert list(tmp_path.iterdir()) == []


def test_https_does_not_lead_to_http(tmp_path: Path) -> None:
    import httpx

    from miyabi_llm.errors import Unsafe

    def far(request: httpx.Request) -> httpx.Response:
        if request.url.scheme == "https":
            return httpx.Response(302, headers={"Location": "http://else.example/x"})
        return httpx.Response(200, content=b"x")

    with httpx.Client(transport=httpx.MockTransport(far), follow_redirects=True) as client, pytest.raises(Unsafe):
        releases.fetch(asset(b"x", "https://here.example"), tmp_path / "x", silent, client=client)
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_a_value() -> None:
    assert Lock(1, "c", source=None, assets=()) == Lock(1, "c", source=None, assets=())  # type: ignore[arg-type]
