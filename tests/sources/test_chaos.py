"""Any run of faults ends in the right bytes or in an explained error; nothing else is ever published."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miyabi_llm.errors import Corrupt, MiyabiError
from miyabi_llm.sources.net import Wire
from tests.faultd import OK, Fault, Faultd
from tests.sources.wires import DATA, KIB, QUICK, Puller

OLD = bytes(len(DATA))
LIMITS = replace(QUICK, tries=3, wire=Wire(stall=0.3))

# an honest server's ETag names the bytes: nobody can tell two files under one strong ETag apart without a hash
honest = st.one_of(
    st.just(OK),
    st.builds(Fault, status=st.sampled_from([404, 408, 416, 429, 500, 503])),
    st.builds(Fault, cut=st.integers(0, 70 * KIB), reset=st.booleans(), chunked=st.booleans()),
    st.builds(Fault, no_range=st.booleans(), cut=st.none() | st.integers(0, len(DATA)), chunked=st.booleans()),
    st.builds(
        Fault, content_range=st.sampled_from(["bytes 0-65535/716813", "bytes 1-65536/716813", "x", "bytes 0-0/1"])
    ),
    st.builds(Fault, etag=st.sampled_from(["", 'W/"w"', "bare", '"a b"'])),
    st.builds(Fault, html=st.just(True)),
    st.builds(Fault, gzip=st.just(True)),
    st.builds(Fault, cut=st.integers(0, 9000), hang=st.just(0.7)),
    st.builds(Fault, close_delimited=st.just(True), no_range=st.booleans()),
)
lying = st.one_of(
    honest,
    st.builds(Fault, flip=st.integers(0, len(DATA) - 1)),
    st.builds(Fault, extra=st.binary(min_size=1, max_size=9), chunked=st.booleans(), no_range=st.booleans()),
    st.builds(Fault, etag=st.just('"other"')),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(lying, max_size=6), min_size=1, max_size=3))
def test_with_a_known_hash(runs: list[list[Fault]]) -> None:
    """Several pulls into one store, each under its own faults; then a good one, which always succeeds."""
    with Faultd() as server, tempfile.TemporaryDirectory() as home:
        url, puller = server.put("/m.gguf", DATA), Puller(Path(home))
        for faults in [*runs, []]:
            server.script("/m.gguf", *faults)
            try:
                assert _as_pull_does(puller, url) == DATA
            except MiyabiError:
                assert faults, puller.said()
                assert puller.published() == []


def _as_pull_does(puller: Puller, url: str) -> bytes:
    """A part that an earlier run left with a wrong byte in it is dropped when its hash fails, and comes again."""
    try:
        return puller.pull(url, limits=LIMITS)
    except Corrupt:
        return puller.pull(url, limits=LIMITS)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(honest, max_size=6), st.integers(0, 12), st.booleans())
def test_without_a_hash_two_files_are_never_glued(faults: list[Fault], swap: int, known: bool) -> None:
    """The file changes at its source after some requests. What is published is one of the two, never a mixture."""
    with Faultd() as server, tempfile.TemporaryDirectory() as home:
        url, puller = server.put("/m.gguf", OLD, etag='"old"'), Puller(Path(home))
        server.script("/m.gguf", *faults)
        server.after(swap, lambda: server.put("/m.gguf", DATA, etag='"new"'))
        try:
            got = puller.pull(url, sha=None, size=len(DATA) if known else None, limits=LIMITS)
        except MiyabiError:
            assert puller.published() == []
        else:
            assert got in (DATA, OLD), faults
