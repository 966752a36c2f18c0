"""One file carries a model, whole: hostile and damaged files leave the store as it was."""

import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miyabi_llm import bundle, config
from miyabi_llm.errors import BadUsage, Corrupt, DiskFull, MiyabiError, ModelMissing, Unsafe
from miyabi_llm.refs import ModelRef
from miyabi_llm.store import Fs, Store, manifest
from miyabi_llm.types import Artifact, StoredFile

from .store.tiny import gguf_bytes, gguf_file

REF = ModelRef.parse("hf:Org/Repo-GGUF:F16")


@pytest.fixture
def mine(tmp_path: Path) -> config.Settings:
    return config.load({"HOME": str(tmp_path / "user"), "MIYABI_HOME": str(tmp_path / "home")})


@pytest.fixture
def full(tmp_path: Path) -> Store:
    """A store with one model of three files, two of them the same bytes."""
    store = Store(tmp_path / "a")
    files = []
    for name, made in (("tiny.gguf", "x"), ("again.gguf", "x"), ("sub/other.gguf", "y")):
        path, sha256, size = gguf_file(tmp_path / "made" / name, made)
        store.adopt(path, sha256)
        files.append(StoredFile(name, sha256, size))
    card = {"lineage": [{"step": "pull"}]}
    store.publish(Artifact(REF, "gguf", tuple(files), "verified", "hf:Org/Repo-GGUF", "2026-11-22", "mit", card))
    return store


def tree(root: Path) -> dict[str, bytes]:
    """Every file of the store that can be seen as a model or its bytes, and every leftover."""
    kept = [p for p in root.rglob("*") if p.is_file() and p.name not in ("lock", "version")]
    return {str(p.relative_to(root)): p.read_bytes() for p in kept}


def test_there_and_back(full: Store, mine: config.Settings, tmp_path: Path) -> None:
    target = tmp_path / "out.tar"
    done = bundle.export(REF, target, full)
    assert (done.size, done.sha256) == (target.stat().st_size, hashlib.sha256(target.read_bytes()).hexdigest())
    with tarfile.open(target) as tar:  # any tar reads it
        names = tar.getnames()
        assert names[0] == "manifest.json"
        assert len(names) == 3
        assert {(m.mode, m.uid, m.gid, m.mtime, m.uname) for m in tar} == {(0o644, 0, 0, 0, "")}
    other = Store(tmp_path / "b")
    got = bundle.import_(target, other, mine)
    assert got.artifact.files == full.find(REF).files == other.find(REF).files
    assert (got.artifact.trust, got.claimed) == ("first-use", "verified")
    assert got.artifact.card["lineage"][0] == {"step": "pull"}
    assert got.artifact.card["lineage"][1]["step"] == "import"
    assert all(c.ok for c in other.verify(got.artifact))
    assert {k: v for k, v in tree(full.root).items() if k.startswith("blobs/")} == {
        k: v for k, v in tree(other.root).items() if k.startswith("blobs/")
    }
    assert bundle.import_(target, other, mine).bytes == 0  # nothing to copy the second time


def test_the_same_model_gives_the_same_bytes(full: Store, tmp_path: Path) -> None:
    first = bundle.export(REF, tmp_path / "1.tar", full)
    second = bundle.export(REF, tmp_path / "2.tar", full)
    assert first.sha256 == second.sha256


def test_export_never_overwrites_unasked_and_leaves_no_draft(full: Store, tmp_path: Path) -> None:
    target = tmp_path / "o/out.tar"
    target.parent.mkdir()
    target.write_text("mine")
    with pytest.raises(BadUsage, match="is there already"):
        bundle.export(REF, target, full)
    assert target.read_text() == "mine"
    with pytest.raises(BadUsage, match="is a directory"):
        bundle.export(REF, target.parent, full, force=True)
    bundle.export(REF, target, full, force=True)
    assert os.listdir(target.parent) == ["out.tar"]
    with pytest.raises(MiyabiError):
        bundle.export(REF, tmp_path / "no/such/dir.tar", full)
    with pytest.raises(ModelMissing):
        bundle.export(ModelRef.parse("hf:No/Such"), tmp_path / "x.tar", full)


