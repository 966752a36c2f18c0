"""Fail the N-th file operation of a pull, for every N: by kill -9, full disk, I/O error; with right and wrong bytes."""

from __future__ import annotations

import random
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from miyabi_llm.errors import DiskFull, MiyabiError
from miyabi_llm.store import Store

from . import faulty, mutants
from .faulty import EIO, ENOSPC, READS, REF, STEP, WRITES, FaultyFs, FullFs, Scene, Server, failing, forked, kill, pull


@dataclass(frozen=True)
class Subject:
    """What is put through the loop: our store, or one with a bug."""

    store: type[Store] = Store
    fetch: faulty.Fetch = faulty.fetch
    server_ranges: bool = True


@dataclass(frozen=True)
class Fault:
    """One case: what happens at the how-manieth operation of which threads, with right or flipped bytes."""

    kind: str
    at: int
    flip: bool
    where: str


@dataclass(frozen=True)
class Loop:
    """One kind of fault over every operation of a pull."""

    scene: Scene
    subject: Subject
    ground: Path
    template: Path

    def run(
        self, fault: str, *, flip: bool, where: str, enough: int | None = None, every: range = range(1, 2000)
    ) -> tuple[int, list[str]]:
        """(cases, what went wrong) for N of `every` until the fault no longer comes, or `enough` went wrong.

        `where` is `alone` (no threads: a small file), `front` or `behind` (the threads that sync and hash).
        """
        wrong: list[str] = []
        for cases, at in enumerate(every):
            root = self.ground / "case"
            shutil.copytree(self.template, root, symlinks=True)
            try:
                fired, found = self.case(root, Fault(fault, at, flip, where))
            finally:
                shutil.rmtree(root)
            if not fired:
                return cases, wrong
            wrong += [f"{fault} {where} at {at}{' with wrong bytes' if flip else ''}: {f}" for f in found]
            if enough and len(wrong) >= enough:
                return cases + 1, wrong
        raise AssertionError("the fault never stops firing")

    def case(self, root: Path, fault: Fault) -> tuple[bool, list[str]]:
        """One fault: the struck pull, then the same command without faults; (did it strike, what went wrong)."""
        server = Server(self.scene.new, ranges=self.subject.server_ranges)
        bad, flip = replace(server, flip=True), fault.flip
        slow = replace(bad if flip else server, served=lambda count: time.sleep(0.002))
        first = slow if fault.where == "behind" else bad if flip else server
        step = 64 << 20 if fault.where == "alone" else STEP
        if fault.kind == "kill":
            fs = FaultyFs(fault.at, kill, behind=fault.where == "behind")
            fired = forked(partial(self.struck, root, fs, first, step)) == -9
            wrong = []
        else:
            kind = FullFs if fault.kind == "full" else FaultyFs
            counted, code = (WRITES + READS, EIO) if fault.kind == "EIO" else (WRITES, ENOSPC)
            fs = kind(fault.at, failing(code), counted, behind=fault.where == "behind")
            wrong = self.first(root, fs, first, step)
            fired = fs.fired
        wrong += self.scene.judge(root)
        if flip:  # the source is still wrong: refused, whatever the first run left
            try:
                pull(self.subject.store(root, step=STEP), REF, bad, fetch=self.subject.fetch)
                wrong.append("wrong bytes were accepted")
            except MiyabiError:
                pass
            wrong += self.scene.judge(root)
        try:  # the same command again
            pull(self.subject.store(root, step=STEP), REF, server, fetch=self.subject.fetch)
        except (MiyabiError, OSError) as e:
            wrong.append(f"the next pull fails: {e}")
        wrong += self.scene.judge(root, must=self.scene.new) or self.scene.clean(root)
        return fired, wrong

    def struck(self, root: Path, fs: FaultyFs, server: Server, step: int) -> int:
        """The first pull, for a child process."""
        return len(self.first(root, fs, server, step))

    def first(self, root: Path, fs: FaultyFs, server: Server, step: int) -> list[str]:
        """The pull that is struck. It may fail, but only with an explained error that names a path."""
        try:
            pull(self.subject.store(root, fs, step=step), REF, server, fetch=self.subject.fetch)
        except DiskFull as e:
            return [] if str(root) in e.message else [f"no path in {e}"]
        except MiyabiError as e:
            ours = server.flip or str(root) in e.message
            return [] if ours else [f"no path in {e}"]
        except OSError as e:
            where = " < ".join(f.name for f in reversed(traceback.extract_tb(e.__traceback__)))
            return [f"not explained: {e!r} in {where}"]
        return [] if not server.flip else ["wrong bytes were accepted"]


