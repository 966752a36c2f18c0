"""Many processes, one store: who waits, who removes, and what happens where locks do nothing."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from miyabi_llm.errors import MiyabiError, ModelMissing
from miyabi_llm.store import Fs, Store, locks

from .faulty import OTHER, REF, STEP, Scene, Server, forked, pull

HOUR = 3600.0


class NoLocks(Fs):
    """A network filesystem that grants every lock to everybody."""

    def flock(self, fd: int, operation: int) -> None:
        """Granted."""


class NoSuchCall(Fs):
    """A filesystem without locks."""

    def flock(self, fd: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")


def eight(root: Path, fs: Fs, data: bytes) -> int:
    """Eight processes pull one file at once; returns the bytes served to all of them."""
    count, hands = os.pipe()

    def served(size: int) -> None:
        time.sleep(0.002)
        os.write(hands, size.to_bytes(8, "little"))

    def one() -> int:
        pull(Store(root, fs, step=STEP), REF, Server({"m.gguf": data}, served=served))
        return 0

    children = []
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = one()
            finally:
                os._exit(code)
        children.append(pid)
    os.close(hands)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    with os.fdopen(count, "rb") as pipe:
        total = sum(int.from_bytes(pipe.read(8)[:8], "little") for _ in iter(lambda: pipe.peek(1), b""))
    assert codes == [0] * 8
    return total


def right(root: Path, data: bytes) -> None:
    store = Store(root)
    artifact = store.find(REF)
    assert store.files(artifact)["m.gguf"].read_bytes() == data
    assert all(c.ok for c in store.verify(artifact))


def test_eight_processes_fetch_a_blob_once(ground: Path) -> None:
    data = random.Random(1).randbytes(700_000)
    assert eight(ground / "s", Fs(), data) <= 1.05 * len(data)
    right(ground / "s", data)
    assert os.listdir(ground / "s/parts") == []


@pytest.mark.parametrize("fs", [NoLocks(), NoSuchCall()])
def test_without_locks_only_more_bytes_are_fetched(fs: Fs, ground: Path) -> None:
    data = random.Random(1).randbytes(300_000)
    assert eight(ground / "s", fs, data) >= len(data)
    right(ground / "s", data)
    assert os.listdir(ground / "s/parts") == []


def test_a_filesystem_of_several_machines_gets_private_parts(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    lines = ["22 27 0:21 / / rw - ext4 /dev/vda rw", "30 27 0:55 / /home rw shared:1 - nfs4 host:/x rw,local_lock=all"]
    mounts.write_text("\n".join([*lines, "31 27 0:56 / /mnt rw - fuse.sshfs host:/x rw"]))
    assert [locks.is_remote(os.makedev(0, n), mounts) for n in (21, 55, 56, 57)] == [False, True, True, False]


def test_waiting_can_be_interrupted_and_ends_with_the_blob(ground: Path) -> None:
    data = random.Random(2).randbytes(200_000)
    server = Server({"m.gguf": data})
    file = server.listing()[0]
    store, waits = Store(ground / "s"), []

    class Enough(Exception):
        pass

    def give_up() -> None:
        waits.append(1)
        if len(waits) == 3:
            raise Enough

    with store.part(file.sha256, file.size) as first:
        with pytest.raises(Enough), store.part(file.sha256, file.size, on_wait=give_up):
            pass
        seen: list[bool] = []

        def second() -> None:
            with Store(ground / "s").part(file.sha256, file.size) as part:
                seen.append(part.present)
                part.write(0, b"dropped")
                part.commit(file.sha256, file.size)

        thread = threading.Thread(target=second)
        thread.start()
        first.write(0, data)
        first.commit(file.sha256, file.size)
    thread.join()
    assert seen == [True]
    assert store.blob(file.sha256).read_bytes() == data


def test_a_dead_process_leaves_no_lock_behind(ground: Path) -> None:
    """S19: the lock's file of a dead process does not make the next one wait."""
    data = random.Random(2).randbytes(200_000)
    server = Server({"m.gguf": data})
    file = server.listing()[0]

    def dies() -> int:
        with Store(ground / "s").part(file.sha256, file.size):
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert forked(dies) == -9
    assert os.listdir(ground / "s/parts")
    start = time.monotonic()
    pull(Store(ground / "s"), REF, server)
    assert time.monotonic() - start < 2
    assert os.listdir(ground / "s/parts") == []


