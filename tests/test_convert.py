"""A stored GGUF model becomes safetensors: what is refused, what is published, what a killed run leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from miyabi_llm import convert, gguf
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, Corrupt, DiskFull, Missing
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.store import Store
from miyabi_llm.tools import hf_copy
from miyabi_llm.types import Artifact, StoredFile
from tests.ggufs import tiny
from tests.tools.stubs import script, settings
from tests.tools.test_vllm import made

FAKE = Path(__file__).with_name("fakehf.py")
SPECIAL = {"tokenizer.ggml.pre": "qwen2"}


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return replace(settings(tmp_path), home=tmp_path / "home")


@pytest.fixture
def store(home: Settings) -> Store:
    return Store(home.store)


def stored(store: Store, tmp_path: Path, data: bytes | None = None, name: str = "tiny:1b") -> Artifact:
    path = tmp_path / "model.gguf"
    path.write_bytes(data or tiny(extra=SPECIAL))
    sha256, size, _ = store.adopt(path)
    files = (StoredFile("model.gguf", sha256, size),)
    artifact = Artifact(ModelRef.parse(name), "gguf", files, "verified", "test", "2026-01-01", "apache-2.0")
    store.publish(artifact)
    return artifact


def environment(home: Settings, mode: str) -> None:
    """An environment whose Python is the fake child."""
    folder = made(home.cache)
    script(folder / "bin" / "python", f'exec "{sys.executable}" "{FAKE}" {mode} "$@"')


def left(home: Settings) -> list[Path]:
    root = home.cache / "convert"
    return [p for p in root.iterdir() if p.name != ".lock"] if root.is_dir() else []


def test_the_copy_is_published_with_its_origin(home: Settings, store: Store, tmp_path: Path) -> None:
    source = stored(store, tmp_path)
    environment(home, "ok")
    made = convert.convert(source, store, home)
    assert str(made.ref) == "tiny:1b-safetensors"
    assert (made.format, made.trust, made.license) == ("safetensors", "local", "apache-2.0")
    assert {f.name for f in made.files} == {"model.safetensors", "config.json"}
    said = made.card["converted"]
    assert said["sha256"] == source.files[0].sha256
    assert said["quantization"] == "Q8_0"
    assert "dequantized from Q8_0" in said["note"]
    assert made.card["lineage"][-1] == {"step": "convert", "from": "tiny:1b", "sha256": [source.files[0].sha256]}
    assert store.find(made.ref) == made
    assert all(check.ok for check in store.verify(made))
    assert not left(home)
    environment_gone = home.cache / "envs"
    environment_gone.rename(tmp_path / "gone")
    assert convert.convert(source, store, home) == made  # it is there already


@pytest.mark.parametrize(
    ("mode", "match"),
    [("wrong", "token 7"), ("short", "parameters"), ("f32", "not only BF16"), ("code", "modeling.py")],
)
def test_a_copy_that_is_not_the_model_is_not_published(
    home: Settings, store: Store, tmp_path: Path, mode: str, match: str
) -> None:
    source = stored(store, tmp_path)
    environment(home, mode)
    with pytest.raises(Corrupt, match=match):
        convert.convert(source, store, home)
    assert [a.ref for a in store.list()] == [source.ref]
    assert not left(home)


def test_a_full_disk_is_named(home: Settings, store: Store, tmp_path: Path) -> None:
    environment(home, "die")
    with pytest.raises(DiskFull):
        convert.convert(stored(store, tmp_path), store, home)
    assert not left(home)


def test_what_was_never_verified_is_refused(home: Settings, store: Store, tmp_path: Path) -> None:
    """Before anything is installed: there is no environment here."""
    other = stored(store, tmp_path, tiny(extra={"general.architecture": "gemma3"}))
    with pytest.raises(BadUsage, match="gemma3 model was never verified") as e:
        convert.convert(other, store, home)
    assert e.value.exit_code == 2
    with pytest.raises(BadUsage, match="safetensors model"):
        convert.convert(replace(other, format="safetensors"), store, home)


def test_without_an_environment(home: Settings, store: Store, tmp_path: Path) -> None:
    with pytest.raises(Missing) as e:
        convert.convert(stored(store, tmp_path), store, home)
    assert e.value.hint == convert.INSTALL_HINT


@pytest.mark.parametrize(
    ("name", "match"),
    [("qwen2.5-coder:1.5b", "of the catalog"), ("hf:a/b", "cannot be the name"), ("tiny:1b", "another model")],
)
def test_names_that_are_taken(home: Settings, store: Store, tmp_path: Path, name: str, match: str) -> None:
    with pytest.raises(BadUsage, match=match):
        convert.convert(stored(store, tmp_path), store, home, name=ModelRef.parse(name))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("qwen2.5-coder:1.5b", "qwen2.5-coder:1.5b-safetensors"),
        ("hf:Qwen/Some-GGUF/x.gguf", "some:safetensors"),
        ("ollama:library/q:7b", "q:7b-safetensors"),
        ("./models/Mine.gguf", "mine:safetensors"),
        ("./models/hf.gguf", "hf-model:safetensors"),
    ],
)
def test_default_names(name: str, wanted: str) -> None:
    assert str(convert.default_name(ModelRef.parse(name))) == wanted


def test_what_transformers_loses_is_told_to_the_child() -> None:
    tokens = [f"t{i}" for i in range(38)] + ["<|endoftext|>", "<|im_end|>"]
    extra = SPECIAL | {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 38 + [3, 3],
        "tokenizer.ggml.eos_token_id": 39,
        "tokenizer.ggml.bos_token_id": 38,
        "tokenizer.ggml.padding_token_id": 38,
    }
    data = tiny(extra=extra)
    told = hf_copy.vocabulary(gguf.read(data, len(data), whole_arrays=True))
    assert told["ends"] == [39, 38]
    assert (told["eos"], told["pad"]) == (39, 38)
    assert told["bos"] is None  # it is not put before a prompt
    assert told["normalize"] is True
    assert told["template"]
    data = tiny(extra=extra | {"tokenizer.ggml.eos_token_id": 40})
    with pytest.raises(Corrupt, match="no token"):
        hf_copy.vocabulary(gguf.read(data, len(data), whole_arrays=True))
    data = tiny(extra=extra | {"tokenizer.ggml.tokens": ["t"] * 40})
    with pytest.raises(Corrupt, match="repeats"):
        hf_copy.vocabulary(gguf.read(data, len(data), whole_arrays=True))


def test_a_killed_run_leaves_nothing_that_lasts(home: Settings, store: Store, tmp_path: Path) -> None:
    source = stored(store, tmp_path)
    environment(home, "hang")
    code = (
        "import sys, json; from pathlib import Path; from miyabi_llm import convert, config; "
        "from miyabi_llm.store import Store; from miyabi_llm.refs import ModelRef; s = config.load(); "
        "store = Store(s.store); convert.convert(store.find(ModelRef.parse('tiny:1b')), store, s)"
    )
    env = os.environ | {"MIYABI_HOME": str(home.home), "MIYABI_CACHE": str(home.cache), "HOME": str(tmp_path)}
    child = subprocess.Popen([sys.executable, "-c", code], env=env)
    try:
        deadline = time.monotonic() + 30
        while not list((home.cache / "convert").glob("*/model/model.safetensors")):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert len(left(home)) == 1
    deadline = time.monotonic() + 10
    while alive(str(FAKE), str(home.cache)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(str(FAKE), str(home.cache))
    assert [a.ref for a in store.list()] == [source.ref]
    environment_mode(home, "ok")
    convert.convert(source, store, home)
    assert not left(home)


def environment_mode(home: Settings, mode: str) -> None:
    python = next(home.cache.glob("envs/*/bin/python"))
    script(python, f'exec "{sys.executable}" "{FAKE}" {mode} "$@"')


def alive(*words: str) -> list[int]:
    """Processes whose command line holds all of `words`."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and all(word in line for word in words):
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_the_command(home: Settings, store: Store, tmp_path: Path) -> None:
    stored(store, tmp_path)
    environment(home, "ok")
    env = os.environ | {"MIYABI_HOME": str(home.home), "MIYABI_CACHE": str(home.cache), "HOME": str(tmp_path)}
    argv = [sys.executable, "-m", "miyabi_llm", "convert", "tiny:1b", "--to", "safetensors", "--as", "mine", "--json"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert body["ref"] == "mine"
    assert body["format"] == "safetensors"
    assert Digest(body["card"]["converted"]["sha256"])
