"""The whole road of a build, with a tiny source: configured, compiled, published, found again."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from miyabi_llm.config import Settings
from miyabi_llm.errors import Corrupt, Missing, MiyabiError
from miyabi_llm.tools import build, installed, llama_cpp
from miyabi_llm.tools.install import World, install, install_programs
from miyabi_llm.tools.llama_cpp import SERVER
from miyabi_llm.tools.lock import Lock, SourcePin
from miyabi_llm.tools.running import Shell
from miyabi_llm.tools.toolchain import Builders
from miyabi_llm.types import Event
from tests.tools.stubs import alive_in_group, script, server, settings, source

needs_cmake = pytest.mark.skipif(
    not all(shutil.which(p, path="/usr/bin:/bin:/usr/local/bin") for p in ("cmake", "ninja", "c++")),
    reason="cmake, ninja or a compiler is not installed system-wide",
)


@dataclass
class Index:
    """A package index that hands out one file, and counts."""

    archive: Path
    pins: Lock
    asked: list[str] = field(default_factory=list)
    slow: float = 0

    def get(self, pin: SourcePin, python: Path | None, into: Path, shell: Shell) -> Path:
        self.asked.append(pin.dist)
        time.sleep(self.slow)
        return Path(shutil.copy(self.archive, into / "fake-1.0.tar.gz"))

    def builders(self, s: Settings, shell: Shell) -> Builders:
        path = "/usr/bin:/bin:/usr/local/bin"
        cmake, ninja = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
        assert cmake
        assert ninja
        return Builders(Path(cmake), Path(ninja), None)

    @property
    def world(self) -> World:
        return World(pins=self.pins, get_source=self.get, get_builders=self.builders)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    archive = tmp_path / "src.tar.gz"
    return Index(archive, source(archive))


@needs_cmake
def test_a_build_from_source_and_its_tools(tmp_path: Path, index: Index) -> None:
    s, events = settings(tmp_path), list[Event]()
    program = install(s, events.append, source="build", world=index.world)
    assert (program.how, program.version) == ("build", "0.5.0-dev (b11312)")
    assert program.commit == "0c1e57098"
    assert program.path.parent.name == "bin"
    steps = [e for e in events if e.kind == "progress"]
    assert steps
    assert steps[-1].done == steps[-1].total
    assert {e.unit for e in steps} == {"steps"}
    folder = program.path.parent.parent
    assert "cmake" in (folder / "build.log").read_text()
    assert not (folder / "source" / "docs").exists()
    assert not (folder / "bin" / "llama-quantize").exists()

    start = time.monotonic()
    assert install(s, world=index.world) == program
    assert install(s, source="build", world=index.world) == program
    assert time.monotonic() - start < 0.5
    assert llama_cpp.find(SERVER, s) == program

    both = install_programs((SERVER, "llama-quantize"), s, world=index.world)
    assert both["llama-quantize"].path == folder / "bin" / "llama-quantize"
    assert both["llama-quantize"].has("--ctx-size")
    assert index.asked == ["fake"]

    if readelf := shutil.which("readelf"):  # an empty entry would be the current directory
        said = subprocess.run([readelf, "-d", program.path], capture_output=True, text=True, check=True).stdout
        assert re.findall(r"R(?:UN)?PATH.*\[(.*)\]", said) == ["$ORIGIN"]

    moved = tmp_path / "moved"  # libraries are found beside the program, wherever it lies
    (folder / "bin").rename(moved)
    shutil.rmtree(folder)
    ran = subprocess.run([moved / SERVER, "--version"], capture_output=True, text=True, check=True)
    assert "build 11312" in ran.stderr
    assert llama_cpp.search(SERVER, s).program is None


def test_a_good_one_on_path_is_taken_and_a_bad_one_named(tmp_path: Path, index: Index) -> None:
    bad = script(tmp_path / "bad" / SERVER, "exit 1")
    good = server(tmp_path / "good" / SERVER)
    events = list[Event]()
    s = settings(tmp_path, tmp_path / "bad", tmp_path / "good")
    program = install(s, events.append, world=index.world)
    assert (program.path, program.how, index.asked) == (good, "path", [])
    assert [e.message for e in events if e.kind == "warning" and str(bad) in e.message]


@needs_cmake
def test_a_build_that_fails_says_why_and_leaves_nothing_installed(tmp_path: Path) -> None:
    archive = tmp_path / "src.tar.gz"
    index = Index(archive, source(archive, **{"main.cpp": "int main() { return sorely_missed; }\n"}))
    s = settings(tmp_path)
    with pytest.raises(MiyabiError, match="sorely_missed") as e:
        install(s, source="build", world=index.world)
    assert e.value.exit_code == 1
    assert "build.log" in str(e.value.hint)
    assert installed.all_of(s) == []
    assert llama_cpp.search(SERVER, s).program is None


@needs_cmake
def test_a_source_that_does_not_configure(tmp_path: Path) -> None:
    archive = tmp_path / "src.tar.gz"
    index = Index(archive, source(archive, **{"CMakeLists.txt": "message(FATAL_ERROR no way)\n"}))
    for _ in range(2):  # the second try starts the configuration again
        with pytest.raises(MiyabiError, match="configure failed"):
            install(settings(tmp_path), source="build", world=index.world)


@needs_cmake
def test_a_changed_source_is_refused_before_it_is_unpacked(tmp_path: Path, index: Index) -> None:
    index.archive.write_bytes(index.archive.read_bytes() + b"\0")
    s = settings(tmp_path)
    with pytest.raises(Corrupt, match="not the pinned file"):
        install(s, source="build", world=index.world)
    assert not list(s.cache.rglob("CMakeLists.txt"))


@needs_cmake
def test_two_at_once_build_once(tmp_path: Path, index: Index) -> None:
    index.slow = 0.4
    s, got, events = settings(tmp_path), list[object](), list[Event]()
    runs = [
        threading.Thread(target=lambda: got.append(install(s, events.append, source="build", world=index.world)))
        for _ in range(2)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(got) == 2
    assert got[0] == got[1]
    assert index.asked == ["fake"]
    assert any("waiting" in e.message for e in events)


INTERRUPTED = """
import sys
from pathlib import Path
from tests.tools.test_install import Index
from tests.tools import stubs
from miyabi_llm.tools.install import install
root = Path(sys.argv[1])
index = Index(root / "src.tar.gz", stubs.source(root / "src.tar.gz", **{"main.cpp": stubs.MAIN}))
def tell(event):
    if event.kind == "progress" or "with" in event.message and event.kind == "phase":
        print(event.name, flush=True)
