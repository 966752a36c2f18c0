"""The same fault loop around the real pull: over HTTP, from a loopback server in a process of its own."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from miyabi_llm.config import Settings
from miyabi_llm.errors import DiskFull, MiyabiError, ModelMissing
from miyabi_llm.pull import pull
from miyabi_llm.refs import ModelRef
from miyabi_llm.store import Store
from tests import ggufs
from tests.faultd import OK, Fault, Faultd

from .faulty import EIO, ENOSPC, READS, STEP, WRITES, FaultyFs, FullFs, failing, forked, kill
from .mutants import PublishesBeforeItVerifies, with_part


def model() -> bytes:
    """A sound header, then bytes that are all different."""
    whole = ggufs.model({"general.architecture": "qwen2"}, [("t", (75_000,), 0, 300_000)])
    return whole[:-300_000] + random.Random(9).randbytes(300_000)


DATA = model()
HEX = hashlib.sha256(DATA).hexdigest()


@dataclass
class FarSide:
    """The server's process: its URL, and a pipe that says whether it tells the truth."""

    url: str
    orders: int
    answers: int

    def lies(self, *, yes: bool) -> None:
        os.write(self.orders, b"1" if yes else b"0")
        assert os.read(self.answers, 1) == b"."


def serve(orders: int, answers: int) -> int:
    """Serve until the pipe ends; a lie is a flipped byte under the same ETag."""
    with Faultd() as server:
        url = server.put("/m.gguf", DATA)
        os.write(answers, url.ljust(100).encode())
        while order := os.read(orders, 1):
            server.always("/m.gguf", Fault(flip=200_000) if order == b"1" else OK)
            os.write(answers, b".")
    return 0


@pytest.fixture(scope="module")
def far() -> Iterator[FarSide]:
    orders, order = os.pipe()
    answer, answers = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.close(order)
            code = serve(orders, answers)
        finally:
            os._exit(code)
    os.close(orders)
    os.close(answers)
    yield FarSide(os.read(answer, 100).decode().strip(), order, answer)
    os.close(order)
    os.close(answer)
    assert os.waitpid(pid, 0)[1] == 0


@dataclass(frozen=True)
class World:
    """One case's folder."""

    root: Path
    far: FarSide
    store: type[Store] = Store

    @property
    def ref(self) -> ModelRef:
        return ModelRef.parse(f"{self.far.url}#sha256={HEX}")

    def pull(self, fs: FaultyFs | None = None) -> int:
        settings = Settings(self.root, self.root / "c", self.root / "k", self.root, env={})
        pull(self.ref, self.store(self.root / "s", fs, step=STEP), settings)
        return 0

    def explained(self, fs: FaultyFs | None = None) -> list[str]:
        """Pull; an error must be one of ours, and name a path when the disk was at fault."""
        try:
            self.pull(fs)
        except DiskFull as e:
            return [] if str(self.root) in e.message else [f"no path in {e}"]
        except MiyabiError:
            return []
        except OSError as e:
            return [f"not explained: {e!r}"]
        return []

    def judge(self) -> list[str]:
        wrong = [
            f"bad bytes are published as {blob.name[:8]}"
            for blob in (self.root / "s/blobs").glob("*")
            if hashlib.sha256(blob.read_bytes()).hexdigest() != blob.name
        ]
        store = Store(self.root / "s")
        try:
            (path,) = store.files(store.find(self.ref)).values()
        except (ModelMissing, MiyabiError):
            return wrong
        return wrong if path.read_bytes() == DATA else [*wrong, "the model means other bytes"]

    def clean(self) -> list[str]:
        store = Store(self.root / "s")
        left = [*self.root.glob("s/parts/*"), *self.root.glob("s/models/*.tmp"), *self.root.glob("s/quarantine/*")]
        whole = [c.ok for c in store.verify(store.find(self.ref))] == [True]
        return [str(p) for p in left] + ([] if whole else ["not whole"])


def case(world: World, kind: str, fs: FaultyFs, *, flip: bool) -> tuple[bool, list[str]]:
    """A struck pull, the truth about it, and the same pull again."""
    world.far.lies(yes=flip)
    wrong: list[str] = []
    if kind == "kill":
        fired = forked(partial(quiet, world, fs)) == -9
    else:
        wrong += world.explained(fs)
        fired = fs.fired
    wrong += world.judge()
    if flip:
        wrong += world.explained() + world.judge()
        if Store(world.root / "s").list():
            wrong.append("wrong bytes were accepted")
    world.far.lies(yes=False)
    try:
        world.pull()
    except (MiyabiError, OSError) as e:
        return fired, [*wrong, f"the next pull fails: {e!r}"]
    return fired, wrong + world.judge() + world.clean()


def quiet(world: World, fs: FaultyFs) -> int:
    return len(world.explained(fs))


LOOPS: list[tuple[str, bool, bool]] = [
    (kind, flip, behind)
    for behind in (False, True)
    for kind in ("kill", "ENOSPC", "full", "EIO")
    for flip in (False, True)
    if not (flip and kind in ("full", "EIO"))
]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_every_fault_in_a_real_pull(far: FarSide, ground: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far.lies(yes=False)
    World(ground / "warm", far).pull()  # imports, before anything forks
    total = 0
    bad: list[str] = []
    for kind, flip, behind in LOOPS:
        make: Callable[[int], FaultyFs] = {
            "kill": lambda at, b=behind: FaultyFs(at, kill, behind=b),
            "ENOSPC": lambda at, b=behind: FaultyFs(at, failing(ENOSPC), behind=b),
            "full": lambda at, b=behind: FullFs(at, failing(ENOSPC), behind=b),
            "EIO": lambda at, b=behind: FaultyFs(at, failing(EIO), WRITES + READS, behind=b),
        }[kind]
        for at in range(1, 500):
            world = World(ground / "case", far)
            fired, wrong = case(world, kind, make(at), flip=flip)
            shutil.rmtree(world.root)
            if not fired:
                break
            total += 1
            bad += [f"{kind} {'behind' if behind else 'front'} at {at}, flip {flip}: {w}" for w in wrong]
    with capsys.disabled():
        print(f"\n  real pull: {total} cases, {len(bad)} bad")
    assert not bad, "\n".join(bad[:20])
    assert total >= 150


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_loop_around_the_real_pull_has_teeth(far: FarSide, ground: Path) -> None:
    """Publishing before the hash is taken shows only where a kill meets wrong bytes."""
    far.lies(yes=False)
    World(ground / "warm", far).pull()
    for at in range(1, 200):
        world = World(ground / "case", far, with_part(PublishesBeforeItVerifies))
        fired, wrong = case(world, "kill", FaultyFs(at, kill), flip=True)
        shutil.rmtree(world.root)
        if any("bad bytes are published" in w for w in wrong):
            return
        assert fired, "not caught"
