"""`serve --generate`, as a person types it, on a store with small models."""

from __future__ import annotations

import hashlib
import json
import plistlib
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from miyabi_llm import config
from miyabi_llm.cli import execute
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.store import Store
from miyabi_llm.types import Artifact, StoredFile

from ..store.tiny import gguf_bytes
from .test_text import compose, manifests, unit, words

Said = tuple[int, str, str]
CONFIG = {"architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 4096}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with one model for llama.cpp and one for vLLM."""
    monkeypatch.setenv("HOME", str(tmp_path / "you"))
    monkeypatch.setenv("MIYABI_HOME", str(tmp_path / "data of mine"))
    monkeypatch.setenv("SECRET_TOKEN", "must-not-appear")
    store = Store(config.load().store)
    keep(store, tmp_path, "file:tiny.gguf", {"tiny model.gguf": gguf_bytes()})
    keep(store, tmp_path, "hf:org/big", {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": b"\0" * 64})
    return store


def keep(store: Store, folder: Path, ref: str, files: dict[str, bytes]) -> None:
    made = []
    for name, data in files.items():
        path, sha256 = folder / name, Digest(hashlib.sha256(data).hexdigest())
        path.write_bytes(data)
        store.adopt(path, sha256)
        made.append(StoredFile(name, sha256, len(data)))
    kind = "safetensors" if len(files) > 1 else "gguf"
    store.publish(Artifact(ModelRef.parse(ref), kind, tuple(made), "local", ref, "2026-01-01T00:00:00+00:00"))  # type: ignore[arg-type]


@pytest.fixture
def say(store: Store, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def go(*argv: str) -> Said:
        rc = execute(list(argv))
        out, err = capsys.readouterr()
        assert "must-not-appear" not in out + err
        return rc, out, err

    return go


def test_systemd_runs_the_same_command(say: Callable[..., Said], tmp_path: Path) -> None:
    rc, out, err = say(
        "serve", "file:tiny.gguf", "--generate", "systemd", "--ctx", "512", "--port", "9001", "--", "-x", "a b"
    )
    assert rc == 0, err
    command = words(unit(out)["Service"]["ExecStart"][0])
    at = command.index("serve")
    assert Path(command[0]).is_absolute()
    assert command[at + 1].endswith("tiny.gguf")
    rest = command[at + 2 :]
    assert rest == ["--ctx", "512", "--port", "9001", "--name", "tiny-model", "--key", "--", "-x", "a b"]
    env = [words(line, expands=False)[0] for line in unit(out)["Service"]["Environment"]]
    assert f"MIYABI_HOME={tmp_path / 'data of mine'}" in env
    assert "systemctl --user enable --now tiny-model.service" in err


def test_a_key_file_is_named_and_its_key_is_not(say: Callable[..., Said], tmp_path: Path) -> None:
    key = tmp_path / "my.key"
    key.write_text("k3y-of-mine-0123456789\n")
    key.chmod(0o600)
    for kind in ("systemd", "launchd", "quadlet", "compose", "kube"):
        rc, out, err = say("serve", "file:tiny.gguf", "--generate", kind, "--api-key-file", str(key))
        assert rc == 0, err
        assert "k3y-of-mine" not in out + err
        assert str(key) in out + err
        assert "openssl" not in err


def test_launchd_and_a_file(say: Callable[..., Said], tmp_path: Path) -> None:
    rc, out, _ = say("serve", "file:tiny.gguf", "--generate", "launchd", "-o", str(tmp_path))
    path = tmp_path / "miyabi-llm.tiny-model.plist"
    assert (rc, out) == (0, f"{path}\n")
    assert "serve" in plistlib.loads(path.read_bytes())["ProgramArguments"]
    rc, _, err = say("serve", "file:tiny.gguf", "--generate", "launchd", "-o", str(tmp_path / "no/where"))
    assert rc == 2
    assert "no/where" in err


def test_containers_see_the_model_where_it_is_mounted(say: Callable[..., Said], store: Store) -> None:
    rc, out, err = say("serve", "file:tiny.gguf", "--generate", "compose", "--ctx", "256")
    assert rc == 0, err
    server = compose(out)["services"]["server"]
    command = server["command"]
    assert command[command.index("--model") + 1] == "/models/tiny model.gguf"
    assert command[command.index("--ctx-size") + 1] == "256"
    assert command[command.index("--host") + 1] == "0.0.0.0"
    (volume,) = server["volumes"]
    assert Path(volume["source"]).read_bytes() == gguf_bytes()
    assert "openssl rand" in err  # no key is there yet
    rc, out, _ = say("serve", "file:tiny.gguf", "--generate", "quadlet", "--gpus", "1")
    assert unit(out)["Container"]["AddDevice"] == ["nvidia.com/gpu=all"]


def test_vllm_on_one_machine_and_on_three(say: Callable[..., Said]) -> None:
    rc, out, err = say("serve", "hf:org/big", "--generate", "kube", "--gpus", "2")
    assert rc == 0, err
    _, deployment, _ = manifests(out)
    (server,) = deployment["spec"]["template"]["spec"]["containers"]
    assert server["command"] == ["vllm", "serve"]
    assert server["args"][0] == "/models"
    assert server["args"][server["args"].index("--tensor-parallel-size") + 1] == "2"
    assert "--middleware" not in server["args"]
    assert "--enforce-eager" not in server["args"]
    rc, out, err = say("serve", "hf:org/big", "--generate", "kube", "--gpus", "2", "--nodes", "3", "--json")
    assert rc == 0, err
    _, group, _ = manifests(json.loads(out)["text"])
    leader = group["spec"]["leaderWorkerTemplate"]["leaderTemplate"]["spec"]["containers"][0]
    command = shlex.split(leader["command"][2])
    assert command[command.index("--pipeline-parallel-size") + 1] == "3"
    assert command[command.index("--distributed-executor-backend") + 1] == "ray"
    assert "LeaderWorkerSet" in err


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["file:tiny.gguf", "--generate", "upstart"], "Kinds: systemd, quadlet, compose, kube, launchd"),
        (["hf:org/big", "--generate", "kube"], "wants a GPU"),
        (["file:tiny.gguf", "hf:org/big", "--generate", "compose"], "takes one model"),
        (["file:tiny.gguf", "--generate", "compose", "--backend", "ollama"], "no container is made for ollama"),
        (["file:tiny.gguf", "--generate", "compose", "--lora", "a.gguf"], "adapters"),
        (["--generate", "systemd"], "name models"),
    ],
)
def test_what_cannot_be_generated_is_refused(argv: list[str], what: str, say: Callable[..., Said]) -> None:
    rc, out, err = say("serve", *argv)
    assert rc == 2, err
    assert what in err
    assert not out


def test_several_models_under_systemd(say: Callable[..., Said]) -> None:
    rc, out, err = say("serve", "file:tiny.gguf", "hf:org/big", "--generate", "systemd")
    assert rc == 0, err
    command = words(unit(out)["Service"]["ExecStart"][0])
    assert [w for w in command if "tiny.gguf" in w or "org/big" in w] == command[command.index("serve") + 1 :][:2]


@pytest.mark.parametrize("words", [("-o", "here"), ("--image", "x:1"), ("--gpus", "1")])
def test_options_of_generate_alone_start_nothing(say: Callable[..., Said], words: tuple[str, str]) -> None:
    rc, _, err = say("serve", "file:tiny.gguf", *words)
    assert rc == 2
    assert f"{words[0]} goes with --generate" in err


def test_a_full_disk_is_told(say: Callable[..., Said]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is Linux's")
    rc, _, err = say("serve", "file:tiny.gguf", "--generate", "systemd", "-o", "/dev/full")
    assert (rc, "Free some space" in err) == (4, True), err
