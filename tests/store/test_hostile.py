"""Names, links and state files that somebody prepared: nothing outside the store changes, nothing bad gets in."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm.errors import BadUsage, Corrupt, MiyabiError, ModelMissing, Unsafe
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.store import Store
from miyabi_llm.store.manifest import decode, encode
from miyabi_llm.types import Artifact, StoredFile

from .faulty import OTHER, REF, STEP, Scene, Server, pull


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything in a folder: mode and content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        body = os.readlink(path).encode() if stat.S_ISLNK(mode) else path.read_bytes() if stat.S_ISREG(mode) else b""
        found[str(path.relative_to(folder))] = (mode, body)
    return found


@pytest.fixture
def scene(ground: Path) -> Scene:
    made = Scene(random.Random(7))
    made.build(ground / "s")
    (ground / "outside").mkdir()
    (ground / "outside/victim").write_bytes(b"precious")
    return made


PIECES = st.sampled_from(
    ["..", ".", "", "/", "\\", "a", "m.gguf", "~", "C:", "-rf", "\0", "\n", "con", "x" * 300, "é", "e\u0301",
     "\u202e", "\ud800"]
)  # fmt: skip
NAMES = st.one_of(st.lists(PIECES, max_size=6).map("/".join), st.lists(PIECES, max_size=4).map("".join), st.text())


@given(names=st.lists(NAMES, min_size=1, max_size=3))
@settings(max_examples=250, deadline=None)
def test_hostile_file_names_never_leave_the_store(names: list[str]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        base = Path(folder)
        (base / "victim").write_bytes(b"precious")
        before = snapshot(base)
        store = Store(base / "s")
        server = Server({"ok": b"bytes"})
        pull(store, OTHER, server)
        files = tuple(replace(f, name=name) for name in names for f in server.listing())
        artifact = Artifact(REF, "gguf", files, "verified", "test", "now")
        for act in (store.publish, store.files):
            try:
                act(artifact)
            except Unsafe:
                continue
            except MiyabiError as e:
                if "File name too long" not in e.message:
                    raise
                continue
            for name, path in store.files(artifact).items():
                assert path.resolve().is_relative_to((base / "s/views").resolve())
                assert path.name == name.rsplit("/", 1)[-1]
        shutil.rmtree(base / "s")
        assert snapshot(base) == before


@given(text=st.one_of(NAMES, NAMES.map("file:{}".format), NAMES.map("https://h/{}".format), NAMES.map("hf:{}".format)))
@settings(max_examples=250, deadline=None)
def test_hostile_model_names_never_leave_the_store(text: str) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        base = Path(folder)
        (base / "victim").write_bytes(b"precious")
        before = snapshot(base)
        store = Store(base / "s")
        for call in (store.has, store.blob, lambda t: store.part(t).__enter__()):
            with pytest.raises(BadUsage):
                call(text)
        try:
            ref = ModelRef.parse(text)
        except BadUsage:
            return
        with pytest.raises(ModelMissing):
            store.find(ref)
        pull(store, ref, Server({"ok": b"bytes"}))
        assert store.find(ref).ref == ref
        assert [a.ref for a in store.list()] == [ref]
        store.remove(ref)
        shutil.rmtree(base / "s")
        assert snapshot(base) == before


@pytest.mark.parametrize(
    "names", [["a", "a"], ["A", "a"], ["é", "e\u0301"], ["a", "a/b"], ["x/A/c", "x/a"], ["../x"], ["/x"], ["a\\b"]]
)
def test_names_that_clash_or_leave_are_refused(names: list[str], scene: Scene, ground: Path) -> None:
    store = Store(ground / "s")
    file = store.find(OTHER).files[0]
    artifact = Artifact(REF, "gguf", tuple(replace(file, name=n) for n in names), "verified", "t", "now")
    with pytest.raises(Unsafe):
        store.publish(artifact)
    with pytest.raises(Unsafe):
        store.files(artifact)
    assert not scene.judge(ground / "s", must=scene.old)


PLANTS: dict[str, Callable[[Path, Server], Path]] = {
    "part": lambda root, server: root / "parts" / f"{server.listing()[0].sha256}.part",
    "journal": lambda root, server: root / "parts" / f"{server.listing()[0].sha256}.json",
    "journal's draft": lambda root, server: root / "parts" / f"{server.listing()[0].sha256}.json.tmp",
    "part's lock": lambda root, server: root / "parts" / f"{server.listing()[0].sha256}.lock",
    "blob": lambda root, server: root / "blobs" / server.listing()[0].sha256,
    "manifest": lambda root, server: Store(root).layout.manifest(REF),
    "lock": lambda root, server: root / "lock",
    "version": lambda root, server: root / "version",
    "blobs": lambda root, server: root / "blobs",
    "views": lambda root, server: root / "views",
}


def begin_and_pull(store: Store, server: Server) -> None:
    """Start over in the middle, which writes a journal; then the whole pull."""
    file = server.listing()[0]
    with store.part(file.sha256, file.size) as part:
        part.write(0, b"x" * 200_000)
        part.reset(None, file.size)
    pull(store, REF, server)


@pytest.mark.parametrize("where", PLANTS)
@pytest.mark.parametrize("kind", ["link", "dangling", "fifo"])
def test_a_planted_link_is_refused_and_its_target_untouched(where: str, kind: str, scene: Scene, ground: Path) -> None:
    server = Server({"m.gguf": scene.new["m.gguf"]})
    target = ground / "outside" / ("victim" if kind == "link" else "nothing")
    path = PLANTS[where](ground / "s", server)
    if path.is_dir():
        path.rename(ground / "moved")
        target = ground / "moved"
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "fifo" else path.symlink_to(target)
    before = snapshot(ground / "outside"), snapshot(ground / "moved")
    with pytest.raises(Unsafe) as caught:
        begin_and_pull(Store(ground / "s", step=STEP), server)
    assert str(path) in caught.value.message
    assert (snapshot(ground / "outside"), snapshot(ground / "moved")) == before
    path.unlink()
    if (ground / "moved").exists():
        (ground / "moved").rename(path)
    pull(Store(ground / "s"), REF, server)
    assert not scene.judge(ground / "s", must=server.files)  # type: ignore[arg-type]


def test_a_link_planted_in_a_view_is_replaced_or_refused(scene: Scene, ground: Path) -> None:
    store = Store(ground / "s")
    path = store.files(store.find(REF))["m.gguf"]
    path.unlink()
    path.symlink_to(ground / "outside/victim")
    assert store.files(store.find(REF))["m.gguf"].read_bytes() == scene.old["m.gguf"]
    shutil.rmtree(path.parent)
    path.parent.symlink_to(ground / "outside")
    with pytest.raises(Unsafe):
        store.files(store.find(REF))
    assert snapshot(ground / "outside") == {"victim": (0o100644, b"precious")}


def test_a_root_that_others_can_write_is_refused(scene: Scene, ground: Path) -> None:
    for path in (ground / "s", ground / "s/blobs", ground / "s/models"):
        path.chmod(0o777)
        for act in (lambda: Store(ground / "s").find(REF), lambda: pull(Store(ground / "s"), REF, Server(scene.new))):
            with pytest.raises(Unsafe, match="written by everybody"):
                act()
        path.chmod(0o700)
    assert Store(ground / "s").find(REF)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_root_of_another_user_is_refused(scene: Scene, ground: Path) -> None:
    os.chown(ground / "s", 12345, -1)
    with pytest.raises(Unsafe, match="belongs to user 12345"):
        Store(ground / "s").list()


def test_everything_is_for_its_owner_alone_and_blobs_are_read_only(scene: Scene, ground: Path) -> None:
    for path in (ground / "s").rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        if path.is_dir():
            assert mode == 0o700
        else:
            assert mode == (0o444 if path.parent.name == "blobs" or "views" in path.parts else 0o600), path


def test_a_newer_store_is_refused(scene: Scene, ground: Path) -> None:
    (ground / "s/version").write_text("2\n")
    for act in (lambda: Store(ground / "s").list(), lambda: pull(Store(ground / "s"), REF, Server(scene.new))):
        with pytest.raises(MiyabiError, match="format 2") as caught:
            act()
        assert "Upgrade" in (caught.value.hint or "")
    (ground / "s/version").write_text("garbage")
    with pytest.raises(Corrupt):
        Store(ground / "s").list()
    (ground / "s/version").write_text("")  # a crash in the first seconds
    pull(Store(ground / "s"), REF, Server(scene.new))
    assert (ground / "s/version").read_text() == "1\n"
    assert not scene.judge(ground / "s", must=scene.new)


GARBAGE = [b"", b"\0" * 449, b"{", b"[]", b"null", b'{"version":1}', b"\xff\xfe", b"[" * 200_000, b"{}" * 9]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_broken_manifest_hurts_only_its_model(garbage: bytes, scene: Scene, ground: Path) -> None:
    """S22, after ollama#7515: one corrupt manifest must not stop the others."""
    store = Store(ground / "s")
    path = store.layout.manifest(REF)
    path.write_bytes(garbage)
    assert [a.ref for a in store.list()] == [OTHER]
    assert [p.name for p in store.problems()] == [path.name]
    with pytest.raises(ModelMissing, match="damaged") as caught:
        store.find(REF)
    assert "pull" in (caught.value.hint or "")
    after = Store(ground / "s", clock=lambda: 4e9)
    assert [r.kind for r in after.prune(dry_run=False).kept] == ["kept"]  # its blob: nobody knows whose it is
    pull(store, REF, Server(scene.new))
    assert not scene.judge(ground / "s", must=scene.new)
    path.write_bytes(garbage)
    assert store.remove(REF).bytes == 0
    assert store.problems() == []


