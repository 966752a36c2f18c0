"""What every backend in the table promises: as a value, and as a server, with its program or a stand-in.

`pytest tests/backends/test_contract.py -v` names for each backend which of the two it was.
"""

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from miyabi_llm import backends, serve
from miyabi_llm.backends.base import Backend, Control, Detected, Unsupported
from miyabi_llm.errors import MiyabiError
from miyabi_llm.refs import ModelRef
from miyabi_llm.tools.program import Program
from miyabi_llm.types import Artifact, Endpoint, Format, LaunchPlan, Secret, ServeSpec, StoredFile, plain
from tests.serve.conftest import all_gone

from .stages import STAGES, Stage

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
    files = {name: Path("/models") / name}
    key = Secret(KEY) if backend.capabilities.key else None
    return ServeSpec(artifact, files, "m", "127.0.0.1", port, key=key, attach=False, work=Path("/work"))


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
        assert plan.endpoint.model in ("m", "m:latest")  # some servers name a tag always
        if plan.argv is not None:
            told = " ".join([*plan.argv, *(str(v) for v in plan.env.values())])
            assert str(port) in told
            assert "127.0.0.1" in told

    def test_a_key_is_demanded_refused_or_said_to_be_none(self, backend: Backend) -> None:
        asked = replace(spec(backend), key=Secret(KEY))
        if backend.capabilities.key:
            assert backend.plan(asked, FOUND).endpoint.key is not None
        else:
            try:
                plan = backend.plan(asked, FOUND)
            except Unsupported:
                return
            assert plan.endpoint.key is None
            assert any("demands no key" in note for note in plan.notes)  # said, never silently dropped
            with pytest.raises(Unsupported):
                backend.plan(replace(asked, host="0.0.0.0"), FOUND)

    def test_it_says_how_it_is_installed_and_what_it_cannot_do(self, backend: Backend) -> None:
        assert all(backend.ways(system) for system in ("Linux", "Darwin", "Windows"))
        assert backend.capabilities.limits
        if backend.capabilities.verified == "stand-in":
            assert any("not run against the real program" in limit.lower() for limit in backend.capabilities.limits)

    def test_the_users_own_words_come_last(self, backend: Backend) -> None:
        try:
            plan = backend.plan(replace(spec(backend), extra=("--x", "1")), FOUND)
        except Unsupported:
            return  # its program takes no options
        assert plan.argv is None or plan.argv[-2:] == ("--x", "1")


LIMITS = serve.Limits(silent_s=120, load_s=600, first_token_s=120, grace_s=2.0, backoff_s=0.05)


@pytest.fixture(params=STAGES)
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    yield from request.param(tmp_path, request)


def ask(endpoint: Endpoint, *, key: bool = True, model: str | None = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {endpoint.key.reveal()}"} if endpoint.key and key else {}
    body = {"model": model or endpoint.model, "prompt": "The capital of Japan is", "max_tokens": 4, "temperature": 0}
    url = f"{endpoint.base_url}/v1/completions"
    return httpx.post(url, json=body, headers=headers, timeout=120, trust_env=False)


def unloaded(control: Control, name: str) -> bool:
    """Whether it can be unloaded while it runs: a server of one model says that it cannot."""
    try:
        control.unload(name)
    except Unsupported:
        return False
    return True


class TestServing:
    def test_from_a_plan_to_an_answer_and_to_nothing(self, stage: Stage) -> None:
        alias = f"m-{secrets.token_hex(4)}"
        plan = stage.plan(alias)
        can = stage.backend.capabilities
        with serve.running(plan, stage.settings, limits=LIMITS) as endpoint:
            assert (endpoint.backend, plan.argv is None) == (stage.backend.name, stage.backend.name == "lm-studio")
            said = ask(endpoint)
            assert said.status_code == 200, said.text
            assert said.json()["choices"][0]["text"]
            if can.key:
                assert ask(endpoint, key=False).status_code == 401
            self.control(stage, plan, endpoint)
        if plan.argv is not None:
            assert all_gone(str(plan.endpoint.base_url.rpartition(":")[2]), 3.0)
            with pytest.raises(httpx.HTTPError):
                ask(endpoint)

    def control(self, stage: Stage, plan: LaunchPlan, endpoint: Endpoint) -> None:
        with stage.backend.control(endpoint) as control:
            assert control.version()
            (mine,) = [m for m in control.models() if m.name == endpoint.model]
            assert mine.state == "loaded"
            with pytest.raises(MiyabiError):
                control.load("nobody-knows-this")
            if unloaded(control, endpoint.model):
                assert stage.backend.capabilities.unload
                assert control.load(endpoint.model).state == "loaded"
            assert ask(endpoint).status_code == 200
