"""What is said of a server that is up: alarms judged from facts, read from logs, and raised by the real one."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from miyabi_llm import backends, calibration, fit, hardware, serve
from miyabi_llm.config import Settings
from miyabi_llm.errors import NetworkError
from miyabi_llm.memory import RUNTIME
from miyabi_llm.proc.resident import Resident, resident
from miyabi_llm.pull import pull
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.serve.alarms import Seen, alarms, read_llama, read_vllm
from miyabi_llm.serve.check import check_running
from miyabi_llm.serve.measured import MIB, Buffers, buffers, compare
from miyabi_llm.store import Store
from miyabi_llm.types import (
    Artifact,
    Endpoint,
    Event,
    Expect,
    LaunchPlan,
    MemoryEstimate,
    ServeSpec,
    StoredFile,
    silent,
)
from tests.conftest import USER

LOGS = Path(__file__).parent.parent / "fixtures" / "llama-server"
# Written from the format strings of llama.cpp's and vLLM's sources: there was no card to record them on.
CUDA = """
load_tensors: offloading output layer to GPU
load_tensors: offloading 27 repeating layers to GPU
load_tensors: offloaded {}/29 layers to GPU
load_tensors:   CPU_Mapped model buffer size =   125.19 MiB
load_tensors:        CUDA0 model buffer size =   934.70 MiB
llama_context:  CUDA_Host  output buffer size =     0.58 MiB
llama_kv_cache:      CUDA0 KV buffer size =   224.00 MiB
sched_reserve:      CUDA0 compute buffer size =   299.75 MiB
sched_reserve:  CUDA_Host compute buffer size =    19.01 MiB
"""
VLLM = "INFO core.py: Initializing a V1 LLM engine with config: device_config={}, enable_prefix_caching={}, "


def names(seen: Seen) -> list[str]:
    return [f.name for f in alarms(seen)]


@pytest.mark.parametrize(
    ("seen", "name", "words"),
    [
        (Seen("llama-cpp", gpus=1, offloaded=0), "gpu", "runs on the processor"),
        (Seen("llama-cpp", gpus=1, offloaded=12, layers=29), "gpu", "12 of 29 layers"),
        (Seen("ollama", gpus=1, gpu_bytes=0, bytes=5 << 30), "gpu", "runs on the processor"),
        (Seen("ollama", gpus=1, gpu_bytes=2 << 30, bytes=5 << 30), "gpu", "2.0 of 5.0 GiB"),
        (Seen("vllm", gpus=1, on_cpu=True), "gpu", "runs on the processor"),
        (Seen("ollama", asked_ctx=8192, ctx=4096), "context", "4096 tokens of context, 8192 were asked for"),
        (Seen("llama-cpp", asked_ctx=8192, ctx=2048, slots=4), "context", "4 slots share it"),
        (Seen(swapped=40 * MIB), "swap", "40 MiB of the server are swapped out"),
        (Seen(free=100 * MIB), "memory", "only 100 MiB"),
        (Seen("llama-cpp", reused=0, repeated=30), "prompt cache", "computed twice"),
        (Seen("vllm", cache_off=True), "prompt cache", "not kept"),
        (Seen(threads=8, cores=4), "threads", "8 threads, there are 4 cores"),
        (Seen(template=False), "chat template", "base model"),
    ],
)
def test_each_alarm_names_what_is_wrong_and_a_fix(seen: Seen, name: str, words: str) -> None:
    (found,) = alarms(seen)
    assert (found.name, found.level) == (name, "warn")
    assert words in found.message
    assert found.fix


@pytest.mark.parametrize(
    "seen",
    [
        Seen(),
        Seen("llama-cpp", gpus=0, offloaded=0),
        Seen("llama-cpp", gpus=1, offloaded=29, layers=29),
        Seen("ollama", gpus=1, gpu_bytes=5 << 30, bytes=5 << 30),
        Seen("llama-cpp", asked_ctx=2048, ctx=8192),
        Seen(asked_ctx=8192),
        Seen(ctx=8192),
        Seen(reused=20, repeated=30),
        Seen(reused=0, repeated=0),
        Seen(threads=4, cores=4, template=True, free=1 << 40, swapped=4096),
    ],
)
def test_nothing_is_said_of_what_is_well_or_unknown(seen: Seen) -> None:
    assert alarms(seen) == ()


def test_the_gravest_comes_first() -> None:
    seen = Seen("llama-cpp", gpus=1, offloaded=0, asked_ctx=2, ctx=1, swapped=99 * MIB, threads=9, cores=1)
    assert names(seen) == ["gpu", "context", "swap", "threads"]


def test_what_the_logs_say() -> None:
    real = (LOGS / "qwen-8192.log").read_text(encoding="utf-8")
    said = read_llama(real)
    assert (said.offloaded, said.threads, said.cache_off) == (0, 2, False)  # a build without a card: no layers on it
    assert (read_llama(CUDA.format(28)).offloaded, read_llama(CUDA.format(28)).layers) == (28, 29)
    assert read_llama("").offloaded is None
    assert read_llama("srv load_model: prompt cache is disabled - use `--cache-ram N` to enable it").cache_off
    assert (read_vllm(VLLM.format("cpu", "False")).on_cpu, read_vllm(VLLM.format("cuda", "True")).on_cpu) == (
        True,
        False,
    )
    assert read_vllm(VLLM.format("cpu", "False")).cache_off
    assert read_vllm("") == read_llama("")


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.log")), ids=lambda p: p.stem)
def test_buffers_of_every_log(path: Path) -> None:
    """Weights and cache of each real run; a server that refused its words, or was quiet, tells none."""
    log = path.read_text(encoding="utf-8")
    found = buffers(log)
    if path.stem in ("qwen-8192-nommap", "qwen-4096-quiet"):
        assert found is None
        assert read_llama(log).offloaded is None
        return
    assert found is not None
    once = found.weights + (0 if found.mapped else found.repack)  # not mapped: repacked weights are there once
    if "amx" not in path.stem:
        assert once / MIB == pytest.approx(1059.89 if path.stem.startswith("qwen") else 235.16, abs=0.02)
    assert found.kv > 0
    assert found.gpu == 0


def test_buffers_of_processor_and_card() -> None:
    two = buffers((LOGS / "gemma-8192.log").read_text(encoding="utf-8"))
    assert two is not None
    assert (two.mapped, two.gpu) == (two.weights, 0)
    assert two.repack == pytest.approx(12.66 * MIB, rel=0.001)
    assert two.kv == pytest.approx((24 + 15) * MIB, rel=0.001)  # two lines: full layers and sliding ones
    card = buffers(CUDA.format(28))
    assert card is not None
    assert card.total == pytest.approx((125.19 + 934.70 + 224 + 299.75 + 19.01 + 0.58) * MIB, rel=0.001)
    assert card.gpu == pytest.approx((934.70 + 224 + 299.75) * MIB, rel=0.001)
    assert buffers("no word of it") is None
    again = buffers(CUDA.format(28) + "sched_reserve:      CUDA0 compute buffer size =   100.00 MiB\n")
    assert again is not None
    assert card.total - again.total == pytest.approx(199.75 * MIB, rel=0.001)  # reserved anew, not beside it


def test_an_estimate_against_what_was_measured() -> None:
    estimate = MemoryEstimate(1000 * MIB, 0, 100 * MIB, 50 * MIB, 70 * MIB)
    told = Buffers(weights=1000 * MIB, mapped=1000 * MIB, kv=100 * MIB, compute=50 * MIB)
    found = compare(estimate, told, Resident(150 * MIB, 1010 * MIB))
    assert found is not None
    assert (found.allocated, found.program) == (1150 * MIB, 60 * MIB)
    assert found.error == pytest.approx(10 / 1210)
    silent = compare(estimate, None, Resident(150 * MIB, 1010 * MIB))
    assert silent is not None
    assert (silent.measured, silent.allocated) == (1160 * MIB, None)
    assert compare(estimate, None, Resident()) is None
    card = compare(estimate, replace(told, gpu=500 * MIB), Resident(1 * MIB, 1 * MIB))
    assert card is not None
    assert card.error == 0
    assert resident((2**22 + 1,)) == Resident()


def test_what_was_measured_corrects_the_next_estimate(settings: Settings) -> None:
    assert calibration.runtime(settings, "llama-cpp") == RUNTIME
    for size in (60, 62, 61, 63, 64, 500):
        assert calibration.remember(settings, "llama-cpp", size * MIB)
    assert calibration.runtime(settings, "llama-cpp") == 63 * MIB  # the median of the last five
    assert calibration.runtime(settings, "vllm") == RUNTIME
    assert not calibration.remember(settings, "llama-cpp", 3 << 30)
    assert fit.how_here(settings).runtime == 63 * MIB
    for text in ("{", "[]", '{"schema": 1, "runtime": {"x": [1, "2"]}}', '{"schema": 9}', "[" * 100_000):
        calibration.path(settings).write_text(text)
        assert calibration.runtime(settings, "llama-cpp") == RUNTIME
    calibration.path(settings).unlink()
    assert calibration.runtime(settings, "llama-cpp") == RUNTIME
    calibration.path(settings).mkdir()
    assert not calibration.remember(settings, "llama-cpp", 60 * MIB)


def prepared(plan: LaunchPlan, model: Path, settings: Settings, *extra: str, ctx: int = 2048) -> LaunchPlan:
    """The real server's plan with its estimate, as the command line makes it."""
    assert plan.argv is not None
    argv = tuple(
        str(ctx) if before == "-c" else word for before, word in zip(("", *plan.argv), plan.argv, strict=False)
    )
    named = replace(plan, argv=(*argv, "--log-verbosity", "4", *extra), ctx=ctx)
    return fit.expected(named, {model.name: model}, hardware.look({"PATH": ""}), settings)


