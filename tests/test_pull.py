"""From a name to a verified model: sources in order, wrong bytes never, and one clear line for every mistake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from miyabi_llm.errors import AccessDenied, Corrupt, DiskFull, ModelMissing, NetworkError
from miyabi_llm.pull import pull, resolve
from miyabi_llm.refs import ModelRef
from miyabi_llm.store import Fs
from miyabi_llm.types import Listing
from tests.shelves import HEX, MODEL, OTHER, PINNED, Shelf, world


def test_a_model_comes_with_its_card(tmp_path: Path) -> None:
    w = world(tmp_path)
    artifact = w.pull()
    assert w.store.find(ModelRef.parse("hf:a/b")) == artifact
    assert artifact.trust == "verified"
    assert artifact.license == "mit"
    assert [(f.name, f.sha256, f.size) for f in artifact.files] == [("m.gguf", HEX, len(MODEL))]
    assert artifact.card["resolved"] == "hf:a/b@c0ffee"
    assert artifact.card["tool"]["name"] == "miyabi-llm"
    assert artifact.card["downloads"] == 3
    assert artifact.card["notes"] == ["a note"]
    assert w.store.blob(HEX).read_bytes() == MODEL


def test_a_model_that_is_here_is_not_asked_for(tmp_path: Path) -> None:
    w = world(tmp_path)
    first = w.pull()
    assert w.pull() == first
    assert (w.opened, w.shelves[0].listed) == (1, 1)
    assert w.pull(refresh=True).files == first.files
    assert w.shelves[0].listed == 2
    assert w.shelves[0].fetched == ["m.gguf"]


def test_bytes_under_another_name_are_not_fetched_again(tmp_path: Path) -> None:
    w = world(tmp_path, catalog=PINNED)
    w.pull()
    again = w.pull("two")
    assert str(again.ref) == "two:a"
    assert again.files[0].name == "short.gguf"
    assert w.shelves[0].fetched == ["m.gguf"]


def test_bytes_of_another_tool_are_shared(tmp_path: Path) -> None:
    w = world(tmp_path)
    blob = tmp_path / f".ollama/models/blobs/sha256-{HEX}"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(MODEL)
    assert w.pull().files[0].sha256 == HEX
    assert w.shelves[0].fetched == []
    assert "verified" in w.said("log")


def test_the_next_source_is_tried_and_the_reason_said(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf(fails=NetworkError("the hub is away")), Shelf(), catalog=PINNED)
    artifact = w.pull("two")
    assert artifact.source == "hf:a/two"
    assert artifact.card["notes"] == ["two sources", "a note"]
    assert [(e.name, e.message) for e in w.events if e.kind == "warning"] == [
        ("two:a", "hf:a/one: the hub is away; trying the next source")
    ]


def test_when_all_sources_fail_every_reason_is_named(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf(fails=NetworkError("away")), Shelf(fails=ModelMissing("no such file")), catalog=PINNED)
    with pytest.raises(NetworkError, match=r"no source of two:a .* hf:a/one: away; hf:a/two: no such file"):
        w.pull("two")
    w = world(tmp_path, Shelf(fails=AccessDenied("accept the licence", hint="Log in.")))
    with pytest.raises(AccessDenied, match=r"^accept the licence$") as caught:
        w.pull()
    assert caught.value.hint == "Log in."


def test_wrong_bytes_are_fetched_again_in_the_same_command(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf(sends=[OTHER]))
    assert w.pull().files[0].sha256 == HEX
    assert w.shelves[0].fetched == ["m.gguf", "m.gguf"]
    assert "fetching it again" in w.said("warning")


def test_wrong_bytes_twice_lead_to_the_next_source(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf(sends=[OTHER, MODEL[:-1] + b"x"]), Shelf(), catalog=PINNED)
    assert w.pull("two").source == "hf:a/two"
    (tmp_path / "b").mkdir()
    w = world(tmp_path / "b", Shelf(sends=[OTHER] * 2))
    with pytest.raises(Corrupt):
        w.pull()
    assert w.store.list() == []
    assert list((w.store.root / "blobs").iterdir()) == []


def test_each_source_is_named_once_with_its_reason(tmp_path: Path) -> None:
    said = "hf:a/one: https://hub.example does not answer (2 times)"
    w = world(tmp_path, Shelf(fails=NetworkError(said)), Shelf(fails=AccessDenied("a/two is gated")), catalog=PINNED)
    with pytest.raises(AccessDenied) as caught:
        w.pull("two")
    assert caught.value.message == f"no source of two:a could give it: {said}; a/two is gated"
    assert w.said("warning") == f"{said}; trying the next source"


def test_many_files_come_and_the_same_bytes_once(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf({"a.gguf": MODEL, "b.gguf": OTHER, "c.gguf": MODEL}))
    assert [f.name for f in w.pull().files] == ["a.gguf", "b.gguf", "c.gguf"]
    assert w.shelves[0].fetched == ["a.gguf", "b.gguf"]


class SmallDisk(Fs):
    """A disk with a little room."""

    room = 300 * 2**20

    def free(self, path: Path) -> int:
        return self.room


def test_a_full_disk_is_said_before_the_first_byte(tmp_path: Path) -> None:
    class Huge(Shelf):
        def list(self, ref: ModelRef) -> Listing:
            found = super().list(ref)
            return replace(found, files=(replace(found.files[0], size=10 * 2**30),))

    w = world(tmp_path, Huge(), fs=SmallDisk())
    with pytest.raises(DiskFull, match=r"hf:a/b needs 10240 MiB and 512 MiB to spare .*; 300 MiB are free") as caught:
        w.pull()
    assert caught.value.exit_code == 4
    assert "miyabi-llm prune" in str(caught.value.hint)
    assert w.shelves[0].fetched == []


def test_what_does_not_fit_the_machine_is_warned_of(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.pull(fits=lambda listing: f"{listing.size} bytes are too many")
    assert f"{len(MODEL)} bytes are too many" in w.said("warning")


def test_an_interruption_keeps_what_came_and_says_so(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf(sends=[KeyboardInterrupt()]))
    with pytest.raises(KeyboardInterrupt):
        w.pull()
    assert "what has arrived is kept, `miyabi-llm pull hf:a/b` continues" in w.said("warning")
    with w.store.part(HEX, len(MODEL)) as part:
        assert part.done == [(0, len(MODEL) // 2)]
    assert w.pull().trust == "verified"


def test_a_local_model_is_adopted(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(MODEL)
    w = world(tmp_path)
    artifact = pull(ModelRef.parse(str(tmp_path / "m.gguf")), w.store, w.settings)
    assert artifact.trust == "local"
    assert artifact.files[0].sha256 == HEX


def test_a_catalog_name_resolves_without_a_network(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf(fails=NetworkError("away")), catalog=PINNED)
    found = resolve(ModelRef.parse("two"), w.settings, store=w.store, open_source=w.open)
    assert (str(found.canonical), found.layer, found.trust, found.here) == ("two:a", "user", "verified", False)
    assert [(c.source, c.asked) for c in found.candidates] == [("hf:a/one", False), ("hf:a/two", False)]
    assert w.opened == 0
    far = resolve(ModelRef.parse("two"), w.settings, remote=True, open_source=w.open)
    assert [c.problem for c in far.candidates] == ["away", "away"]
    with pytest.raises(NetworkError, match="away"):
        resolve(ModelRef.parse("hf:a/b"), w.settings, open_source=w.open)


def test_a_longer_name_resolves_at_its_source(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.pull()
    found = resolve(ModelRef.parse("hf:a/b"), w.settings, store=w.store, open_source=w.open)
    assert (found.here, found.layer, found.size, found.license) == (True, None, len(MODEL), "mit")
