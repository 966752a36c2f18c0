"""Memory estimates against llama-server's own words, and the judgement made of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from miyabi_llm import fit, gguf, memory, shards
from miyabi_llm.errors import BadUsage, Corrupt, NetworkError
from miyabi_llm.hardware import Gpu, Hardware
from miyabi_llm.refs import ModelRef
from miyabi_llm.sources import peek
from miyabi_llm.sources.base import Part
from miyabi_llm.types import Artifact, Listing, OnEvent, RemoteFile, StoredFile
from tests.ggufs import tiny
from tests.headers import gemma, layout, qwen

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


LOGS = Path(__file__).parent / "fixtures" / "llama-server"
RUNS: list[tuple[str, gguf.Header, frozenset[str]]] = [
    *[(f"gemma-{c}", gemma(), AVX2) for c in (2048, 8192, 32768)],
    *[(f"qwen-{c}", qwen(), AVX2) for c in ("2048", "8192", "32768", "8192-kvq8", "8192-npdefault", "8192-norepack")],
    *[(f"gemma-{c}", gemma(), AMX) for c in ("8192-amx", "8192-amx-auto", "8192-amx-ub256")],
    *[(f"qwen-{c}", qwen(), AMX) for c in ("8192-amx", "8192-amx-np4")],
]


@pytest.mark.parametrize(("name", "header", "flags"), RUNS, ids=[name for name, _, _ in RUNS])
def test_buffers_are_those_the_server_allocates(name: str, header: gguf.Header, flags: frozenset[str]) -> None:
    """Each buffer that llama-server logged, to 0.05 MiB; working memory to 4% where the cache is quantized."""
    log = (LOGS / f"{name}.log").read_text(encoding="utf-8")

    def number(key: str) -> int:
        found = re.search(rf"{key}\s+= (\w+)", log)
        assert found is not None
        return int(found[1])

    def mib(kind: str) -> float:
        return sum(float(x) for x in re.findall(kind + r" buffer size =\s+([\d.]+) MiB", log))

    unified = "kv_unified            = true" in log
    quantized = "K (q8_0)" in log
    needed = memory.estimate(
        header,
        number("n_ctx"),
        kv_type="q8_0" if quantized else "f16",
        ubatch=number("n_ubatch"),
        parallel=None if unified else number("n_seq_max"),
        repack=() if "norepack" in name else flags,
    )
    if flags is AVX2:  # with AMX the mapping covers only the first to the last tensor that stays
        assert needed.weights / MIB == pytest.approx(mib("CPU_Mapped model"), abs=0.05)
    assert needed.repack / MIB == pytest.approx(mib("CPU_REPACK model") + mib("AMX model"), abs=0.05)
    assert needed.kv / MIB == pytest.approx(mib("KV"), abs=0.05)
    assert needed.compute / MIB == pytest.approx(mib("compute") + mib("output"), rel=0.05 if quantized else 0.002)


@pytest.mark.parametrize(
    ("header", "ctx", "kv_type", "repack", "rss"),
    [
        # resident memory of llama-server after a prompt of 600 tokens, in MiB
        (qwen(), 2048, "f16", AVX2, 1851),
        (qwen(), 8192, "f16", AVX2, 2021),
        (qwen(), 32768, "f16", AVX2, 2693),
        (qwen(), 8192, "q8_0", AVX2, 1916),
        (qwen(), 8192, "q4_0", AVX2, 1861),
        (qwen(), 8192, "f16", frozenset(), 1425),
        (gemma(), 2048, "f16", AVX2, 366),
        (gemma(), 8192, "f16", AVX2, 385),
        (gemma(), 8192, "q8_0", AVX2, 362),
        (gemma(), 32768, "f16", AVX2, 458),
    ],
)
def test_the_sum_is_the_measured_resident_memory(
    header: gguf.Header, ctx: int, kv_type: str, repack: frozenset[str], rss: int
) -> None:
    """Within 2%; at 32k 6% above, since pages of an empty cache are not resident yet."""
    total = memory.estimate(header, ctx, kv_type=kv_type, parallel=1, repack=repack).total / MIB
    assert total == pytest.approx(rss, rel=0.06 if ctx == 32768 else 0.02)


def test_tied_embeddings_are_repacked_as_the_output_matrix() -> None:
    """Gemma in Q4_0: 144.00 MiB of weights, and llama-server's second copy is 143.79 MiB of them."""
    h = gemma()
    q4 = [(t.name, t.shape, "Q4_0" if len(t.shape) == 2 else "F32") for t in h.tensors]
    small = layout(dict(h.kv), q4)
    assert small.weight_bytes / MIB == pytest.approx(144.00, abs=0.01)
    assert memory.repack_bytes(small, AVX2) / MIB == pytest.approx(143.79, abs=0.01)
    untied = layout(dict(h.kv), [*q4, ("output.weight", (640, 262144), "Q6_K")])
    assert memory.repack_bytes(untied, AVX2) / MIB == pytest.approx(143.79 - 90.0, abs=0.01)