def started(plan: LaunchPlan, settings: Settings, *, asks: bool = True) -> tuple[list[Event], serve.ServerInfo]:
    """What is said at the start of a lasting server, and how `ps` shows it."""
    from miyabi_llm.serve.run import Job, _guarded

    events: list[Event] = []
    job = Job("foreground", serve.name_for(plan.endpoint.model), None, serve.Limits())
    with _guarded(plan, settings, events.append, job) as supervisor:
        supervisor.start()
        supervisor.check(settings, asks=asks)
        (info,) = serve.ps(settings)
    return events, info


def warnings(events: list[Event]) -> dict[str, str]:
    return {e.name: e.message for e in events if e.kind == "warning"}


def close(plan: LaunchPlan, info: serve.ServerInfo, rel: float) -> None:
    """The whole within 5%, the buffers alone within `rel`."""
    assert plan.memory is not None
    assert info.fit is not None
    assert plan.memory.total - plan.memory.runtime == pytest.approx(info.fit["allocated"], rel=rel)
    assert abs(info.fit["error"]) < 0.05, info.fit


@pytest.mark.parametrize("ctx", [2048, 8192])
def test_the_estimate_and_the_real_server(
    real_plan: LaunchPlan, real_model: Path, settings: Settings, ctx: int
) -> None:
    """Within 5% of what it allocates and of what its process takes beside that; kept for `ps` and the next time."""
    plan = prepared(real_plan, real_model, settings, ctx=ctx)
    events, info = started(plan, settings)
    close(plan, info, 0.002)
    assert info.fit is not None
    assert [e.kind for e in events if e.name == "memory"] == ["phase"]
    assert warnings(events).keys() == {"chat template"}  # Gemma's base model; nothing else is wrong
    assert info.alarms[0].startswith("chat template: a base model")
    assert calibration.runtime(settings, "llama-cpp") == info.fit["program"]


