"""A disk that is really full, and a process that may not write more."""

from __future__ import annotations

import json
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from miyabi_llm.errors import DiskFull
from miyabi_llm.store import Fs, Store

from .faulty import REF, STEP, Scene, Server, forked, pull

SCRIPT = """
import json, os, random, subprocess, sys, time
from pathlib import Path
from miyabi_llm.errors import DiskFull
from miyabi_llm.store import Store
from tests.store.faulty import REF, STEP, Server, pull

root = Path(sys.argv[1])
served = []

def slowly(count):  # so that the thread that keeps the journal has its turn
    served.append(count)
    time.sleep(0.005)

server = Server({"m.gguf": random.Random(1).randbytes(900_000)}, served=slowly)
said = {"before": Store(root / "s").free_bytes()}
try:
    pull(Store(root / "s", step=STEP), REF, server)
except DiskFull as e:
    said |= {"message": e.message, "needed": e.details["needed"], "exit": e.exit_code}
said["blobs"] = os.listdir(root / "s/blobs") if (root / "s/blobs").exists() else []
first, said["models"] = sum(served), len(Store(root / "s").list())
subprocess.run(["mount", "-o", "remount,size=16m", str(root)], check=True)
served.clear()
artifact = pull(Store(root / "s", step=STEP), REF, server)
store = Store(root / "s")
said |= {"again": sum(served), "left": os.listdir(root / "s/parts")}
said["ok"] = [c.ok for c in store.verify(store.find(REF))]
print(json.dumps(said))
"""


def on_a_disk_of(size: str, script: str, folder: Path) -> dict[str, Any]:
    """What `script` prints as JSON when its argument is a tmpfs of that size, in a mount namespace of its own."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("a mount namespace is not allowed here")
    inner = f'mount -t tmpfs -o size={size} none "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", inner, "sh", str(folder), sys.executable, script],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("size", ["60k", "300k", "700k"])
def test_a_full_disk_is_said_and_survived(size: str, tmp_path: Path) -> None:
    """S5: a tmpfs of that size in a mount namespace of our own, then more space."""
    said = on_a_disk_of(size, SCRIPT, tmp_path)
    assert said["exit"] == 4
    assert str(tmp_path) in said["message"]
    assert "No space left" in said["message"]
    assert 0 < said["needed"] <= 900_000
    assert (said["blobs"], said["models"]) == ([], 0)
    assert said["ok"] == [True]
    assert said["left"] == []
    assert said["again"] <= 900_000
    if size == "700k":
        assert said["again"] < 900_000  # what had arrived was kept


def test_a_limit_on_file_sizes_is_a_full_disk(ground: Path) -> None:
    scene = Scene(random.Random(7))
    scene.build(ground / "s")
    server = Server(scene.new)

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            pull(Store(ground / "s", step=STEP), REF, server)
        except DiskFull as e:
            return 4 if str(ground) in e.message and e.details["needed"] else 5
        return 0

    assert forked(limited) == 4
    assert not scene.judge(ground / "s", must=scene.old)
    pull(Store(ground / "s", step=STEP), REF, server)
    assert not scene.judge(ground / "s", must=scene.new)
    assert not scene.clean(ground / "s")


class Short(Fs):
    """Takes and gives only a few bytes at a time."""

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        return super().pwrite(fd, data[:7000], offset)

    def pread(self, fd: int, buffer: memoryview, offset: int) -> int:
        return super().pread(fd, buffer[:9001], offset)


def test_short_writes_and_reads_are_continued(ground: Path) -> None:
    scene = Scene(random.Random(7))
    scene.build(ground / "s")
    pull(Store(ground / "s", Short(), step=STEP), REF, Server(scene.new))
    assert not scene.judge(ground / "s", must=scene.new)


READ_ONLY = """
import json, subprocess, sys
from pathlib import Path
from miyabi_llm.errors import MiyabiError
from miyabi_llm.store import Store
from tests.store.faulty import REF, Server, pull

root = Path(sys.argv[1])
pull(Store(root / "s"), REF, Server({"m.gguf": b"old"}))
subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
store, said = Store(root / "s"), {}
try:
    pull(store, REF, Server({"m.gguf": b"new"}))
except MiyabiError as e:
    said = {"message": e.message, "hint": e.hint}
sha = store.find(REF).files[0].sha256
said |= {"bytes": store.blob(sha).read_text(), "has": store.has(sha)}
print(json.dumps(said))
"""


def test_a_read_only_store_can_be_read_and_says_that_it_is(tmp_path: Path) -> None:
    said = on_a_disk_of("1m", READ_ONLY, tmp_path)
    assert "Read-only file system" in said["message"]
    assert "writable" in said["hint"]
    assert (said["bytes"], said["has"]) == ("old", True)
