"""The download engine against every fault that a server or the way to it can have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from miyabi_llm.errors import AccessDenied, Corrupt, DiskFull, MiyabiError, ModelMissing, NetworkError, Unsafe
from miyabi_llm.sources.net import Wire
from miyabi_llm.sources.transfer import download
from miyabi_llm.types import RemoteFile, silent
from tests.faultd import OK, Fault, Faultd
from tests.sources.wires import DATA, KIB, ONE, QUICK, SHA, Puller


@pytest.fixture
def server() -> Iterator[Faultd]:
    with Faultd() as server:
        server.put("/m.gguf", DATA)
        yield server


@pytest.fixture
def puller(tmp_path: Path) -> Puller:
    return Puller(tmp_path)


@pytest.mark.parametrize("limits", [QUICK, ONE], ids=["ranges", "one stream"])
def test_brings_the_bytes(server: Faultd, puller: Puller, limits: object) -> None:
    assert puller.pull(server.url + "/m.gguf", limits=limits) == DATA  # type: ignore[arg-type]
    assert server.sent["/m.gguf"] == len(DATA)
    assert all(r.headers["accept-encoding"] == "identity" for r in server.requests)


def test_large_files_come_in_ranges_small_ones_whole(server: Faultd, puller: Puller) -> None:
    puller.pull(server.url + "/m.gguf")
    assert server.requests[0].range == "bytes=0-65535"
    assert len(server.requests) == 11
    assert {r.headers.get("if-range") for r in server.requests[1:]} == {f'"{SHA}"'}
    server.put("/s", b"tiny")
    assert puller.pull(server.url + "/s", size=4, sha=None) == b"tiny"
    assert server.requests[-1].range is None


@pytest.mark.parametrize("size", [0, 1, 64 * KIB, 128 * KIB, 128 * KIB + 1, 192 * KIB])
@pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
def test_every_size(server: Faultd, puller: Puller, size: int, known: bool) -> None:
    server.put("/z", DATA[:size])
    assert puller.pull(server.url + "/z", size=size if known else None, sha=None) == DATA[:size]


def test_progress_never_goes_back_and_ends_at_the_size(server: Faultd, puller: Puller) -> None:
    server.script("/m.gguf", Fault(cut=1000), Fault(content_range="bytes 7-9/10"), OK)
    puller.pull(server.url + "/m.gguf")
    done = [e.done for e in puller.events if e.kind == "progress"]
    assert done == sorted(done)
    assert done[-1] == len(DATA)
    assert {e.unit for e in puller.events if e.kind == "progress"} == {"bytes"}


def test_s7_same_size_wrong_bytes_are_never_published(server: Faultd, puller: Puller) -> None:
    server.always("/m.gguf", Fault(flip=300_000))
    with pytest.raises(Corrupt, match="sha256"):
        puller.pull(server.url + "/m.gguf")
    assert puller.published() == []
    server.always("/m.gguf", OK)
    assert puller.pull(server.url + "/m.gguf") == DATA


@pytest.mark.parametrize("fault", [Fault(cut=40_000), Fault(cut=40_000, reset=True), Fault(cut=0)])
@pytest.mark.parametrize("limits", [QUICK, ONE], ids=["ranges", "one stream"])
def test_s8_a_cut_body_is_continued(server: Faultd, puller: Puller, fault: Fault, limits: object) -> None:
    server.script("/m.gguf", fault, OK, fault, OK)
    assert puller.pull(server.url + "/m.gguf", limits=limits) == DATA  # type: ignore[arg-type]
    assert server.sent["/m.gguf"] < len(DATA) + 2 * 64 * KIB


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("etag", ["", '"strong"'])
def test_s8_always_cut_ends_in_an_error(server: Faultd, puller: Puller, chunked: bool, etag: str) -> None:
    server.always("/m.gguf", Fault(cut=100, chunked=chunked, etag=etag))
    with pytest.raises(NetworkError):
        puller.pull(server.url + "/m.gguf")
    assert puller.published() == []
    assert len(server.requests) < 20


def test_s8_a_cut_chunked_body_of_unknown_size_is_no_file(server: Faultd, puller: Puller) -> None:
    server.always("/m.gguf", Fault(cut=100_000, chunked=True, no_range=True))
    with pytest.raises(NetworkError):
        puller.pull(server.url + "/m.gguf", size=None, sha=None)
    assert puller.published() == []


def test_s8_an_end_that_nobody_announced_is_no_end(server: Faultd, puller: Puller) -> None:
    server.always("/m.gguf", Fault(close_delimited=True, no_range=True, cut=100_000))
    with pytest.raises(NetworkError, match="does not say how long"):
        puller.pull(server.url + "/m.gguf", size=None, sha=None)


def test_s9_longer_than_declared(server: Faultd, puller: Puller) -> None:
    server.always("/m.gguf", Fault(no_range=True, extra=b"x"))
    with pytest.raises(Corrupt, match=f"{len(DATA) + 1} bytes"):
        puller.pull(server.url + "/m.gguf")
    server.always("/m.gguf", Fault(no_range=True, extra=b"x", chunked=True))
    with pytest.raises(Corrupt, match="more than"):
        puller.pull(server.url + "/m.gguf")
    assert puller.published() == []


def test_s10_a_file_that_changes_meanwhile_starts_again(server: Faultd, puller: Puller) -> None:
    other = bytes(reversed(DATA))
    server.put("/m.gguf", other, etag='"old"')
    server.script("/m.gguf", Fault(cut=50_000))
    server.always("/m.gguf", Fault(delay=0.01))
    seen = []

    def swap(event: object) -> None:
        if not seen and server.requests:
            seen.append(server.put("/m.gguf", DATA, etag='"new"'))

    with puller.store.part(SHA, len(DATA)) as part:
        file = RemoteFile("m.gguf", len(DATA), SHA, (server.url + "/m.gguf",))
        download(file, part, puller.settings, swap, limits=QUICK)
        assert part.commit(SHA, len(DATA)).sha256 == SHA


def test_s10_an_old_part_is_not_glued_to_a_new_file(server: Faultd, puller: Puller) -> None:
    server.put("/m.gguf", bytes(len(DATA)), etag='"old"')
    server.script("/m.gguf", OK, OK)
    server.always("/m.gguf", Fault(status=404))
    with pytest.raises(ModelMissing):
        puller.pull(server.url + "/m.gguf")
    server.put("/m.gguf", DATA, etag='"new"')
    server.always("/m.gguf", OK)
    before = len(server.requests)
    assert puller.pull(server.url + "/m.gguf") == DATA
    assert server.requests[before].headers["if-range"] == '"old"'


def test_s10_a_server_that_ignores_if_range_is_seen_by_its_etag(server: Faultd, puller: Puller) -> None:
    server.put("/m.gguf", bytes(len(DATA)), etag='"old"')
    server.always("/m.gguf", Fault(no_if_range=True))
    server.after(4, lambda: server.put("/m.gguf", DATA, etag='"new"'))
    assert puller.pull(server.url + "/m.gguf", sha=None) == DATA


def test_s10_a_weak_etag_is_never_continued(server: Faultd, puller: Puller) -> None:
    server.always("/m.gguf", Fault(etag='W/"weak"'))
    server.script("/m.gguf", Fault(etag='W/"weak"', cut=1000))
    assert puller.pull(server.url + "/m.gguf") == DATA
    assert not any("if-range" in r.headers for r in server.requests)


@pytest.mark.parametrize("how", [Fault(no_range=True), Fault(no_range=True, headers={"Accept-Ranges": "none"})])
def test_s11_a_server_without_ranges(server: Faultd, puller: Puller, how: Fault) -> None:
    server.always("/m.gguf", how)
    server.script("/m.gguf", replace(how, cut=5000))
    assert puller.pull(server.url + "/m.gguf") == DATA


@pytest.mark.parametrize(
    "text",
    [
        f"bytes 1-65535/{len(DATA)}",
        f"bytes 1-65536/{len(DATA)}",
        "bytes 0-65535/*",
        "lines 0-1/2",
        "bytes 0-99999999999999999999/1",
        "x" * 9000,
    ],
)
def test_s12_a_wrong_content_range_is_not_believed(server: Faultd, puller: Puller, text: str) -> None:
    server.script("/m.gguf", Fault(content_range=text))
    assert puller.pull(server.url + "/m.gguf") == DATA
    assert server.requests[-1].range is None


def test_s12_a_total_that_contradicts_the_listing_is_an_error_at_once(server: Faultd, puller: Puller) -> None:
    server.script("/m.gguf", Fault(content_range="bytes 0-65535/99999"))
    with pytest.raises(Corrupt, match="99999 bytes"):
        puller.pull(server.url + "/m.gguf")
    assert len(server.requests) == 1


def test_s12_in_the_middle(server: Faultd, puller: Puller) -> None:
    server.script("/m.gguf", OK, OK, Fault(content_range=f"bytes 0-65535/{len(DATA)}"))
    assert puller.pull(server.url + "/m.gguf") == DATA
    assert server.requests[-1].range is None


def test_s13_a_compressed_transfer_is_refused(server: Faultd, puller: Puller) -> None:
    server.always("/m.gguf", Fault(gzip=True))
    with pytest.raises(NetworkError, match="compressed"):
        puller.pull(server.url + "/m.gguf")
    assert len(server.requests) == 1


def test_s14_silence_is_tried_again_slow_is_not_killed(server: Faultd, puller: Puller) -> None:
    server.script("/m.gguf", Fault(cut=1000, hang=5), Fault(drip=(8 * KIB, 0.06)))
    limits = replace(QUICK, connections=1, wire=Wire(stall=0.25))
    started = time.monotonic()
    assert puller.pull(server.url + "/m.gguf", limits=limits) == DATA
    assert time.monotonic() - started > 7 * 0.06  # the drip outlived the stall time and was not cut
    assert "no bytes for too long" in puller.said()


def test_s14_a_server_that_never_answers(server: Faultd, puller: Puller) -> None:
    server.always("/m.gguf", Fault(delay=3))
    with pytest.raises(NetworkError, match="no bytes for too long"):
        puller.pull(server.url + "/m.gguf", limits=replace(QUICK, tries=2, wire=Wire(stall=0.1)))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_s15_what_may_pass_is_tried_again(server: Faultd, puller: Puller, status: int) -> None:
    server.script("/m.gguf", Fault(status=status), OK, Fault(status=status))
    assert puller.pull(server.url + "/m.gguf") == DATA


def test_s15_retries_are_bounded(server: Faultd, puller: Puller) -> None:
    server.always("/m.gguf", Fault(status=503))
    with pytest.raises(NetworkError, match="503"):
        puller.pull(server.url + "/m.gguf")
    assert len(server.requests) == QUICK.tries


@pytest.mark.parametrize(
    ("status", "error"), [(401, AccessDenied), (403, AccessDenied), (404, ModelMissing), (410, ModelMissing)]
)
def test_s15_a_plain_no_is_not_tried_again(
    server: Faultd, puller: Puller, status: int, error: type[MiyabiError]
) -> None:
    server.always("/m.gguf", Fault(status=status))
    with pytest.raises(error):
        puller.pull(server.url + "/m.gguf")
    assert len(server.requests) == 1


def test_s15_retry_after_is_honoured_up_to_a_cap(server: Faultd, puller: Puller) -> None:
    server.script("/m.gguf", Fault(status=429, retry_after="3600"))
    started = time.monotonic()
    assert puller.pull(server.url + "/m.gguf", limits=replace(QUICK, retry_after_most=0.3)) == DATA
    assert 0.3 <= time.monotonic() - started < 3


def test_s15_nobody_listens_and_no_such_name(puller: Puller) -> None:
    with Faultd() as gone:
        url = gone.url
    with pytest.raises(NetworkError, match="times in a row"):
        puller.pull(url + "/m.gguf")
    with pytest.raises(NetworkError, match="cannot be resolved"):
        puller.pull("https://no-such-host.invalid/m.gguf")


def test_s16_a_web_page_is_not_the_file(server: Faultd, puller: Puller) -> None:
    server.always("/m.gguf", Fault(html=True))
    with pytest.raises(NetworkError, match="web page"):
        puller.pull(server.url + "/m.gguf")
    server.always("/m.gguf", Fault(html=True, headers={"Content-Type": "application/octet-stream"}))
    with pytest.raises(NetworkError, match="web page"):
        puller.pull(server.url + "/m.gguf", size=None, sha=None)
    assert puller.published() == []


def test_addresses_are_tried_in_order(server: Faultd, puller: Puller) -> None:
    server.always("/bad", Fault(status=404))
    server.always("/html", Fault(html=True))
    assert puller.pull(server.url + "/bad", server.url + "/html", server.url + "/m.gguf") == DATA
    server.always("/m.gguf", Fault(status=403))
    with pytest.raises(AccessDenied):
        puller.pull(server.url + "/bad", server.url + "/m.gguf", sha=None)


def test_a_full_disk_is_not_a_network_problem(server: Faultd, puller: Puller) -> None:
    class Full:
        size, done, validator = None, (), None

        def reset(self, validator: str | None, size: int | None) -> None:
            self.validator = validator

        def write(self, offset: int, data: object) -> None:
            raise DiskFull("no space")

    file = RemoteFile("m.gguf", len(DATA), SHA, (server.url + "/m.gguf", server.url + "/m.gguf"))
    with pytest.raises(DiskFull):
        download(file, Full(), puller.settings, silent, limits=QUICK)  # type: ignore[arg-type]
    assert len(server.requests) <= QUICK.connections


def test_offline_asks_nobody(server: Faultd, puller: Puller) -> None:
    puller.settings = replace(puller.settings, offline=True)
    with pytest.raises(NetworkError, match="offline") as e:
        puller.pull(server.url + "/m.gguf")
    assert "MIYABI_OFFLINE" in (e.value.hint or "")
    assert server.requests == []


def test_an_interrupt_stops_every_connection_at_once(server: Faultd, puller: Puller) -> None:
    server.always("/m.gguf", Fault(drip=(100, 0.05)))

    def interrupt(event: object) -> None:
        if len(server.requests) >= 3:
            raise KeyboardInterrupt

    file = RemoteFile("m.gguf", len(DATA), SHA, (server.url + "/m.gguf",))
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), puller.store.part(SHA, len(DATA)) as part:
        download(file, part, puller.settings, interrupt, limits=replace(QUICK, wire=Wire(stall=30)))
    assert time.monotonic() - started < 3


_CHILD = """
import sys
from pathlib import Path
from miyabi_llm.refs import digest
from tests.sources.wires import Puller
Puller(Path(sys.argv[1])).pull(sys.argv[2])
"""


def test_killed_and_continued(server: Faultd, puller: Puller, tmp_path: Path) -> None:
    server.script("/m.gguf", OK, OK, OK)
    server.always("/m.gguf", Fault(cut=64 * KIB - 1, hang=60))
    child = subprocess.Popen([sys.executable, "-c", _CHILD, str(tmp_path), server.url + "/m.gguf"])
    try:
        deadline = time.monotonic() + 20
        while server.sent["/m.gguf"] < 6 * 64 * KIB - 100 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    server.always("/m.gguf", OK)
    assert puller.pull(server.url + "/m.gguf") == DATA


def test_interrupted_and_continued_from_where_it_stood(server: Faultd, puller: Puller) -> None:
    server.script("/m.gguf", OK, OK, OK, OK)
    server.always("/m.gguf", Fault(status=404))
    with pytest.raises(ModelMissing):
        puller.pull(server.url + "/m.gguf")
    before = server.sent["/m.gguf"]
    assert before >= 4 * 64 * KIB
    server.always("/m.gguf", OK)
    assert puller.pull(server.url + "/m.gguf") == DATA
    assert server.sent["/m.gguf"] <= len(DATA) + 4 * 64 * KIB


def test_redirects_to_the_file(server: Faultd, puller: Puller) -> None:
    server.always("/go", Fault(redirect="/m.gguf"))
    assert puller.pull(server.url + "/go") == DATA


def test_unsafe_is_terminal(server: Faultd, puller: Puller) -> None:
    server.always("/go", Fault(redirect="http://169.254.169.254/latest/meta-data"))
    with pytest.raises(Unsafe):
        puller.pull(server.url + "/go", server.url + "/m.gguf")
