"""The store from outside: what comes in is found again, whole, and costs what it says."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.errors import BadUsage, Corrupt, MiyabiError, ModelMissing
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.store import Incomplete, Store
from miyabi_llm.store.ranges import Ranges
from miyabi_llm.types import Artifact, StoredFile

from .faulty import OTHER, REF, STEP, Scene, Server, pull


def sha(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())


def test_a_store_that_is_not_there_is_empty_and_stays_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "none" / "s")
    assert (store.list(), store.problems(), store.has("ab" * 32)) == ([], [], False)
    assert store.df().blobs == 0
    assert store.free_bytes() > 0
    assert store.prune(dry_run=False).removed == ()
    with pytest.raises(ModelMissing) as caught:
        store.find(REF)
    assert caught.value.hint == f"Run `miyabi-llm pull {REF}`."
    assert not (tmp_path / "none").exists()


def test_what_comes_in_is_found_again(ground: Path) -> None:
    scene = Scene(random.Random(7))
    scene.build(ground / "s")
    store = Store(ground / "s")
    pull(store, REF, Server(scene.new))
    artifact = Store(ground / "s").find(REF)
    assert {f.name: f.size for f in artifact.files} == {n: len(d) for n, d in scene.new.items()}
    files = store.files(artifact)
    assert {n: p.read_bytes() for n, p in files.items()} == scene.new
    assert files["sub/projector.gguf"].parts[-2:] == ("sub", "projector.gguf")
    assert store.files(artifact) == files
    assert os.stat(files["m.gguf"]).st_ino == os.stat(store.blob(artifact.files[0].sha256)).st_ino
    assert [a.ref for a in store.list()] == [OTHER, REF]


def test_pieces_in_any_order_from_many_threads(ground: Path) -> None:
    data = random.Random(4).randbytes(3_000_000)
    pieces = [(i, data[i : i + 10_007]) for i in range(0, len(data), 10_007)]
    random.Random(5).shuffle(pieces)
    with Store(ground / "s", step=STEP).part(sha(data), len(data)) as part:
        threads = [threading.Thread(target=lambda k=k: [part.write(*p) for p in pieces[k::4]]) for k in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert part.done == [(0, len(data))]
        assert part.commit(sha(data), len(data)).size == len(data)
    assert Store(ground / "s").blob(sha(data)).read_bytes() == data


def test_bytes_that_come_twice_count_as_they_came_last(ground: Path) -> None:
    """The hasher is behind the writers: what it has read already must be read again."""
    data = random.Random(4).randbytes(2_000_000)
    with Store(ground / "s", step=STEP).part(sha(data), len(data)) as part:
        for start in range(0, len(data), 100_000):
            part.write(start, bytes(100_000))
        part._follower._threads and threading.Event().wait(0.05)
        for start in range(0, len(data), 100_000):
            part.write(start, data[start : start + 100_000])
        assert part.commit(sha(data), len(data)).sha256 == sha(data)


def test_a_part_goes_on_where_it_stood(ground: Path) -> None:
    data = random.Random(4).randbytes(400_000)
    with Store(ground / "s").part(sha(data)) as part:
        assert (part.size, part.done, part.validator) == (None, [], None)
        part.reset('"e"', len(data))
        part.write(300_000, data[300_000:])
        part.write(0, data[:100_000])
        with pytest.raises(Incomplete, match="200,000 of 400,000"):
            part.commit(sha(data))
    with Store(ground / "s").part(sha(data)) as part:
        assert (part.size, part.done, part.validator) == (400_000, [(0, 100_000), (300_000, 400_000)], '"e"')
        part.write(100_000, data[100_000:300_000])
        part.commit(sha(data))
        assert part.present
        assert part.done == [(0, 400_000)]
    assert os.listdir(ground / "s/parts") == []


def test_a_new_validator_forgets_the_old_bytes(ground: Path) -> None:
    with Store(ground / "s").part("ab" * 32) as part:
        part.reset('"1"', 100_000)
        part.write(0, b"1" * 100_000)
        part.reset('"2"', 50_000)
        assert (part.done, part.size, part.validator) == ([], 50_000, '"2"')
        part.write(0, b"2" * 50_000)
        found = part.commit(None)
    assert found.sha256 == sha(b"2" * 50_000)
    assert Store(ground / "s").has(found.sha256, 50_000)


def test_wrong_bytes_are_dropped_and_can_come_again_at_once(ground: Path) -> None:
    data = random.Random(4).randbytes(100_000)
    with Store(ground / "s").part(sha(data), len(data)) as part:
        part.reset('"e"', len(data))
        part.write(0, bytes(len(data)))
        with pytest.raises(Corrupt) as caught:
            part.commit(sha(data))
        assert (caught.value.details["expected"], caught.value.details["found"]) == (sha(data), sha(bytes(100_000)))
        assert (part.done, part.validator) == ([], None)
        part.write(0, data)
        part.commit(sha(data))
    assert Store(ground / "s").blob(sha(data)).read_bytes() == data


def test_an_empty_file_is_a_file(ground: Path) -> None:
    with Store(ground / "s").part(sha(b""), 0) as part:
        part.reset(None, 0)
        assert part.commit(sha(b""), 0).size == 0
    with Store(ground / "s").part(sha(b""), 0) as part:
        assert part.present
        assert part.done == []
        assert part.commit(sha(b""), 0).sha256 == sha(b"")


def test_an_unused_part_leaves_nothing(ground: Path) -> None:
    with Store(ground / "s").part("ab" * 32, 5):
        pass
    assert os.listdir(ground / "s/parts") == []


def test_a_key_that_is_no_hash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadUsage), Store(tmp_path / "s").part("../../x"):
        pass
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("linked", [False, True])
def test_other_files_are_adopted(linked: bool, ground: Path) -> None:
    data = random.Random(4).randbytes(100_000)
    (ground / "m.gguf").write_bytes(data)
    source = ground / "m.gguf"
    if linked:
        source = ground / "link"
        source.symlink_to(ground / "m.gguf")
    store = Store(ground / "s")
    found, size, how = store.adopt(source)
    assert (found, size) == (sha(data), 100_000)
    assert how in ("reflink", "hardlink")
    assert not store.blob(found).is_symlink()
    assert store.adopt(source, found)[0] == found
    with pytest.raises(Corrupt):
        store.adopt(source, Digest("ab" * 32))
    with pytest.raises(MiyabiError, match="No such file"):
        store.adopt(ground / "nothing")
    assert os.listdir(ground / "s/parts") == []
    assert (ground / "m.gguf").read_bytes() == data


def test_a_copy_is_adopted_from_another_filesystem(tmp_path: Path, ground: Path) -> None:
    if os.stat(tmp_path).st_dev == os.stat(ground).st_dev:
        pytest.skip("there is only one filesystem")
    (tmp_path / "m.gguf").write_bytes(b"bytes")
    store = Store(ground / "s")
    assert store.adopt(tmp_path / "m.gguf") == (sha(b"bytes"), 5, "copy")
    assert oct(store.blob(sha(b"bytes")).stat().st_mode)[-3:] == "444"


def test_a_scratch_file_is_published(ground: Path) -> None:
    store = Store(ground / "s")
    with store.using():
        path = store.scratch()
        path.write_bytes(b"made here")
        assert store.publish_blob(path, sha(b"made here")).size == 9
    assert store.blob(sha(b"made here")).read_bytes() == b"made here"
    files = (StoredFile("x", sha(b"made here"), 9),)
    artifact = Artifact(ModelRef.parse("made:here"), "gguf", files, "local", "", "now", None, {"a": [1]})
    store.publish(artifact)
    assert store.find(artifact.ref) == artifact


def test_looking_is_light(ground: Path) -> None:
    """`list` needs no network, no processes, no loops."""
    Scene(random.Random(7)).build(ground / "s")
    code = (
        "import sys; from pathlib import Path; from miyabi_llm.store import Store; "
        "print(len(Store(Path(sys.argv[1])).list())); "
        "heavy = {'asyncio', 'multiprocessing', 'subprocess', 'shutil', 'tempfile', 'httpx', 'psutil', 'ssl'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ground / "s")], capture_output=True, text=True)
    assert done.stdout == "2\n[]\n", done.stderr


def test_memory_stays_bounded(ground: Path) -> None:
    """A part costs a few megabytes, however big the file is."""
    code = """
