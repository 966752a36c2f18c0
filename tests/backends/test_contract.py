"""What every backend in the table promises."""

from pathlib import Path

import pytest

from miyabi_llm import backends
from miyabi_llm.backends.base import Backend, Detected
from miyabi_llm.refs import ModelRef
from miyabi_llm.tools.program import Program
from miyabi_llm.types import Artifact, Format, Secret, ServeSpec, StoredFile, plain

FLAGS = frozenset({"--model", "--host", "--port", "--alias", "--ctx-size", "--threads", "--cache-ram", "--jinja"})
PROGRAM = Program("any", Path("/opt/any"), ("/opt/any",), "1", "path", 99999, None, FLAGS, frozenset({"LLAMA_API_KEY"}))
FOUND = Detected("any", True, program=PROGRAM)
NAMES: dict[Format, str] = {"gguf": "m.gguf", "safetensors": "m.safetensors", "adapter": "a.gguf", "ollama": "m.gguf"}
KEY = "sk-contract-0123456789"


def spec(backend: Backend, port: int = 18123) -> ServeSpec:
    format_ = sorted(backend.accepts)[0]
    name = NAMES[format_]
    file = StoredFile(name, "0" * 64, 1)  # type: ignore[arg-type]
    artifact = Artifact(ModelRef.parse("hf:a/b/m.gguf"), format_, (file,), "verified", "test", "2026-01-01")
    return ServeSpec(artifact, {name: Path("/models") / name}, "m", "127.0.0.1", port, key=Secret(KEY))


@pytest.mark.parametrize("backend", backends.table().values(), ids=lambda b: b.name)
class TestBackend:
    def test_it_is_a_frozen_value_with_a_name(self, backend: Backend) -> None:
        assert isinstance(backend, Backend)
        assert backends.table()[backend.name] == backend
        assert hash(backend) == hash(backends.get(backend.name))
        with pytest.raises(AttributeError):
            backend.name = "other"  # type: ignore[misc]

    def test_the_plan_is_pure(self, backend: Backend) -> None:
        assert plain(backend.plan(spec(backend), FOUND)) == plain(backend.plan(spec(backend), FOUND))
        assert backend.plan(spec(backend), FOUND).backend == backend.name

    def test_no_secret_is_in_the_command_or_in_any_print(self, backend: Backend) -> None:
        plan = backend.plan(spec(backend), FOUND)
        assert KEY not in " ".join(plan.argv or ())
        assert KEY not in repr(plan)
        assert KEY not in str(plain(plan))
        assert all(isinstance(v, Secret) for v in plan.env.values() if "reveal" in dir(v))

    @pytest.mark.parametrize("port", [18123, 40001])
    def test_host_port_and_name_are_honoured(self, backend: Backend, port: int) -> None:
        plan = backend.plan(spec(backend, port), FOUND)
        assert plan.endpoint.base_url == f"http://127.0.0.1:{port}"
        assert plan.endpoint.model == "m"
        if plan.argv is not None:
            assert str(port) in plan.argv
            assert "127.0.0.1" in plan.argv

    def test_the_users_own_words_come_last(self, backend: Backend) -> None:
        from dataclasses import replace

        plan = backend.plan(replace(spec(backend), extra=("--x", "1")), FOUND)
        assert plan.argv is None or plan.argv[-2:] == ("--x", "1")
