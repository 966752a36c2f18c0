"""The judgement made of a memory estimate, and the command that says it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from miyabi_llm import fit, gguf, memory
from miyabi_llm.errors import BadUsage, NetworkError
from miyabi_llm.fit import layers
from miyabi_llm.hardware import Gpu, Hardware
from miyabi_llm.refs import ModelRef
from miyabi_llm.types import Artifact, StoredFile
from tests.ggufs import tiny
from tests.headers import gemma, qwen

MIB = 1 << 20
AVX2 = frozenset({"avx2", "fma", "f16c"})
AMX = AVX2 | {"avx512f", "avx512_vnni", "amx_int8", "amx_tile"}
ARM = frozenset({"asimd", "asimddp", "i8mm"})


def machine(
    available: int, *, flags: frozenset[str] = AVX2, gpus: tuple[Gpu, ...] = (), total: int | None = None
) -> Hardware:
    return Hardware(
        system="Linux",
        machine="x86_64",
        cpu="test",
        physical_cores=2,
        logical_cores=2,
        usable_cores=2,
        cpu_flags=flags,
        ram_total=available if total is None else total,
        ram_available=available,
        ram_limit=None,
        swap_total=0,
        gpus=gpus,
    )


def test_it_fits() -> None:
    verdict = fit.judge(qwen(), machine(8192 * MIB))
    assert (verdict.fits, verdict.device, verdict.ctx, verdict.largest_ctx) == (True, "cpu", 8192, 32768)
    assert verdict.available == (8192 - 512) * MIB
    assert [q.name for q in verdict.quants] == ["IQ4_XS", "Q3_K_M", "Q2_K"]
    assert verdict.advice == ()
    assert verdict.facts.parameters == 1_777_088_000


def test_it_does_not_fit_and_what_to_do() -> None:
    verdict = fit.judge(qwen(), machine(2500 * MIB), 32768)
    assert verdict.fits is False
    assert verdict.largest_ctx is not None
    assert verdict.largest_ctx < 8192
    words = " / ".join(verdict.advice)
    assert "--load-mode none" not in words  # 2500 - 512 MiB are too few even so
    assert f"--ctx {verdict.largest_ctx}" in words
    assert "smaller file" in words
    roomy = fit.judge(qwen(), machine(2700 * MIB), 32768)
    assert "`-- --load-mode none`" in roomy.advice[0]
    assert "serve MODEL [options] -- " in roomy.advice[-1]


def test_the_trained_context_comes_first() -> None:
    verdict = fit.judge(qwen(), machine(16384 * MIB), 2_000_000)
    assert verdict.fits is False
    assert verdict.advice[0] == "stay within the 32768 tokens the model was trained for (`--ctx 32768`)"
    assert not any("trained" in note for note in verdict.notes)
    assert "--ctx" not in " / ".join(verdict.advice[1:])
    small = fit.judge(qwen(), machine(2500 * MIB), 2_000_000)
    assert "32768" in small.advice[0]
    assert f"--ctx {small.largest_ctx}" in " / ".join(small.advice[1:])
    fits = fit.judge(qwen(), machine(16384 * MIB), 40_000)
    assert (fits.fits, fits.notes) == (True, ("the model was trained for 32768 tokens",))


def test_nothing_smaller_than_the_model_is_left() -> None:
    assert fit.judge(qwen(), machine(600 * MIB)).advice == ("take a smaller model",)


def test_a_card_with_room_takes_the_model() -> None:
    big, small = Gpu("cuda", "Big", 8192 * MIB, 8000 * MIB), Gpu("cuda", "Small", 2048 * MIB, 900 * MIB)
    verdict = fit.judge(qwen(), machine(100 * MIB, gpus=(small, big)))
    assert (verdict.fits, verdict.device, verdict.needed.repack) == (True, "gpu", 0)
    verdict = fit.judge(qwen(), machine(8192 * MIB, gpus=(small,)))
    assert (verdict.device, verdict.fits) == ("cpu", True)
    assert "Small has too little room for all of it: 0 of 29 layers fit" in verdict.notes[0]
    shared = Gpu("metal", "M", 8192 * MIB, 8192 * MIB)
    assert fit.judge(qwen(), machine(8192 * MIB, gpus=(shared,))).device == "cpu"


def test_a_card_takes_layers_from_the_output_on() -> None:
    """Counted as llama.cpp does: the output is the first layer, then come the blocks from the last one on."""
    blocks, output = layers.block_bytes(qwen())
    assert output == next(t.nbytes for t in qwen().tensors if t.name == "output.weight") + 1536 * 4
    assert sum(blocks) + output + 1536 * 151936 * 144 // 256 == qwen().weight_bytes
    tied = layers.block_bytes(gemma())[1]
    assert tied == 640 * 262144 * 34 // 32 + 640 * 4
    use = memory.Use()
    cache = memory.layer_caches(qwen(), 8192, use)
    assert cache == [8 * MIB] * 28
    working = memory.compute_bytes(qwen(), 8192, use) + 4 * 151936

    def taken(room: int) -> fit.GpuLayers:
        card = Gpu("cuda", "Card", None, layers.GPU_MARGIN + working + room)
        return layers.gpu_layers(qwen(), card, 8192, use)

    assert taken(output - 1).layers == 0
    assert (taken(output).layers, taken(output).bytes) == (1, output)
    assert taken(output + blocks[27] + 8 * MIB).layers == 2
    whole = taken(1 << 40)
    assert (whole.layers, whole.of, whole.bytes) == (29, 29, output + sum(blocks) + sum(cache))


def test_what_cannot_be_told_is_not_judged() -> None:
    assert fit.judge(qwen(), machine(0, total=0)).fits is None


def test_a_server_without_amx_makes_other_copies() -> None:
    with_amx, without = (
        fit.judge(qwen(), machine(8192 * MIB, flags=AMX), how=fit.How(amx=amx)).needed.repack for amx in (True, False)
    )
    assert (round(with_amx / MIB, 2), round(without / MIB, 2)) == (950.71, 596.53)


def test_wrong_words_are_refused() -> None:
    with pytest.raises(BadUsage, match="no cache type"):
        fit.judge(qwen(), machine(MIB), how=fit.How(kv_type="q7_0"))
    with pytest.raises(BadUsage, match="0 tokens"):
        fit.judge(qwen(), machine(MIB), 0)


def test_hostile_numbers_in_a_sound_header() -> None:
    """Keys may hold any integer: the estimate ends at once and is a number."""
    for key in ("block_count", "context_length", "embedding_length", "attention.head_count", "attention.head_count_kv"):
        for value in (0, 2**32 - 1):
            data = tiny(extra={f"qwen2.{key}": value})
            verdict = fit.judge(gguf.read(data, len(data)), machine(2048 * MIB), 2**31)
            assert verdict.needed.total > 0


def test_the_header_of_a_model_on_disk(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(tiny())
    # as Ollama's layers are called here, and as the hub's files are; what they are, their headers say
    (tmp_path / "a-projector.gguf").write_bytes(tiny(extra={"general.architecture": "clip"}))
    (tmp_path / "adapter.gguf").write_bytes(tiny(extra={"general.type": "adapter"}))
    (tmp_path / "mmproj-m.gguf").write_bytes(tiny(extra={"general.type": "mmproj"}))
    paths = {p.name: p for p in tmp_path.iterdir()}
    assert fit.read_header(paths).architecture == "qwen2"
    with pytest.raises(BadUsage, match="no GGUF file"):
        fit.read_header({"adapter.gguf": tmp_path / "adapter.gguf"})
    with pytest.raises(BadUsage, match="no GGUF file"):
        fit.read_header({"model.safetensors": tmp_path / "x"})


def fit_command(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home), "MIYABI_HOME": str(home / "data"), "MIYABI_OFFLINE": "1"}
    argv = [sys.executable, "-m", "miyabi_llm", "fit", *words]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny())
    fits = fit_command(tmp_path, str(path), "--json", "--ctx", "2048", "--kv", "q8_0")
    body = json.loads(fits.stdout)
    assert (fits.returncode, body["fits"], body["ctx"], body["kv_type"]) == (0, True, 2048, "q8_0")
    assert body["total"] == sum(body["needed"].values())
    plain = fit_command(tmp_path, str(path))
    assert plain.returncode == 0
    assert "fits; largest context 4096 tokens" in plain.stdout
    too_much = fit_command(tmp_path, str(path), "--ctx", str(2**40))
    assert too_much.returncode == 4
    assert "does not fit" in too_much.stdout
    assert fit_command(tmp_path, str(path), "--kv", "q9").returncode == 2
    gone = fit_command(tmp_path, "hf:some/repo:Q4_K_M", "--json")
    assert (gone.returncode, json.loads(gone.stdout)["error"]["code"]) == (1, "network")
    path.write_bytes(tiny()[:500])
    broken = fit_command(tmp_path, str(path), "--json")
    assert (broken.returncode, json.loads(broken.stdout)["error"]["code"]) == (1, "corrupt")


def test_a_model_of_the_store(tmp_path: Path) -> None:
    from miyabi_llm.config import load
    from miyabi_llm.store import Store

    path = tmp_path / "m.gguf"
    path.write_bytes(tiny())
    settings = load({"HOME": str(tmp_path), "MIYABI_HOME": str(tmp_path / "data"), "MIYABI_OFFLINE": "1"})
    store = Store(settings.store)
    sha256, size, _ = store.adopt(path)
    ref = ModelRef.parse("hf:some/repo:Q8_0")
    store.publish(Artifact(ref, "gguf", (StoredFile("m.gguf", sha256, size),), "local", "test", "2026-01-01T00:00:00Z"))
    header, place = fit.find_header(ref, store, settings)
    assert (header.architecture, place) == ("qwen2", "the store")
    with pytest.raises(NetworkError):
        fit.find_header(ModelRef.parse("hf:other/repo:Q8_0"), store, settings)