s = stubs.settings(root, root / "slow", CC="slowcc", CXX="slowcxx")
install(s, tell, source="build", world=index.world)
"""


@needs_cmake
def test_an_interrupted_build_kills_its_compilers_and_goes_on_later(tmp_path: Path, index: Index) -> None:
    for name, real in (("slowcc", "cc"), ("slowcxx", "c++")):
        text = f'case "$*" in *main.cpp*-c*|*-c*main.cpp*|*-c*answers.c*) echo $$ >> {tmp_path}/pids; sleep 30;; esac'
        script(tmp_path / "slow" / name, f'{text}\nexec {real} "$@"')
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 40
    while not (tmp_path / "pids").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert child.poll() is None, child.communicate()
    compiler = int((tmp_path / "pids").read_text().split()[0])
    group = os.getpgid(compiler)
    child.send_signal(2)
    _, err = child.communicate(timeout=20)
    assert "KeyboardInterrupt" in err
    assert alive_in_group(group) == []
    s = settings(tmp_path, tmp_path / "slow", CC="slowcc", CXX="slowcxx")
    assert installed.all_of(s) == []
    for name, real in (("slowcc", "cc"), ("slowcxx", "c++")):
        script(tmp_path / "slow" / name, f'exec {real} "$@"')
    assert install(s, source="build", world=index.world).how == "build"
    assert index.asked == []  # the source was kept


@needs_cmake
def test_a_killed_installer_keeps_the_next_one_out_while_its_compilers_live(tmp_path: Path, index: Index) -> None:
    for name, real in (("slowcc", "cc"), ("slowcxx", "c++")):
        text = f'case "$*" in *-c*main.cpp*) echo $$ >> {tmp_path}/pids; sleep 1.5; date +%s.%N > {tmp_path}/end;; esac'
        script(tmp_path / "slow" / name, f'{text}\nexec {real} "$@"')
    child = subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(tmp_path)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 40
    while not (tmp_path / "pids").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    child.kill()
    child.wait()
    s, events = settings(tmp_path, tmp_path / "slow", CC="slowcc", CXX="slowcxx"), list[Event]()
    assert installed.all_of(s) == []
    program = install(s, events.append, source="build", world=index.world)
    assert any("waiting" in e.message for e in events)
    assert program.how == "build"


def test_without_a_compiler_the_command_to_type_is_named(tmp_path: Path, index: Index) -> None:
    s = Settings(
        **{f: getattr(settings(tmp_path), f) for f in ("home", "cache", "config", "user_home")}, env={"PATH": ""}
    )
    with pytest.raises(Missing, match="no working C") as e:
        install(s, source="build", world=index.world)
    assert e.value.exit_code == 3
    assert str(e.value.hint).startswith("Run `")
    assert index.asked == []


def test_a_program_that_changed_since_it_was_inspected_is_not_used(tmp_path: Path) -> None:
    s = settings(tmp_path)
    folder = installed.root(s) / "x"
    place = server(folder / "bin" / SERVER)
    now = place.stat()
    from miyabi_llm import hardware

    kept = installed.Kept(f"bin/{SERVER}", now.st_size, now.st_mtime_ns, ("--help",))
    one = installed.Installation(folder, "release", "v", 1, None, "2026-01-01", hardware.platform_key(), {SERVER: kept})
    one.write()
    assert installed.read(folder) == one
    assert llama_cpp.find(SERVER, s).version == "v"
    place.write_text(place.read_text() + "#")
    assert llama_cpp.search(SERVER, s).program is None
    (folder / installed.MARKER).write_text("{")
    assert installed.all_of(s) == []
    (folder / installed.MARKER).write_text('{"schema": 99}')
    assert installed.all_of(s) == []


def test_the_guess_at_the_time_left_follows_the_measured_build() -> None:
    """In the build it was taken from, 108 of 212 steps were done after 159 s, and 330 s were left."""
    now, events = [0.0], list[Event]()
    line = build.progress(events.append, clock=lambda: now[0])
    line("-- a warning")
    line("[3/212] Building")
    now[0] = 159
    line("[108/212] Building CXX object")
    assert [e.done for e in events] == [3, 108]
    assert events[0].message == ""
    assert 250 < events[1].data["eta_s"] < 400
    assert events[1].message == "about 5 min left"