@pytest.mark.parametrize(
    ("kind", "rows", "flags", "copied"),
    [
        ("Q4_K", 16, AVX2, True),
        ("Q4_K", 12, AVX2, False),
        ("Q6_K", 16, AVX2, False),
        ("Q2_K", 16, AVX2, False),
        ("Q2_K", 16, AVX2 | {"avx512f"}, True),
        ("Q6_K", 16, ARM, True),
        ("Q8_0", 4, ARM, True),
        ("Q8_0", 4, frozenset({"asimd"}), False),
        ("Q4_K", 16, frozenset(), False),
        ("F16", 16, AVX2, False),
    ],
)
def test_what_each_processor_repacks(kind: str, rows: int, flags: frozenset[str], copied: bool) -> None:
    h = layout({}, [("blk.0.ffn_up.weight", (256, rows), kind), ("output.weight", (256, 16), "F32")])
    assert memory.repack_bytes(h, flags) == (h.tensors[0].nbytes if copied else 0)


def attention(arch: str, layers: int, **extra: Any) -> gguf.Header:
    keys = {
        "general.architecture": arch,
        f"{arch}.block_count": layers,
        f"{arch}.embedding_length": 1024,
        f"{arch}.attention.head_count": 16,
        f"{arch}.attention.head_count_kv": 4,
        f"{arch}.attention.sliding_window": 512,
    } | {f"{arch}.{k.replace('__', '.')}": v for k, v in extra.items()}
    return layout(keys, [])


def cache(header: gguf.Header, ctx: int = 8192) -> int:
    """Layers' worth of cache in units of one token of one full layer (4 heads of 64, K and V in F16)."""
    return memory.estimate(header, ctx, parallel=1).kv // (2 * 4 * 64 * 2)


def test_sliding_layers_by_architecture() -> None:
    window = 1024  # 512 back and 512 in the batch
    assert cache(attention("qwen2", 4)) == 4 * 8192  # the window in the header is not used for this one
    assert cache(attention("gemma3", 12)) == 2 * 8192 + 10 * window
    assert cache(attention("gpt-oss", 4)) == 2 * 8192 + 2 * window
    assert cache(attention("smallthinker", 4)) == 8192 + 3 * (4096 + 512)
    assert cache(attention("exaone4", 32)) == 32 * 8192
    assert cache(attention("gemma3", 4, attention__sliding_window_pattern=(1, 0, 1, 1))) == 8192 + 3 * window
    assert cache(attention("gemma2", 4, attention__sliding_window=0)) == 4 * 8192
    assert cache(attention("gemma3n", 30)) == 4 * 8192 + 16 * window  # the last ten share


def test_caches_of_hybrids_latents_and_shared_layers() -> None:
    assert cache(attention("qwen3next", 8, full_attention_interval=4)) == 2 * 8192
    assert cache(attention("lfm2", 4, attention__head_count_kv=(0, 4, 0, 4))) == 2 * 8192
    assert cache(attention("gemma4", 6, attention__shared_kv_layers=2, attention__sliding_window=0)) == 4 * 8192
    latent = attention(
        "deepseek2", 2, attention__key_length_mla=192, attention__key_length=576, attention__head_count_kv=1
    )
    assert memory.estimate(latent, 256, parallel=1).kv == 2 * 256 * 576 * 2
    mamba = attention(
        "granitehybrid", 2, attention__head_count_kv=(0, 0), ssm__inner_size=512, ssm__state_size=16, ssm__conv_kernel=4
    )
    assert memory.estimate(mamba, 256, parallel=2).kv == 2 * 2 * 4 * (3 * 512 + 16 * 512)


def test_more_context_never_needs_less() -> None:
    sums = [memory.estimate(gemma(), ctx, repack=AVX2).total for ctx in range(256, 40_000, 1000)]
    assert sums == sorted(sums)


def test_the_largest_context_is_the_last_that_fits() -> None:
    budget = 1900 * MIB
    most = memory.largest_ctx(qwen(), budget, repack=AVX2)
    assert most is not None
    assert memory.estimate(qwen(), most, repack=AVX2).total <= budget
    assert memory.estimate(qwen(), most + 256, repack=AVX2).total > budget
    assert memory.largest_ctx(qwen(), 1000 * MIB, repack=AVX2) is None
    assert memory.largest_ctx(qwen(), 100_000 * MIB, repack=AVX2) == 32768


