"""The Ollama registry: good manifests, hostile manifests, and whom the token is shown to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.errors import AccessDenied, Corrupt, MiyabiError, ModelMissing, NetworkError, Unsafe
from miyabi_llm.refs import ModelRef, is_safe_name
from miyabi_llm.sources.ollama import MEDIA_TYPES, OllamaSource, parse_manifest
from miyabi_llm.store import Store
from miyabi_llm.types import Event
from tests.faultd import OK, Fault, Faultd
from tests.registries import MEDIA, layer, manifest, sha
from tests.sources.wires import DATA, QUICK, settings

NAME = "library/tiny"
PATH = f"/v2/{NAME}/manifests/latest"


@pytest.fixture
def server() -> Iterator[Faultd]:
    with Faultd() as server:
        yield server


Make = Callable[[], OllamaSource]


@pytest.fixture
def make(server: Faultd, tmp_path: Path) -> Make:
    return lambda: OllamaSource(settings(tmp_path, ollama_registry=server.url), QUICK)


def good(server: Faultd) -> None:
    kinds = {"model": DATA, "template": b"{{ .Prompt }}", "params": b"{}", "license": b"MIT"}
    layers = [layer(server, NAME, kind, data) for kind, data in kinds.items()]
    manifest(server, NAME, "latest", [*layers, layer(server, NAME, "license", b"Apache")])


def test_lists_and_fetches_all_layers(server: Faultd, make: Make, tmp_path: Path) -> None:
    good(server)
    source, store, events = make(), Store(tmp_path / "store"), list[Event]()
    listing = source.list(ModelRef.parse("ollama:tiny"))
    assert [f.name for f in listing.files] == ["model.gguf", "template", "params.json", "license", "license-2"]
    assert listing.resolved == ModelRef.parse("ollama:tiny:latest")
    assert listing.format == "gguf"
    assert "manifest.v2+json" in server.requests[0].headers["accept"]
    assert sum(server.sent.values()) < 5000
    for file in listing.files:
        assert file.sha256
        with store.part(file.sha256, file.size) as part:
            source.fetch(file, part, events.append)
            assert part.commit(file.sha256, file.size).sha256 == file.sha256
    assert store.blob(listing.files[0].sha256 or "").read_bytes() == DATA


def test_names_with_and_without_namespace_and_tag(server: Faultd, make: Make) -> None:
    manifest(server, "who/tiny", "v2", [layer(server, "who/tiny", "model", DATA)])
    assert make().list(ModelRef.parse("ollama:who/tiny:v2")).files
    assert server.requests[-1].path == "/v2/who/tiny/manifests/v2"


def test_not_there(make: Make) -> None:
    with pytest.raises(ModelMissing, match="ollama:nope is not in the registry"):
        make().list(ModelRef.parse("ollama:nope"))


def test_in_trouble_then_well(server: Faultd, make: Make) -> None:
    good(server)
    server.script(PATH, Fault(status=503), Fault(cut=10))
    assert make().list(ModelRef.parse("ollama:tiny")).files
    server.always(PATH, Fault(status=503))
    with pytest.raises(NetworkError, match="503"):
        make().list(ModelRef.parse("ollama:tiny"))


def test_a_token_of_the_registry_itself(server: Faultd, make: Make, tmp_path: Path) -> None:
    good(server)
    server.put("/token", b'{"token":"canary"}')
    challenge = f'Bearer realm="{server.url}/token",service="s",scope="repository:{NAME}:pull"'
    server.script(PATH, Fault(status=401, headers={"WWW-Authenticate": challenge}))
    source = make()
    listing = source.list(ModelRef.parse("ollama:tiny"))
    (asked,) = server.asked("/token")
    assert asked.query == {"service": ["s"], "scope": [f"repository:{NAME}:pull"]}
    assert "authorization" not in asked.headers
    assert server.requests[-1].headers["authorization"] == "Bearer canary"
    with Store(tmp_path / "store").part(listing.files[0].sha256 or "", listing.files[0].size) as part:
        source.fetch(listing.files[0], part, lambda e: None)
    assert server.requests[-1].headers["authorization"] == "Bearer canary"


@pytest.mark.parametrize(
    "realm",
    [
        "http://127.0.0.1:{other}/token",
        "https://127.0.0.1:{port}/token",
        "http://evil.example/token",
        "",
        "http://[",
        "/token",
        "http://127.0.0.1:{port}@evil.example/token",
        "http://127.0.0.1.evil.example:{port}/",
    ],
)
def test_a_realm_elsewhere_is_refused(server: Faultd, make: Make, realm: str) -> None:
    with Faultd() as other:
        other.put("/token", b'{"token":"x"}')
        challenge = f'Bearer realm="{realm.format(other=other.port, port=server.port)}",service="s"'
        server.always(PATH, Fault(status=401, headers={"WWW-Authenticate": challenge}))
        with pytest.raises(Unsafe, match=r"not itself|no place"):
            make().list(ModelRef.parse("ollama:tiny"))
        assert other.requests == []


@pytest.mark.parametrize(
    "token", [b"{}", b'{"token": 7}', b'{"token":"a\\r\\nX: y"}', b"not json", b"[]", bytes(100_000)]
)
def test_bad_tokens(server: Faultd, make: Make, token: bytes) -> None:
    server.put("/token", token)
    server.always(PATH, Fault(status=401, headers={"WWW-Authenticate": f'Bearer realm="{server.url}/token"'}))
    with pytest.raises(MiyabiError):
        make().list(ModelRef.parse("ollama:tiny"))


def test_still_refused(server: Faultd, make: Make) -> None:
    server.put("/token", b'{"token":"ok"}')
    server.always(PATH, Fault(status=401, headers={"WWW-Authenticate": f'Bearer realm="{server.url}/token"'}))
    with pytest.raises(AccessDenied):
        make().list(ModelRef.parse("ollama:tiny"))


# -- hostile manifests

GOOD: dict[str, Any] = {"mediaType": MEDIA + "model", "digest": f"sha256:{'a' * 64}", "size": 10}


def parsed(*layers: Any) -> Any:
    return parse_manifest(json.dumps({"schemaVersion": 2, "layers": list(layers)}).encode(), "x")


def test_a_plain_manifest() -> None:
    layers, notes = parsed(GOOD, GOOD, {**GOOD, "mediaType": MEDIA + "tensor", "digest": f"sha256:{'b' * 64}"})
    assert [layer.kind for layer in layers] == ["model"]  # an exact repetition is one layer
    assert notes == ("layers not taken: tensor",)


@pytest.mark.parametrize(
    "bad",
    [
        {"digest": "sha256:../../etc/passwd"},
        {"digest": "sha256-" + "a" * 64},
        {"digest": "A" * 64},
        {"digest": "sha256:" + "A" * 64},
        {"digest": "sha256:" + "a" * 63},
        {"digest": "sha256:" + "a" * 64 + "\n"},
        {"digest": "sha256:" + "\uff11" * 64},
        {"digest": "sha512:" + "a" * 64},
        {"digest": None},
        {"digest": ["sha256:" + "a" * 64]},
        {"size": -1},
        {"size": 0},
        {"size": 1 << 60},
        {"size": 1e9},
        {"size": True},
        {"size": "10"},
        {"size": None},
        {"mediaType": None},
        {"mediaType": 3},
        {"mediaType": "x" * 5000},
    ],
)
def test_s26_a_bad_layer(bad: dict[str, Any]) -> None:
    with pytest.raises(Corrupt):
        parsed({**GOOD, **bad})


def test_s26_contradictions_and_crowds() -> None:
    with pytest.raises(Corrupt, match="contradicts"):
        parsed(GOOD, {**GOOD, "size": 11})
    with pytest.raises(Corrupt, match="contradicts"):
        parsed(GOOD, {**GOOD, "mediaType": MEDIA + "template"})
    with pytest.raises(Corrupt, match="2 model layers"):
        parsed(GOOD, {**GOOD, "digest": f"sha256:{'b' * 64}"})
    with pytest.raises(Corrupt, match="no GGUF layer"):
        parsed({**GOOD, "mediaType": MEDIA + "tensor"})
    for layers in ([], [GOOD] * 257, {}, None, 7):
        with pytest.raises(Corrupt):
            parse_manifest(json.dumps({"layers": layers}).encode(), "x")


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"\xff", b'{"layers":', b"[" * 1_000_000, b'{"a":' * 200_000])
def test_s26_no_manifest_at_all(body: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_manifest(body, "x")


def test_s26_a_manifest_without_end_is_cut_off(server: Faultd, make: Make) -> None:
    server.put(PATH, bytes(200 << 20))
    started = time.monotonic()
    with pytest.raises(NetworkError, match="longer than"):
        make().list(ModelRef.parse("ollama:tiny"))
    assert time.monotonic() - started < 2
    assert server.sent[PATH] < 32 << 20  # what the sockets held, not the body
    many = [{**GOOD, "digest": f"sha256:{i:064x}"} for i in range(5000)]
    server.put(PATH, json.dumps({"layers": many}).encode())
    with pytest.raises(Corrupt, match="number of layers"):
        make().list(ModelRef.parse("ollama:tiny"))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_layers = st.fixed_dictionaries(
    {},
    optional={
        "mediaType": st.sampled_from([MEDIA + k for k in ("model", "template", "license", "../x", "projector")])
        | _json,
        "digest": st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True) | st.just(GOOD["digest"]) | _json,
        "size": st.integers(-5, 1 << 50) | _json,
    },
)


@given(st.lists(_layers | _json, max_size=6) | _json)
def test_s26_any_manifest_is_refused_or_safe(layers: Any) -> None:
    try:
        known, _ = parse_manifest(json.dumps({"layers": layers}).encode(), "x")
    except Corrupt:
        return
    for found in known:
        assert len(found.digest) == 64
        assert 0 < found.size <= 1 << 43
        assert found.kind in MEDIA_TYPES
        assert is_safe_name(MEDIA_TYPES[found.kind])


@given(st.binary(max_size=300))
def test_s26_any_bytes(body: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_manifest(body, "x")


def test_wrong_bytes_of_a_layer(server: Faultd, make: Make, tmp_path: Path) -> None:
    good(server)
    source = make()
    (model, *_) = source.list(ModelRef.parse("ollama:tiny")).files
    path = f"/v2/{NAME}/blobs/sha256:{sha(DATA)}"
    server.always(path, Fault(flip=9))
    with Store(tmp_path / "store").part(model.sha256 or "", model.size) as part:
        source.fetch(model, part, lambda e: None)
        with pytest.raises(Corrupt):
            part.commit(model.sha256, model.size)
        server.always(path, OK)
        source.fetch(model, part, lambda e: None)
        assert part.commit(model.sha256, model.size).sha256 == sha(DATA)
