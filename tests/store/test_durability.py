"""What kill -9 cannot show: a power cut drops all that was not synced."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from miyabi_llm.store import Fs, Store

from .faulty import REF, STEP, Scene, Server, forked, pull
from .power import IMAGES, ForgetsTheFolder, ForgetsToSync, PowerFs


class Recorder(Fs):
    """Writes down the operations that the order of durability is made of."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.open_as: dict[int, str] = {}

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        fd = super().open(path, flags, mode)
        self.open_as[fd] = path.name
        return fd

    def fsync(self, fd: int) -> None:
        super().fsync(fd)
        self.log.append(f"fsync {self.open_as[fd]}")

    def fchmod(self, fd: int, mode: int) -> None:
        super().fchmod(fd, mode)
        self.log.append(f"chmod {mode:o}")

    def pread(self, fd: int, buffer: memoryview, offset: int) -> int:
        count = super().pread(fd, buffer, offset)
        self.log.append(f"read {self.open_as[fd]}")
        return count

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.log.append(f"rename {source.name} {target.parent.name}")

    def fsync_dir(self, path: Path) -> None:
        super().fsync_dir(path)
        self.log.append(f"fsync {path.name}/")


def test_bytes_then_hash_then_name_then_manifest(tmp_path: Path) -> None:
    fs = Recorder()
    Store(tmp_path / "s").prune(dry_run=True)
    server = Server({"m.gguf": random.Random(1).randbytes(200_000)})
    sha = server.listing()[0].sha256
    pull(Store(tmp_path / "s", fs), REF, server)
    wanted = [
        rf"fsync {sha}\.part",
        rf"read {sha}\.part",
        "chmod 444",
        rf"rename {sha}\.part blobs",
        "fsync blobs/",
        r"fsync \w{64}\.json\.\w+\.tmp",
        r"rename \w{64}\.json\.\w+\.tmp models",
        "fsync models/",
    ]
    start = next(i for i, line in enumerate(fs.log) if re.fullmatch(wanted[0], line))
    rest = iter(fs.log[start:])
    for pattern in wanted:
        assert any(re.fullmatch(pattern, line) for line in rest), (pattern, fs.log)
    assert sum("models" in line and "rename" in line for line in fs.log) == 1


SCRIPT = """
import random, sys
from pathlib import Path
from miyabi_llm.store import Store
from tests.store.faulty import REF, Server, pull
pull(Store(Path(sys.argv[1])), REF, Server({"m.gguf": random.Random(1).randbytes(200_000)}))
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_kernel_sees_the_same_order(tmp_path: Path) -> None:
    out, root = tmp_path / "trace", tmp_path / "s"
    calls = "trace=fsync,fdatasync,rename,renameat,renameat2"
    command = ["strace", "-f", "-y", "-qq", "-o", str(out), "-e", calls, sys.executable, "-c", SCRIPT, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip("tracing is not allowed here")
    assert done.returncode == 0, done.stderr
    trace = out.read_text()
    wanted = [
        r"fsync\(\d+<[^>]*parts/\w{64}\.part>\)",
        r'rename\w*\([^)]*parts/\w{64}\.part", (?:AT_FDCWD[^,]*, )?"[^"]*/blobs/\w{64}"',
        r"fsync\(\d+<[^>]*/blobs>\)",
        r"fsync\(\d+<[^>]*/models/\w{64}\.json\.\w+\.tmp>\)",
        r'rename\w*\([^)]*/models/\w{64}\.json\.\w+\.tmp", (?:AT_FDCWD[^,]*, )?"[^"]*/models/\w{64}\.json"',
        r"fsync\(\d+<[^>]*/models>\)",
    ]
    at = 0
    for pattern in wanted:
        found = re.search(pattern, trace[at:])
        assert found, f"{pattern} is missing or too early in\n{trace}"
        at += found.end()


def cuts(kind: type[PowerFs], ground: Path, *, until_wrong: bool = False) -> tuple[int, list[str]]:
    """Cut the power at every operation of a pull, or until something went wrong; (cases, what went wrong)."""
    scene, wrong, cases = Scene(random.Random(7)), [], 0
    scene.build(ground / "template")
    server = Server(scene.new)
    for at in range(1, 500):
        root, images = ground / "case", ground / "images"
        shutil.copytree(ground / "template", root, symlinks=True)

        def work(root: Path = root, images: Path = images, at: int = at) -> int:
            pull(Store(root, kind(root, images, at), step=STEP), REF, server)
            return 0

        code = forked(work)
        assert code in (0, 77), code
        for image in IMAGES if code == 77 else ():
            cases += 1
            left = images / image
            found = scene.judge(left)
            pull(Store(left, step=STEP), REF, server)
            found += scene.judge(left, must=scene.new)
            wrong += [f"power cut at {at}, names {image}: {f}" for f in found]
        shutil.rmtree(root)
        shutil.rmtree(images, ignore_errors=True)
        if code == 0 or (until_wrong and wrong):
            return cases, wrong
    raise AssertionError("never ended")


def test_a_power_cut_at_every_operation(ground: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases, wrong = cuts(PowerFs, ground)
    with capsys.disabled():
        print(f"\n  power cut: {cases} cases, {len(wrong)} bad")
    assert not wrong, "\n".join(wrong[:20])
    assert cases > 100


@pytest.mark.parametrize("kind", [ForgetsToSync, ForgetsTheFolder])
def test_a_missing_sync_is_caught(kind: type[PowerFs], ground: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases, wrong = cuts(kind, ground, until_wrong=True)
    with capsys.disabled():
        print(f"\n  {kind.__name__}: caught in case {cases}: {wrong[0] if wrong else None}")
    assert wrong


def test_what_a_pull_reported_survives_a_power_cut(ground: Path) -> None:
    scene = Scene(random.Random(7))
    scene.build(ground / "s")

    def work() -> int:
        fs = PowerFs(ground / "s", ground / "images", at=0)
        pull(Store(ground / "s", fs, step=STEP), REF, Server(scene.new))
        fs.cut()
        return 0

    assert forked(work) == 77
    for image in IMAGES:
        assert not scene.judge(ground / "images" / image, must=scene.new)


def test_the_journal_claims_only_what_was_synced(ground: Path) -> None:
    """For a file whose hash nobody knows, the journal is the only guard: zeros must not count as done."""
    data = random.Random(5).randbytes(400_000)
    key = "ab" * 32
    root, images = ground / "s", ground / "images"
    with Store(root).part(key):
        pass

    def work(at: int) -> int:
        with Store(root, PowerFs(root, images, at), step=STEP).part(key, len(data)) as part:
            part.reset('"v"', len(data))
            for start in range(0, len(data), 20_000):
                part.write(start, data[start : start + 20_000])
                if start % 80_000 == 0:
                    time.sleep(0.005)
            part._follower.stop()
        return 0

    claimed = 0
    for at in range(1, 60, 2):
        code = forked(partial(work, at))
        for image in IMAGES if code == 77 else ():
            with Store(images / image, step=STEP).part(key, len(data)) as part:
                disk = (images / image / "parts" / f"{key}.part").read_bytes()
                for a, b in part.done:
                    claimed += b - a
                    assert part.validator == '"v"'
                    assert disk[a:b] == data[a:b], (at, image, a, b)
        shutil.rmtree(images, ignore_errors=True)
        for path in (root / "parts").iterdir():
            os.unlink(path)
    assert claimed > 0
