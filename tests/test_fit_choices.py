"""Which file of a repository to take: sizes from the hub's list, one header fetched, the largest that fits named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from miyabi_llm import fit, memory
from miyabi_llm.errors import BadUsage, ModelMissing
from miyabi_llm.fit.choices import compare
from miyabi_llm.refs import ModelRef
from miyabi_llm.sources.hf_files import HubFile, Variant, variants
from miyabi_llm.store import Store
from tests.faultd import Faultd
from tests.ggufs import tiny
from tests.headers import qwen
from tests.registries import Hub
from tests.sources.wires import settings as wired
from tests.test_fit import AVX2, MIB, machine
from tests.test_fit_paged import QWEN

HEADER = 6 * MIB


def of_size(quant: str, weights: int) -> Variant:
    return Variant(quant, (HubFile(f"m-{quant}.gguf", weights + HEADER),))


def table(available: int, *rows: Variant, ctx: int = 8192) -> list[fit.Choice]:
    verdict = fit.judge(qwen(), machine(available), ctx)
    own = qwen().weight_bytes + HEADER
    return list(compare(qwen(), own, rows, verdict, AVX2).choices)


ROWS = (of_size("Q2_K", 712 * MIB), of_size("Q4_K_M", qwen().weight_bytes), of_size("Q8_0", 1801 * MIB))


def test_the_largest_that_fits_is_named() -> None:
    big, own, small = table(16384 * MIB, *ROWS)
    assert [c.name for c in (big, own, small)] == ["Q8_0", "Q4_K_M", "Q2_K"]
    assert (big.best, own.best, small.best) == (True, False, False)
    assert [c.best for c in table(2600 * MIB, *ROWS)] == [False, True, False]
    assert [c.fits for c in table(1200 * MIB, *ROWS)] == [False, False, False]


def test_what_each_needs() -> None:
    big, own, small = table(16384 * MIB, *ROWS)
    exact = memory.estimate(qwen(), 8192, memory.Use(repack=AVX2)).total
    assert own.total == pytest.approx(exact, abs=2)  # the file whose header was read: no guess
    rest = exact - qwen().weight_bytes - memory.repack_bytes(qwen(), AVX2)
    assert small.total == pytest.approx(712 * MIB + rest, abs=2)  # AVX2 repacks no Q2_K
    assert big.total == pytest.approx(1801 * MIB + rest, abs=2)
    assert own.largest_ctx == 32768


def test_the_largest_context_of_each() -> None:
    budget = 2000 * MIB
    _, own, _ = table(budget + memory.MARGIN, *ROWS)
    assert own.largest_ctx == memory.largest_ctx(qwen(), budget, memory.Use(repack=AVX2))


def test_parts_count_as_one_and_incomplete_ones_not_at_all() -> None:
    names = ("m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "m-F16-00001-of-00002.gguf")
    found = variants([HubFile(n, 5) for n in (*names, "m-Q4_K_M.gguf", "mmproj-m-f16.gguf", "plain.gguf", "x.json")])
    assert [(v.quant, len(v.files)) for v in found] == [("Q4_K_M", 1), ("Q8_0", 2), ("plain.gguf", 1)]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Faultd() as server:
        found = Hub(server)
        sizes = {"Q2_K": 100_000, "Q4_K_M": 200_000, "Q8_0": 400_000}
        files = {f"m-{q}.gguf": tiny(tokens=500) + bytes(n) for q, n in sizes.items()}
        found.add("org/repo", files | {"README.md": b"x"})
        found.add("org/raw", {"config.json": json.dumps(QWEN).encode(), "model.safetensors": _tensors()})
        found.add("org/one", {"only.gguf": tiny()})
        yield found


def _tensors() -> bytes:
    import struct

    head = json.dumps({"w": {"dtype": "BF16", "shape": [512, 1024], "data_offsets": [0, MIB]}}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(MIB)


def look(hub: Hub, tmp_path: Path, ref: str) -> fit.Found:
    settings = wired(tmp_path, hf_endpoint=hub.server.url)
    return fit.find(ModelRef.parse(ref), Store(settings.store), settings)


def test_one_header_of_a_repository_is_fetched(hub: Hub, tmp_path: Path) -> None:
    found = look(hub, tmp_path, "hf:org/repo")
    assert found.header is not None
    assert found.place.endswith("Q4_K_M")
    assert [v.quant for v in found.variants] == ["Q2_K", "Q4_K_M", "Q8_0"]
    fetched = {r.path for r in hub.server.requests if "/resolve/" in r.path}
    assert len(fetched) == 1
    verdict = fit.report(found, machine(8192 * MIB), None, fit.How())
    assert [c.best for c in verdict.choices] == [True, False, False]
    assert look(hub, tmp_path, "hf:org/repo:q8_0").place.endswith("Q8_0")
    with pytest.raises(ModelMissing, match="has no Q5_K_M"):
        look(hub, tmp_path, "hf:org/repo:Q5_K_M")


def test_repositories_of_one_file_and_of_none(hub: Hub, tmp_path: Path) -> None:
    one = look(hub, tmp_path, "hf:org/one")
    assert fit.report(one, machine(8192 * MIB), None, fit.How()).choices == ()
    raw = look(hub, tmp_path, "hf:org/raw")
    assert raw.weights is not None
    assert raw.weights.nbytes == MIB
    assert fit.report(raw, machine(8192 * MIB), None, fit.How("vllm")).needed.weights == MIB
    with pytest.raises(BadUsage):
        fit.report(raw, machine(8192 * MIB), None, fit.How("ollama"))


def test_other_backends_and_other_machines() -> None:
    ours = fit.judge(qwen(), machine(8192 * MIB), 8192)
    ollama = fit.judge(qwen(), machine(8192 * MIB), 8192, fit.How("ollama"))
    assert ollama.needed.kv == ours.needed.kv
    assert (ours.prompts, ollama.prompts) == (512 * MIB, 8192 * MIB)
    assert "nothing measured" in ollama.notes[0]
    with pytest.raises(BadUsage, match="no backend 'vllm' serves GGUF"):
        fit.judge(qwen(), machine(8192 * MIB), 8192, fit.How("vllm"))
    with pytest.raises(BadUsage, match="0 requests"):
        fit.judge(qwen(), machine(8192 * MIB), 8192, fit.How(parallel=0))
    other = fit.machine_of(machine(64 * MIB), 16 << 30)
    assert (other.ram_total, other.gpus) == (16 << 30, ())
    assert fit.judge(qwen(), other).fits
    assert fit.elsewhere(replace(fit.How(), runtime=1)).runtime == memory.RUNTIME