def test_every_truncation_and_flip_of_a_manifest_is_noticed(scene: Scene, ground: Path) -> None:
    artifact = Store(ground / "s").find(REF)
    data = encode(artifact)
    assert decode(data) == artifact
    rng = random.Random(3)
    for i in range(len(data)):
        flipped = data[:i] + bytes([data[i] ^ (1 << rng.randrange(8))]) + data[i + 1 :]
        for broken in (data[:i], flipped):
            with suppress(ValueError, KeyError, TypeError, MiyabiError):
                assert decode(broken) == artifact  # only white space changed


def test_a_manifest_under_another_models_name_is_refused(scene: Scene, ground: Path) -> None:
    layout = Store(ground / "s").layout
    shutil.copy(layout.manifest(OTHER), layout.manifest(REF))
    with pytest.raises(ModelMissing, match="another place"):
        Store(ground / "s").find(REF)


def sealed(body: dict[str, object]) -> bytes:
    total = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({"version": 1, "sum": total, "artifact": body}).encode()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", -1), ("size", 1.5), ("size", True), ("size", "1"), ("sha256", "../../outside/victim"),
        ("sha256", "AB" * 32), ("sha256", None), ("name", "../x"), ("name", "/etc/passwd"), ("name", None),
    ],
)  # fmt: skip
def test_a_well_sealed_manifest_with_bad_values_is_refused(key: str, value: object, scene: Scene, ground: Path) -> None:
    store = Store(ground / "s")
    body = json.loads(encode(store.find(REF)))["artifact"]
    body["files"][0][key] = value
    store.layout.manifest(REF).write_bytes(sealed(body))
    with pytest.raises(ModelMissing, match="damaged"):
        store.find(REF)
    assert [a.ref for a in store.list()] == [OTHER]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_broken_journal_only_costs_bytes(garbage: bytes, ground: Path) -> None:
    data = random.Random(2).randbytes(300_000)
    server = Server({"m.gguf": data})
    file = server.listing()[0]
    with Store(ground / "s").part(file.sha256, file.size) as part:
        part.reset('"v1"', file.size)
        part.write(0, data[:100_000])
    (ground / "s/parts" / f"{file.sha256}.json").write_bytes(garbage)
    with Store(ground / "s").part(file.sha256, file.size) as part:
        assert (part.done, part.validator) == ([], None)
    pull(Store(ground / "s"), REF, server)
    assert Store(ground / "s").find(REF)