import resource, sys
from pathlib import Path
from miyabi_llm.store import Store
piece = bytes(1 << 20)
with Store(Path(sys.argv[1]), step=8 << 20).part("ab" * 32, 96 << 20) as part:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(96):
        part.write(i << 20, piece)
    part.commit(None)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(ground / "s")], capture_output=True, text=True)
    assert int(done.stdout) < 30 << 10, done.stderr


PAIRS = st.tuples(st.integers(0, 60), st.integers(0, 60))


@given(st.lists(st.tuples(st.booleans(), PAIRS)))
def test_ranges_are_a_set(steps: list[tuple[bool, tuple[int, int]]]) -> None:
    ours, model = Ranges(), set[int]()
    for add, (a, b) in steps:
        assert ours.meets(a, b) == bool(model & set(range(a, b)))
        if add:
            ours.add(a, b)
            model |= set(range(a, b))
        else:
            ours.discard(a, b)
            model -= set(range(a, b))
        assert [i for x, y in ours.pairs() for i in range(x, y)] == sorted(model)
        assert all(y < x2 for (_, y), (x2, _) in zip(ours.pairs(), ours.pairs()[1:], strict=False))
        assert ours.total == len(model)
        assert ours.prefix == next(i for i in range(62) if i not in model)
        assert ours.end == max(model, default=-1) + 1