def test_bytes_that_rotted_are_not_exported(full: Store, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    blob = full.blob(full.find(REF).files[0].sha256)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(data)
    with pytest.raises(Corrupt, match="expected"):
        bundle.export(REF, tmp_path / "o/out.tar", full)
    assert os.listdir(tmp_path / "o") == []


# -- hostile files, made with the standard library's tar


def document(files: list[dict[str, object]], ref: str = str(REF)) -> bytes:
    """A manifest with a right check sum and whatever files."""
    body = {
        "ref": ref,
        "format": "gguf",
        "files": files,
        "trust": "verified",
        "source": ref,
        "pulled_at": "",
        "license": None,
        "card": {},
        "size": 0,
    }
    total = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({"version": 1, "sum": total, "artifact": body}).encode()


def entry(data: bytes, name: str = "tiny.gguf") -> dict[str, object]:
    return {"name": name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def member(name: str, data: bytes = b"", **change: object) -> bytes:
    """One tar member; `change` sets fields of its header."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in change.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


GOOD = gguf_bytes()
BLOB = "blobs/sha256-" + hashlib.sha256(GOOD).hexdigest()
END = bytes(1024)
MANIFEST = member("manifest.json", document([entry(GOOD)]))
LINKED = {"linkname": "/etc/passwd", "size": 0}

HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "one block": bytes(512),
    "only zeros": bytes(4096),
    "no tar": b"x" * 4096,
    "no manifest": member(BLOB, GOOD) + END,
    "manifest second": member(BLOB, GOOD) + MANIFEST + END,
    "manifest is a link": member("manifest.json", type=tarfile.SYMTYPE, **LINKED) + END,
    "manifest is huge": member("manifest.json", b"", size=10 << 30) + END,
    "manifest is a base-256 giant": member("manifest.json", b"", size=1 << 70) + END,
    "manifest is no json": member("manifest.json", b"{") + END,
    "manifest is deep": member("manifest.json", b"[" * 100_000) + END,
    "manifest is a list": member("manifest.json", b"[]") + END,
    "wrong sum": member("manifest.json", document([entry(GOOD)]).replace(b"verified", b"verifiee")) + END,
    "no files": member("manifest.json", document([])) + END,
    "too many files": member("manifest.json", document([entry(GOOD, f"{i}.gguf") for i in range(5000)])) + END,
    "slip": MANIFEST + member("../../evil", GOOD) + END,
    "absolute": MANIFEST + member("/tmp/evil", GOOD) + END,
    "symlink": MANIFEST + member(BLOB, type=tarfile.SYMTYPE, **LINKED) + END,
    "hard link": MANIFEST + member(BLOB, type=tarfile.LNKTYPE, **LINKED) + END,
    "device": MANIFEST + member(BLOB, type=tarfile.CHRTYPE) + END,
    "fifo": MANIFEST + member(BLOB, type=tarfile.FIFOTYPE) + END,
    "directory": MANIFEST + member(BLOB + "/", type=tarfile.DIRTYPE) + END,
    "sparse": MANIFEST + member(BLOB, GOOD, type=tarfile.GNUTYPE_SPARSE) + END,
    "pax header": MANIFEST + member("x", b"30 path=../../evil\n", type=tarfile.XHDTYPE) + member(BLOB, GOOD) + END,
    "long name": MANIFEST + member("././@LongLink", b"../evil\0", type=tarfile.GNUTYPE_LONGNAME) + END,
    "huge size": MANIFEST + member(BLOB, GOOD, size=10 << 30) + END,
    "smaller": MANIFEST + member(BLOB, GOOD[:-1]) + END,
    "other bytes": MANIFEST + member(BLOB, GOOD[:-1] + b"\1") + END,
    "twice": MANIFEST + member(BLOB, GOOD) * 2 + END,
    "more": MANIFEST + member(BLOB, GOOD) + member("README", b"x") + END,
    "none": MANIFEST + END,
    "no end": MANIFEST + member(BLOB, GOOD),
    "something after the end": MANIFEST + member(BLOB, GOOD) + END + b"x",
    "much after the end": MANIFEST + member(BLOB, GOOD) + bytes(1 << 20),
    "gz": __import__("gzip").compress(MANIFEST + member(BLOB, GOOD) + END),
}
for _name in (
    "../evil.gguf",
    "/evil.gguf",
    "a/../b.gguf",
    "a\\b.gguf",
    "",
    ".bashrc",
    "x/.y.gguf",
    "model.bin",
    "a.py",
):
    HOSTILE[f"file {_name!r}"] = member("manifest.json", document([entry(GOOD, _name)])) + member(BLOB, GOOD) + END
HOSTILE["two names alike"] = (
    member("manifest.json", document([entry(GOOD, "a.gguf"), entry(GOOD, "A.gguf")])) + member(BLOB, GOOD) + END
)
HOSTILE["one hash, two sizes"] = (
    member("manifest.json", document([entry(GOOD), entry(GOOD, "b.gguf") | {"size": 5}])) + member(BLOB, GOOD) + END
)
HOSTILE["negative size"] = member("manifest.json", document([entry(GOOD) | {"size": -1}])) + END
HOSTILE["short hash"] = member("manifest.json", document([entry(GOOD) | {"sha256": "../../x"}])) + END


def test_the_good_one_of_these_is_good(mine: config.Settings, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(MANIFEST + member(BLOB, GOOD) + END)
    assert bundle.import_(tmp_path / "x.tar", Store(tmp_path / "s"), mine).artifact.size == len(GOOD)


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_files_are_refused_whole(name: str, mine: config.Settings, tmp_path: Path) -> None:
    path, store = tmp_path / "x.tar", Store(tmp_path / "s")
    path.write_bytes(HOSTILE[name])
    with pytest.raises((Corrupt, Unsafe)) as caught:
        bundle.import_(path, store, mine)
    assert any(word in caught.value.message for word in (str(path), "in the bundle", "file name", "two sizes"))
    assert tree(store.root) == {}
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "s") == ["x.tar"]


@pytest.mark.parametrize("cut", [1, 511, 512, 1024, 1500, 3000])
def test_truncated_files_are_refused_before_a_byte_is_written(
    cut: int, full: Store, mine: config.Settings, tmp_path: Path
) -> None:
    path, store = tmp_path / "x.tar", Store(tmp_path / "s")
    size = bundle.export(REF, path, full).size
    os.truncate(path, size - cut)
    with pytest.raises(Corrupt) as caught:
        bundle.import_(path, store, mine)
    assert caught.value.hint is not None
    assert not store.root.exists()


@given(at=st.integers(0, len(MANIFEST) + 512 + len(GOOD)), bit=st.integers(0, 7))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_is_found_or_harmless(at: int, bit: int, mine: config.Settings, tmp_path: Path) -> None:
    data = bytearray(MANIFEST + member(BLOB, GOOD) + END)
    data[at] ^= 1 << bit
    path, root = tmp_path / "x.tar", tmp_path / "s"
    path.write_bytes(data)
    shutil.rmtree(root, ignore_errors=True)
    try:
        got = bundle.import_(path, Store(root), mine)
    except (Corrupt, Unsafe):
        assert tree(root) == {}
    else:  # padding, or a field of the header that says nothing about the bytes
        assert [f.sha256 for f in got.artifact.files] == [hashlib.sha256(GOOD).hexdigest()]


def test_what_is_no_file_is_named(mine: config.Settings, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "gone"):
        with pytest.raises(BadUsage):
            bundle.import_(path, Store(tmp_path / "s"), mine)


def test_a_known_name_with_other_bytes_is_unsafe(mine: config.Settings, tmp_path: Path) -> None:
    for ref in ("qwen2.5-coder:1.5b", f"https://example.org/a.gguf#sha256={'1' * 64}"):
        path, store = tmp_path / "x.tar", Store(tmp_path / "s")
        path.write_bytes(member("manifest.json", document([entry(GOOD)], ref)) + member(BLOB, GOOD) + END)
        with pytest.raises(Unsafe, match="pinned"):
            bundle.import_(path, store, mine)
        assert tree(store.root) == {}


def test_a_pin_in_the_name_makes_it_verified(mine: config.Settings, tmp_path: Path) -> None:
    ref = f"https://example.org/a.gguf#sha256={hashlib.sha256(GOOD).hexdigest()}"
    (tmp_path / "x.tar").write_bytes(member("manifest.json", document([entry(GOOD)], ref)) + member(BLOB, GOOD) + END)
    assert bundle.import_(tmp_path / "x.tar", Store(tmp_path / "s"), mine).artifact.trust == "verified"


def test_a_model_that_is_here_is_not_replaced(full: Store, mine: config.Settings, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(MANIFEST + member(BLOB, GOOD) + END)
    before = full.find(REF)
    with pytest.raises(BadUsage, match="other files"):
        bundle.import_(tmp_path / "x.tar", full, mine)
    assert full.find(REF) == before


def test_a_file_named_like_a_model_that_is_none(mine: config.Settings, tmp_path: Path) -> None:
    for name in ("x.gguf", "x.safetensors"):
        data = b"no model at all" * 10
        blob = "blobs/sha256-" + hashlib.sha256(data).hexdigest()
        tar = member("manifest.json", document([entry(data, name)])) + member(blob, data) + END
        (tmp_path / "x.tar").write_bytes(tar)
        store = Store(tmp_path / "s")
        with pytest.raises(Corrupt):
            bundle.import_(tmp_path / "x.tar", store, mine)
        assert store.list() == []
        assert [k for k in tree(store.root) if k.startswith("blobs")] == []


class Failing(Fs):
    """Fails the N-th write."""

    def __init__(self, n: int) -> None:
        self.left = n

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(28, os.strerror(28))
        return super().pwrite(fd, data, offset)


def test_a_disk_that_fills_up_leaves_no_model_and_the_next_try_works(
    full: Store, mine: config.Settings, tmp_path: Path
) -> None:
    bundle.export(REF, tmp_path / "x.tar", full)
    failed = 0
    for n in range(40):
        root = tmp_path / f"s{n}"
        try:
            bundle.import_(tmp_path / "x.tar", Store(root, Failing(n)), mine)
        except DiskFull:
            failed += 1
            assert Store(root).list() == []
            bundle.import_(tmp_path / "x.tar", Store(root), mine)
        else:
            break
    assert failed > 2
    assert Store(root).find(REF).files == full.find(REF).files


class Small(Fs):
    """A disk with hardly any room."""

    def free(self, path: Path) -> int:
        return 1000


def test_no_room_is_said_before_the_first_byte(full: Store, mine: config.Settings, tmp_path: Path) -> None:
    bundle.export(REF, tmp_path / "x.tar", full)
    with pytest.raises(DiskFull, match="to spare"):
        bundle.import_(tmp_path / "x.tar", Store(tmp_path / "s", Small()), mine)
    assert tree(tmp_path / "s") == {}


def test_manifest_is_the_stores_own(full: Store, tmp_path: Path) -> None:
    bundle.export(REF, tmp_path / "x.tar", full)
    with tarfile.open(tmp_path / "x.tar") as tar:
        inner = tar.extractfile("manifest.json")
        assert inner is not None
        assert manifest.decode(inner.read()) == full.find(REF)