def test_prune_keeps_what_is_needed_young_or_leased(ground: Path) -> None:
    scene, now = Scene(random.Random(7)), time.time()
    scene.build(ground / "s")
    store = Store(ground / "s")
    old = store.find(REF)
    pull(store, REF, Server(scene.new))
    unused = {f.sha256 for f in old.files}
    with store.part("ab" * 32) as part:
        part.write(0, b"x" * 5000)

    young = store.prune(dry_run=False)
    assert not young.removed
    assert {r.path.name for r in young.kept} >= unused

    after = Store(ground / "s", clock=lambda: now + 2 * HOUR)
    with store.lease(old):
        report = after.prune(dry_run=False)
        assert [r.kind for r in report.removed] == ["partial", "partial"]
        assert "in use" in {r.reason for r in report.kept}
    plan = after.prune(dry_run=True)
    assert all(store.has(b) for b in unused)
    os.utime(store.blob(next(iter(unused))), (now, now))
    done = after.prune(dry_run=False)
    assert (plan.removed, plan.bytes) == (done.removed, 100_000)
    assert not any(store.has(b) for b in unused)
    assert not scene.judge(ground / "s", must=scene.new)
    assert not scene.clean(ground / "s")


def test_a_clock_that_jumps_back_loses_nothing(ground: Path) -> None:
    scene = Scene(random.Random(7))
    scene.build(ground / "s")
    store = Store(ground / "s", clock=lambda: 0.0)
    pull(store, REF, Server(scene.new))
    assert not store.prune(dry_run=False).removed


def test_a_hit_keeps_a_blob_until_the_pull_is_done(ground: Path) -> None:
    """S20: a pull counts on an old unused blob; a prune must not take it before the manifest is there."""
    scene, now = Scene(random.Random(7)), time.time()
    scene.build(ground / "s")
    store = Store(ground / "s")
    old = store.find(REF)
    pull(store, REF, Server(scene.new))
    for file in old.files:
        os.utime(store.blob(file.sha256), (now - 9 * HOUR, now - 9 * HOUR))
        assert store.has(file.sha256, file.size)
        assert now - store.blob(file.sha256).stat().st_mtime < 60
    after = Store(ground / "s", clock=lambda: now + 2 * HOUR)
    with store.using():
        taken = locks.take(store.fs, store.layout.lock, exclusive=True, timeout=0.05)
        assert taken is None
        store.publish(old)
    assert after.prune(dry_run=False).removed
    assert store.find(REF) == old


def test_a_lease_outlives_its_maker_in_a_child(ground: Path) -> None:
    scene, now = Scene(random.Random(7)), time.time()
    scene.build(ground / "s")
    store, after = Store(ground / "s"), Store(ground / "s", clock=lambda: now + 2 * HOUR)
    artifact = store.find(REF)
    hold, let_go = os.pipe()
    with store.lease(artifact) as lease:
        lease.hand_over()
        pid = os.fork()
        if pid == 0:
            os.close(let_go)
            os.read(hold, 1)
            os._exit(0)
    os.close(hold)
    with pytest.raises(MiyabiError, match="in use"):
        store.remove(REF)
    assert not [r for r in after.prune(dry_run=False).removed if r.kind == "lease"]
    os.close(let_go)
    os.waitpid(pid, 0)
    assert [r.kind for r in after.prune(dry_run=False).removed] == ["lease"]
    assert store.remove(REF).bytes == 100_000


def test_remove_takes_only_what_no_other_model_needs(ground: Path) -> None:
    scene = Scene(random.Random(7))
    scene.build(ground / "s")
    store = Store(ground / "s")
    pull(store, REF, Server(scene.new))
    usage = store.df()
    assert usage.shared == 30_000
    assert usage.unused == 100_000
    assert [(str(m.ref), m.bytes, m.shared) for m in usage.models] == [
        (str(OTHER), 30_000, 30_000),
        (str(REF), 330_002, 30_000),
    ]
    assert store.remove(REF).bytes == 300_002
    with pytest.raises(ModelMissing):
        store.find(REF)
    with pytest.raises(ModelMissing):
        store.remove(REF)
    assert store.files(store.find(OTHER))["o.gguf"].read_bytes() == scene.other["o.gguf"]
    assert len(os.listdir(ground / "s/views")) == 2  # the old version's, until prune


def test_removal_waits_for_no_pull_for_ever(ground: Path) -> None:
    scene = Scene(random.Random(7))
    scene.build(ground / "s")
    store = Store(ground / "s", wait=0.05)
    with store.using():
        with pytest.raises(MiyabiError, match="in use by a pull"):
            store.remove(REF)
        with pytest.raises(MiyabiError, match="in use by a pull"):
            store.prune(dry_run=False)
    assert not scene.judge(ground / "s", must=scene.old)


def test_signals_in_a_pull_keep_what_came(ground: Path) -> None:
    """S29: Ctrl-C keeps the bytes and frees the locks; the next run fetches only the rest."""
    data = random.Random(2).randbytes(300_000)
    served: list[int] = []
    file = Server({"m.gguf": data}).listing()[0]

    def interrupted() -> int:
        try:
            with Store(ground / "s").part(file.sha256, file.size) as part:
                part.reset('"v1"', file.size)
                part.write(0, data[:200_000])
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            return 130

    assert forked(interrupted) == 130
    assert sorted(p.suffix for p in (ground / "s/parts").iterdir()) == [".json", ".part"]
    pull(Store(ground / "s"), REF, Server({"m.gguf": data}, served=served.append))
    assert sum(served) == 100_000
    right(ground / "s", data)