@pytest.mark.parametrize("done", [[[0, 400_000]], [[5, 5]], [[-5, 10]], [[0, 50], [20, 60]], [[0, 10**30]], [["a", 1]]])
def test_a_journal_that_cannot_be_true_is_ignored(done: list[object], ground: Path) -> None:
    sha = "ab" * 32
    with Store(ground / "s").part(sha, 500_000) as part:
        part.write(0, b"x" * 300_000)
    path = ground / "s/parts" / f"{sha}.json"
    body = {"validator": None, "size": 500_000, "done": done}
    total = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"sum": total, "body": body}))
    with Store(ground / "s").part(sha, 500_000) as part:
        assert part.done == []


def test_a_part_longer_than_the_file_never_passes(ground: Path) -> None:
    data = b"y" * 100
    sha = Digest(hashlib.sha256(data).hexdigest())
    with Store(ground / "s").part(sha, 100) as part:
        part.write(0, data)
        with pytest.raises(Corrupt, match="more came"):
            part.write(100, b"z")
        with open(ground / "s/parts" / f"{sha}.part", "ab") as f:
            f.write(b"z")
        with pytest.raises(Corrupt, match="101 bytes are on disk"):
            part.commit(sha, 100)
        assert part.done == []
        part.write(0, data)
        assert part.commit(sha, 100).size == 100