@pytest.fixture
def loop(ground: Path) -> Callable[[Subject], Loop]:
    def make(subject: Subject) -> Loop:
        scene = Scene(random.Random(7))
        template = ground / "template"
        shutil.rmtree(template, ignore_errors=True)
        scene.build(template)
        return Loop(scene, subject, ground, template)

    return make


FAULTS = [
    (kind, flip, where)
    for where, kinds in (
        ("alone", ("kill", "ENOSPC", "full", "EIO")),
        ("front", ("kill",)),
        ("behind", ("kill", "ENOSPC", "EIO")),
    )
    for kind in kinds
    for flip in (False, True)
]


@pytest.mark.parametrize("step", [2, pytest.param(1, marks=pytest.mark.slow)], ids=["every second", "every"])
def test_every_fault_at_every_operation(
    step: int, loop: Callable[[Subject], Loop], capsys: pytest.CaptureFixture[str]
) -> None:
    """All 835 cases in the slow run; else every second operation, odd ones for one kind of fault, even for the next."""
    one, total = loop(Subject()), 0
    wrong: list[str] = []
    for number, (kind, flip, where) in enumerate(FAULTS):
        every = range(1 + number % step, 2000, step)
        cases, found = one.run(kind, flip=flip, where=where, every=every)
        wrong += found
        total += cases
        line = f"{kind:6} {where:6} x {'wrong' if flip else 'right'} bytes: {cases} cases, {len(found)} bad"
        with capsys.disabled():
            print(f"\n  {line}", end="")
    with capsys.disabled():
        print(f"\n  {total} cases, {len(wrong)} bad")
    assert not wrong, "\n".join(wrong[:20])
    assert total >= 750 // step


# Each with the fault that finds it, which is tried before the others.
MUTANTS = {
    "publish before verify": (
        Subject(store=mutants.with_part(mutants.PublishesBeforeItVerifies)),
        ("kill", True, "alone"),
    ),
    "append after 200": (Subject(fetch=mutants.appends_after_200, server_ranges=False), ("ENOSPC", False, "alone")),
    "size only": (Subject(store=mutants.with_part(mutants.ChecksTheSizeOnly)), ("kill", True, "alone")),
    "write errors ignored": (
        Subject(store=mutants.with_part(mutants.IgnoresWriteErrors)),
        ("ENOSPC", False, "alone"),
    ),
    "manifest in place": (Subject(store=mutants.WritesTheManifestInPlace), ("kill", False, "alone")),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_loop_catches_real_bugs_of_others(
    name: str, loop: Callable[[Subject], Loop], capsys: pytest.CaptureFixture[str]
) -> None:
    subject, likely = MUTANTS[name]
    one, cases = loop(subject), 0
    caught: list[str] = []
    for kind, flip, where in sorted(FAULTS, key=lambda fault: fault != likely):
        done, found = one.run(kind, flip=flip, where=where, enough=1)
        cases += done
        caught += found
        if caught:
            break
    with capsys.disabled():
        print(f"\n  {name}: caught in case {cases}: {caught[0] if caught else None}")
    assert caught


def test_two_random_kills_in_a_row(loop: Callable[[Subject], Loop]) -> None:
    one, rng = loop(Subject()), random.Random(11)
    for _ in range(40):
        root = one.ground / "case"
        shutil.copytree(one.template, root, symlinks=True)
        server = Server(one.scene.new)
        for at in (rng.randint(1, 80), rng.randint(1, 80)):
            forked(partial(one.struck, root, FaultyFs(at, kill), server, STEP))
            assert not one.scene.judge(root)
        pull(Store(root, step=STEP), REF, server)
        assert not one.scene.judge(root, must=one.scene.new)
        assert not one.scene.clean(root)
        shutil.rmtree(root)


def test_a_second_run_fetches_only_what_is_missing(ground: Path) -> None:
    """A kill costs at most a step of bytes again."""
    scene, served = Scene(random.Random(3)), []
    scene.build(ground / "s")
    server = Server({"m.gguf": scene.new["m.gguf"]}, served=served.append)
    seen: list[int] = []
    for at in range(1, 60, 7):
        shutil.copytree(ground / "s", ground / "c", symlinks=True)
        killed = Store(ground / "c", FaultyFs(at, kill), step=STEP)
        forked(partial(_ends, partial(pull, killed, REF, server)))
        served.clear()
        pull(Store(ground / "c", step=STEP), REF, server)
        seen.append(sum(served))
        shutil.rmtree(ground / "c")
    assert min(seen) < 300_000


def _ends(work: Callable[[], object]) -> int:
    work()
    return 0
