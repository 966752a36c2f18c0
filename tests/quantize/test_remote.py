"""Plans of models that are not here: a stand-in of the hub, and the real quantizer on a fetched header."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from miyabi_llm import quantize
from miyabi_llm.cli import execute
from miyabi_llm.errors import BadUsage, ModelMissing
from miyabi_llm.quantize import Order, Source, remote
from miyabi_llm.quantize.run import Shop
from miyabi_llm.refs import ModelRef
from miyabi_llm.tools import llama_cpp, quantizing

from ..conftest import USER
from ..faultd import Faultd
from ..registries import Hub

ORDER = Order(types=("Q8_0", "Q4_K_M", "Q2_K"), ctx=512)


@pytest.fixture
def hub(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Faultd() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
        found = Hub(server)
        found.add("org/repo", {"m-Q8_0.gguf": b"GGUF", "m-F16.gguf": tiny.read_bytes(), "README.md": b"x"})
        found.add("org/raw", {"config.json": b"{}", "model.safetensors": b"x"})
        yield found


@pytest.fixture
def there(shop: Shop, hub: Hub) -> Shop:
    return replace(shop, settings=replace(shop.settings, hf_endpoint=hub.server.url))


def test_the_plan_is_that_of_the_file(there: Shop, source: Source) -> None:
    """The one at full precision, where the reference names none; nothing is kept of it."""
    with remote.peeked(ModelRef.parse("hf:org/repo"), there.settings) as far:
        found = quantize.plan(far, ORDER, there)
        assert list(far.files) == ["m-F16.gguf"]
        assert far.first.stat().st_size == source.size
    near = quantize.plan(source, ORDER, there)
    assert found.types == near.types
    assert (found.source, found.source_size) == ("hf:org/repo", source.size)
    assert (found.provenance.kind, near.provenance.kind) == ("unknown", "full")
    assert list(there.settings.cache.glob("plan-*")) == []
    assert there.store.list() == []


def test_only_the_beginning_is_fetched(there: Shop, hub: Hub, source: Source) -> None:
    """Of the file that stands for it nothing else lies on the disk."""
    head = source.first.read_bytes()[: source.header.data_offset]
    hub.add("org/big", {"big.gguf": head + bytes(64 << 20)})
    with remote.peeked(ModelRef.parse("hf:org/big"), there.settings) as far:
        assert far.first.stat().st_blocks * 512 < 1 << 20
        assert far.first.stat().st_size == len(head) + (64 << 20)


def test_shards_of_a_repository(there: Shop, hub: Hub, tiny: Path, tmp_path: Path, source: Source) -> None:
    tool = llama_cpp.find(quantizing.SPLIT, USER).argv
    split = ["--split", "--split-max-tensors", "8", str(tiny), str(tmp_path / "m-F16")]
    subprocess.run([*tool, *split], check=True, capture_output=True)
    hub.add("org/parts", {p.name: p.read_bytes() for p in tmp_path.glob("m-F16-*.gguf")})
    with remote.peeked(ModelRef.parse("hf:org/parts"), there.settings) as far:
        assert len(far.files) > 1
        found = quantize.plan(far, ORDER, there)
    near = quantize.plan(source, ORDER, there)
    assert [(p.type, p.weights, p.tensors) for p in found.types] == [(p.type, p.weights, p.tensors) for p in near.types]


def test_what_is_not_there(there: Shop) -> None:
    with pytest.raises(ModelMissing), remote.peeked(ModelRef.parse("hf:org/none"), there.settings):
        pass
    with pytest.raises(BadUsage, match="no GGUF file"), remote.peeked(ModelRef.parse("hf:org/raw"), there.settings):
        pass


def test_the_command(there: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    """A plan needs no model here; the work does, and brings it when it is told to."""
    assert execute(["quantize", "hf:org/repo", "--type", "Q4_0", "--plan", "--json"]) == 0
    assert [p["type"] for p in json.loads(capsys.readouterr().out)["types"]] == ["Q4_0"]
    assert execute(["quantize", "hf:org/repo:F16", "--type", "Q4_0"]) == 3
    assert "miyabi-llm pull hf:org/repo:F16" in capsys.readouterr().err
    short = ["--type", "Q4_0", "--chunks", "2", "--threads", "1", "--ctx", "512", "-o", "mine:q4", "--json"]
    assert execute(["quantize", "hf:org/repo:F16", "--pull", *short]) == 0
    assert json.loads(capsys.readouterr().out)["artifact"]["ref"] == "mine:q4"
    assert {str(a.ref) for a in there.store.list()} == {"hf:org/repo:F16", "mine:q4"}