def test_it_fits() -> None:
    verdict = fit.judge(qwen(), machine(8192 * MIB))
    assert (verdict.fits, verdict.device, verdict.ctx, verdict.largest_ctx) == (True, "cpu", 8192, 32768)
    assert verdict.available == (8192 - 512) * MIB
    assert [q.name for q in verdict.quants] == ["IQ4_XS", "Q3_K_M", "Q2_K"]
    assert verdict.advice[0].startswith("leave earlier prompts 56")
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
    assert "Small has 900 MiB free" in verdict.notes[0]
    shared = Gpu("metal", "M", 8192 * MIB, 8192 * MIB)
    assert fit.judge(qwen(), machine(8192 * MIB, gpus=(shared,))).device == "cpu"


def test_what_cannot_be_told_is_not_judged() -> None:
    assert fit.judge(qwen(), machine(0, total=0)).fits is None


def test_a_server_without_amx_makes_other_copies() -> None:
    with_amx, without = (
        fit.judge(qwen(), machine(8192 * MIB, flags=AMX), amx=amx).needed.repack for amx in (True, False)
    )
    assert (round(with_amx / MIB, 2), round(without / MIB, 2)) == (950.71, 596.53)


def test_wrong_words_are_refused() -> None:
    with pytest.raises(BadUsage, match="no cache type"):
        fit.judge(qwen(), machine(MIB), kv_type="q7_0")
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


def parts(count: int = 3) -> dict[str, gguf.Header]:
    found = {}
    for i in range(count):
        data = tiny(extra={"split.no": i, "split.count": count, "split.tensors.count": 6 * count})
        h = gguf.read(data, len(data))
        renamed = tuple(t._replace(name=f"{i}.{t.name}") for t in h.tensors)
        found[f"m-{i + 1:05}-of-{count:05}.gguf"] = replace(h, tensors=renamed)
    return found


def test_shards_are_one_model() -> None:
    whole = shards.join(parts())
    assert len(whole.tensors) == 18
    assert whole.weight_bytes == 3 * next(iter(parts().values())).weight_bytes
    one = next(iter(parts(1).values()))
    assert shards.join({"any name.gguf": replace(one, kv={})}).tensors == one.tensors


def renamed(old: str, new: str) -> dict[str, gguf.Header]:
    return {name.replace(old, new): h for name, h in parts().items()}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({k: v for k, v in parts().items() if "00003" not in k[:8]}, "2 shards are here, the model has 3"),
        ({k: v for k, v in parts().items() if "00002" not in k[:8]}, "says it is number 3 of 3"),
        ({k: v for k, v in parts().items() if "00001" not in k[:8]}, "says it is number 2 of 3"),
        (parts() | {"m-00004-of-00003.gguf": parts()["m-00003-of-00003.gguf"]}, "says it is number 3"),
        (renamed("m-00002", "n-00002"), "says it is|another model"),
        (renamed("m-00003", "n-00003"), "another model"),
        (renamed("m-", "../m-"), "is not named"),
        (renamed("m-00001-of-00003", "first"), "is not named"),
        (parts() | {"m-00002-of-00003.gguf": next(iter(parts(1).values()))}, "says it is no shard"),
        (parts() | {"m-00002-of-00003.gguf": replace(parts()["m-00002-of-00003.gguf"], tensors=())}, "hold 12 tensors"),
    ],
)
def test_broken_sets_of_shards_are_refused(found: dict[str, gguf.Header], says: str) -> None:
    with pytest.raises(Corrupt, match=says):
        shards.join(found)


class Served:
    """A source that gives a file piece by piece and counts what was taken; it fails once on the way."""

    scheme = "test"

    def __init__(self, data: bytes, *, piece: int = 1000) -> None:
        self.data, self.piece, self.taken = data, piece, 0

    def list(self, ref: ModelRef) -> Listing:
        return Listing(ref, ref, "gguf", (RemoteFile("m.gguf", len(self.data), None),))

    def fetch(self, file: RemoteFile, part: Part, on_event: OnEvent) -> None:
        part.reset('"v"', file.size)
        part.write(0, self.data[: self.piece])  # the connection breaks here: the piece comes again
        for at in range(0, len(self.data), self.piece):
            self.taken = at + self.piece
            part.write(at, self.data[at : at + self.piece])


def test_only_the_beginning_of_a_remote_file_is_fetched() -> None:
    data = tiny(tokens=20_000)
    data += bytes(4_000_000)
    source = Served(data)
    header = peek.of_file(source, source.list(ModelRef.parse("x")).files[0])
    assert header == gguf.read(data, len(data))
    assert header.data_offset < source.taken < 3 * header.data_offset


def test_a_remote_file_that_is_none() -> None:
    for data, error in ((b"<html>" + bytes(100_000), Corrupt), (tiny()[:800], Corrupt), (b"GGUF", Corrupt)):
        source = Served(data)
        with pytest.raises(error):
            peek.of_file(source, source.list(ModelRef.parse("x")).files[0])


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
