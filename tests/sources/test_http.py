"""Plain addresses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from miyabi_llm.errors import AccessDenied, BadUsage, MiyabiError, ModelMissing, NetworkError, Unsafe
from miyabi_llm.refs import ModelRef
from miyabi_llm.sources.http import HttpSource
from miyabi_llm.store import Store
from tests.faultd import Fault, Faultd
from tests.sources.wires import DATA, QUICK, SHA, settings


@pytest.fixture
def server() -> Iterator[Faultd]:
    with Faultd() as server:
        server.put("/d/m.gguf", DATA)
        yield server


@pytest.fixture
def source(tmp_path: Path) -> HttpSource:
    return HttpSource(settings(tmp_path), QUICK)


@pytest.mark.parametrize("pin", ["", f"#sha256={SHA}"])
def test_lists_and_fetches(server: Faultd, source: HttpSource, tmp_path: Path, pin: str) -> None:
    listing = source.list(ModelRef.parse(f"{server.url}/d/m.gguf{pin}"))
    (file,) = listing.files
    assert (file.name, file.size, file.sha256) == ("m.gguf", len(DATA), SHA if pin else None)
    assert server.sent["/d/m.gguf"] <= 1
    store = Store(tmp_path / "store")
    with store.part(file.sha256 or "1" * 64, file.size) as part:
        source.fetch(file, part, lambda e: None)
        assert part.commit(file.sha256, file.size).sha256 == SHA


@pytest.mark.parametrize(
    ("fault", "size"), [(Fault(no_range=True), len(DATA)), (Fault(no_range=True, chunked=True), None)]
)
def test_the_size_as_the_server_tells_it(server: Faultd, source: HttpSource, fault: Fault, size: int | None) -> None:
    server.always("/d/m.gguf", fault)
    assert source.list(ModelRef.parse(f"{server.url}/d/m.gguf")).files[0].size == size


def test_one_part_means_all(server: Faultd, source: HttpSource) -> None:
    for i in (1, 2, 3):
        server.put(f"/d/big-0000{i}-of-00003.gguf", DATA[:i])
    files = source.list(ModelRef.parse(f"{server.url}/d/big-00002-of-00003.gguf")).files
    assert [(f.name, f.size) for f in files] == [(f"big-0000{i}-of-00003.gguf", i) for i in (1, 2, 3)]
    with pytest.raises(BadUsage):
        source.list(ModelRef.parse(f"{server.url}/d/big-00002-of-99999.gguf"))


@pytest.mark.parametrize("name", ["m.bin", "m.pt", "m.pth", "m.pkl", "m.ckpt", "m.keras", "x.py", "m.tar.gz", "M.BIN"])
def test_what_may_run_code_is_refused_unasked(server: Faultd, source: HttpSource, name: str) -> None:
    with pytest.raises(Unsafe):
        source.list(ModelRef.parse(f"{server.url}/{name}"))
    assert server.requests == []


@pytest.mark.parametrize(
    "path", ["", "/", "/x/", "/readme.md", "/%2e%2e", "/a%2fb.gguf", "/%00.gguf", "/.gguf", "/..%5cx.gguf"]
)
def test_no_model_file(server: Faultd, source: HttpSource, path: str) -> None:
    with pytest.raises(BadUsage):
        source.list(ModelRef.parse(server.url + path))
    assert server.requests == []


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(status=404), ModelMissing),
        (Fault(status=403), AccessDenied),
        (Fault(status=500), NetworkError),
        (Fault(html=True), NetworkError),
        (Fault(status=418), NetworkError),
        (Fault(status=416), NetworkError),
        (Fault(redirect="http://169.254.169.254/x"), Unsafe),
    ],
)
def test_refusals(server: Faultd, source: HttpSource, fault: Fault, error: type[MiyabiError]) -> None:
    server.always("/d/m.gguf", fault)
    with pytest.raises(error):
        source.list(ModelRef.parse(f"{server.url}/d/m.gguf"))


def test_plain_http_to_another_machine_is_refused(source: HttpSource) -> None:
    with pytest.raises(Unsafe, match="only https"):
        source.list(ModelRef.parse("http://192.0.2.1/m.gguf"))
