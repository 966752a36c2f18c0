"""What a plan needs before its server runs: files, links without a copy, a daemon awake."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from miyabi_llm.cli import plans
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, ServerFailed
from miyabi_llm.serve.prepare import lay_out, put_away, wake
from miyabi_llm.tools.command import complete
from miyabi_llm.types import Endpoint, Event, LaunchPlan, silent
from tests.tools.stubs import script

from .conftest import all_gone, processes


def plan(files: dict[Path, str] | None = None, links: dict[Path, Path] | None = None, *argv: str) -> LaunchPlan:
    endpoint = Endpoint("http://127.0.0.1:9", "m")
    return LaunchPlan("x", None, {}, endpoint, files=files or {}, links=links or {}, wake=(argv,) if argv else ())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "blob"
    file.write_bytes(b"GGUF" * 100)
    return file


def test_files_are_private_links_share_the_bytes_and_all_of_it_goes(tmp_path: Path, model: Path) -> None:
    config, link = tmp_path / "w/models/c.yaml", tmp_path / "w/models/m.gguf"
    made = plan({config: "text"}, {link: model})
    for _ in range(2):  # a restart lays it out again
        lay_out(made)
        assert config.read_text() == "text"
        assert config.stat().st_mode & 0o777 == 0o600
        assert link.stat().st_ino == model.stat().st_ino
    put_away(made)
    put_away(made)
    assert not link.parent.exists()
    assert model.stat().st_nlink == 1


def test_whatever_lies_in_the_way_is_replaced(tmp_path: Path, model: Path) -> None:
    link = tmp_path / "m.gguf"
    for old in ("other bytes", None):
        link.unlink(missing_ok=True)
        link.write_text(old) if old else link.symlink_to("/nowhere")
        lay_out(plan(links={link: model}))
        assert link.samefile(model)


def test_a_link_to_a_link_leads_to_the_bytes(tmp_path: Path, model: Path) -> None:
    view = tmp_path / "view.gguf"
    view.symlink_to(model.name)  # relative: a hard link to it would lead nowhere
    lay_out(plan(links={tmp_path / "far/off/m.gguf": view}))
    assert (tmp_path / "far/off/m.gguf").stat().st_ino == model.stat().st_ino


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev or not os.access(shm, os.W_OK):
        pytest.skip("no second file system here")
    folder = Path(tempfile.mkdtemp(dir=shm))
    yield folder
    shutil.rmtree(folder)


def test_across_file_systems_it_is_a_symbolic_link(elsewhere: Path, model: Path) -> None:
    lay_out(plan(links={elsewhere / "m.gguf": model}))
    assert (elsewhere / "m.gguf").is_symlink()
    assert (elsewhere / "m.gguf").samefile(model)


def test_a_model_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match=r"gone\.gguf"):
        lay_out(plan(links={tmp_path / "m.gguf": tmp_path / "gone.gguf"}))


def test_a_daemon_is_woken_and_goes_on(tmp_path: Path) -> None:
    """It holds the output of the command that woke it: that must not keep us waiting."""
    mark = f"daemon-{os.getpid()}-{tmp_path.name}"
    sleeper = f"setsid {sys.executable} -c 'import time; time.sleep(60)' {mark} &"
    waker = script(tmp_path / "wakes", f"{sleeper}\necho up")
    events: list[Event] = []
    start = time.monotonic()
    wake(plan(None, None, str(waker)), events.append)
    assert time.monotonic() - start < 30
    assert events[0].name == "wake"
    while not (found := processes(mark)):  # the shell ends before its background has begun
        assert time.monotonic() - start < 30
        time.sleep(0.02)
    (pid,) = found
    os.kill(pid, 9)
    assert all_gone(mark, 5)


def test_a_command_that_fails_is_said_in_its_words(tmp_path: Path) -> None:
    waker = script(tmp_path / "wakes", "echo 'no licence' >&2; exit 7")
    with pytest.raises(ServerFailed, match="ended with 7: no licence"):
        wake(plan(None, None, str(waker)), silent)
    with pytest.raises(ServerFailed, match="cannot be started"):
        wake(plan(None, None, str(tmp_path / "none")), silent)


def test_a_command_that_does_not_end_is_killed(tmp_path: Path) -> None:
    ran = complete((sys.executable, "-c", "print('so far', flush=True); import time; time.sleep(60)"), timeout=1.0)
    assert (ran.code, ran.text.strip(), ran.trouble) == (None, "so far", "did not end within 1 s")


def test_the_address_of_several_machines_may_be_another_ones(settings: Settings, port: int) -> None:
    assert plans.port_for(plans.Wanted(host="192.0.2.5", nodes=2), settings) == 8080
    assert plans.port_for(plans.Wanted(host="192.0.2.5", nodes=2, port=port), settings) == port
    with pytest.raises(BadUsage, match="cannot listen"):
        plans.port_for(plans.Wanted(host="192.0.2.5"), settings)