OTHERS = [
    ((), 32768, 0.002),
    (("-ctk", "q8_0", "-ctv", "q8_0"), 8192, 0.02),
    (("-np", "4"), 8192, 0.002),
    (("-ub", "256", "--no-repack"), 8192, 0.01),
]


@pytest.mark.slow
@pytest.mark.parametrize(("extra", "ctx", "rel"), OTHERS)
def test_other_uses_of_the_small_model(
    real_plan: LaunchPlan, real_model: Path, settings: Settings, extra: tuple[str, ...], ctx: int, rel: float
) -> None:
    plan = prepared(real_plan, real_model, settings, *extra, ctx=ctx)
    close(plan, started(plan, settings, asks=False)[1], rel)


@pytest.mark.slow
@pytest.mark.parametrize(("extra", "ctx", "rel"), [*OTHERS, ((), 2048, 0.002), ((), 8192, 0.002)])
def test_uses_of_a_larger_model(
    real_plan: LaunchPlan, larger: Path, settings: Settings, extra: tuple[str, ...], ctx: int, rel: float
) -> None:
    assert real_plan.argv is not None
    argv = (*real_plan.argv[:1], "-m", str(larger), *real_plan.argv[3:])
    plan = prepared(replace(real_plan, argv=argv), larger, settings, *extra, ctx=ctx)
    close(plan, started(plan, settings, asks=False)[1], rel)