def test_bit_rot_is_found_kept_for_a_look_and_repaired(scene: Scene, ground: Path) -> None:
    """S21, after ollama#17520: same size, other bytes."""
    store = Store(ground / "s")
    artifact = store.find(REF)
    view = store.files(artifact)["m.gguf"]
    blob = store.blob(artifact.files[0].sha256)
    blob.chmod(0o600)
    with open(blob, "r+b") as f:
        f.seek(50_000)
        f.write(bytes(4096))
    assert store.find(REF)  # sizes are right: only the hash can tell
    seen: list[float] = []
    (check,) = store.verify(artifact, lambda e: seen.append(e.done))
    assert not check.ok
    assert check.moved_to is not None
    assert check.moved_to.parent == ground / "s/quarantine"
    assert check.moved_to.stat().st_size == 100_000
    assert seen[-1] == 100_000
    with pytest.raises(ModelMissing, match="damaged"):
        store.find(REF)
    assert {p.level for p in store.problems()} == {"fail", "warn"}
    assert not store.verify(artifact)[0].ok
    pull(store, REF, Server(scene.old))
    assert store.files(store.find(REF))["m.gguf"].read_bytes() == scene.old["m.gguf"]
    assert view.read_bytes() == scene.old["m.gguf"]
    assert store.verify(artifact)[0].ok


@pytest.mark.parametrize("size", [0, 99_999, 100_001])
def test_a_blob_of_another_size_is_damage_and_repaired(size: int, scene: Scene, ground: Path) -> None:
    store = Store(ground / "s")
    file = store.find(REF).files[0]
    store.blob(file.sha256).chmod(0o600)
    os.truncate(store.blob(file.sha256), size)
    with pytest.raises(ModelMissing, match="damaged"):
        store.find(REF)
    assert not store.has(file.sha256, file.size)
    pull(store, REF, Server(scene.old))
    assert not scene.judge(ground / "s", must=scene.old)


def test_publishing_what_is_not_here_is_refused(ground: Path) -> None:
    ghost = StoredFile("m.gguf", Digest("ab" * 32), 5)
    with pytest.raises(Corrupt, match="missing"):
        Store(ground / "s").publish(Artifact(REF, "gguf", (ghost,), "verified", "t", "now"))
    assert Store(ground / "s").list() == []