@pytest.fixture(scope="session")
def larger(real_store: Store) -> Path:
    """Qwen2.5-Coder 1.5B, another architecture with another vocabulary."""
    try:
        artifact = pull(ModelRef.parse("qwen2.5-coder:1.5b"), real_store, USER)
    except NetworkError as e:
        pytest.skip(f"the larger real model cannot be pulled: {e.message}")
    return next(iter(real_store.files(artifact).values()))


def test_the_alarms_of_the_real_server(real_plan: LaunchPlan, real_model: Path, settings: Settings) -> None:
    plan = prepared(real_plan, real_model, settings, "-np", "4", "--no-cache-prompt", "-t", "2")
    plan = replace(plan, expect=Expect(gpus=1, cores=1, chat_template=True))
    events, info = started(plan, settings)
    said = warnings(events)
    assert said.keys() == {"gpu", "context", "prompt cache", "threads"}
    assert "512 tokens of context, 2048 were asked for: 4 slots share it\nfix: --ctx 8192" in said["context"]
    assert "--no-cache-prompt" in said["prompt cache"]
    assert "2 threads, there are 1 cores" in said["threads"]
    assert len(info.alarms) == 4
    assert info.fit is not None
    assert abs(info.fit["error"]) < 0.05  # the plan's own `-np 4` was read


def test_a_server_that_keeps_no_earlier_prompts(real_plan: LaunchPlan, real_model: Path, settings: Settings) -> None:
    """`--cache-ram 0`: a slot still goes on with its own last prompt, so that only the other conversations lose."""
    plan = prepared(real_plan, real_model, settings, "--cache-ram", "0")
    events, _ = started(replace(plan, expect=Expect()), settings)
    assert list(warnings(events)) == ["prompt cache"]
    assert "take turns" in warnings(events)["prompt cache"]


def test_a_server_that_says_nothing_of_itself_raises_no_alarm(plan: Any, settings: Settings) -> None:
    events, info = started(plan(), settings)
    assert warnings(events) == {}
    assert (info.fit, info.alarms) == (None, ())


def test_a_server_that_is_not_ours(settings: Settings, tmp_path: Path) -> None:
    """A stand-in for Ollama that holds half of a model on its card, with a smaller context than was asked for."""
    from tests.ggufs import tiny
    from tests.ollamad import Ollamad

    data = tiny()
    digest = Digest(hashlib.sha256(data).hexdigest())
    path = tmp_path / digest
    path.write_bytes(data)
    ref = ModelRef.parse("hf:Org/Tiny-GGUF:Q8_0")
    artifact = Artifact(ref, "gguf", (StoredFile("m.gguf", digest, len(data)),), "verified", "test", "2026-01-01")
    spec = ServeSpec(artifact, {"m.gguf": path}, str(ref), ctx=2048, work=tmp_path / "models")
    with Ollamad(tmp_path / "models") as server:
        server.faults = {"half-gpu", "small-ctx"}
        endpoint = Endpoint(server.url, "", backend="ollama")
        with backends.get("ollama").control(endpoint) as control:
            name = control.add(spec, silent)
        plan = LaunchPlan("ollama", None, {}, replace(endpoint, model=name), ctx=2048, expect=Expect(gpus=1))
        events: list[Event] = []
        check_running(plan, events.append)
        assert list(warnings(events)) == ["gpu", "context"]
        assert "OLLAMA_CONTEXT_LENGTH" in warnings(events)["context"]
        handed: list[Event] = []
        check_running(replace(plan, handover=spec), handed.append)
        assert handed == []  # the handover has said it
    gone: list[Event] = []
    check_running(plan, gone.append)
    assert gone == []


def test_what_a_command_line_says_of_memory() -> None:
    flags = frozenset({"avx2"})
    use = fit.plan.used(("x", "-ctk", "q8_0", "-np", "2", "-ub", "256", "--parallel", "3"), flags)
    assert (use.kv_type, use.parallel, use.ubatch, use.repack) == ("q8_0", 3, 256, flags)
    plain = fit.plan.used(("x", "-np", "-1", "-ctk", "nonsense", "--no-repack"), flags)
    assert (plain.kv_type, plain.parallel, plain.repack) == ("f16", None, frozenset())


def test_a_file_that_is_no_gguf_has_no_estimate(plan: Any, settings: Settings, tmp_path: Path) -> None:
    made = fit.expected(plan(), {"x.gguf": tmp_path / "gone.gguf"}, hardware.look({"PATH": ""}), settings)
    assert (made.memory, made.expect.chat_template) == (None, None)
