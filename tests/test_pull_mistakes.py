"""Offline by choice, and one clear line with an exit code for every mistake at the command line."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from miyabi_llm import cli, config
from miyabi_llm.errors import NetworkError
from miyabi_llm.pull import pull
from miyabi_llm.refs import ModelRef
from miyabi_llm.store import Store
from tests.faultd import Faultd
from tests.registries import Hub
from tests.shelves import HEX, MODEL, OTHER, PINNED, world


def test_offline_asks_nobody(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.settings = replace(w.settings, offline=True)
    with pytest.raises(NetworkError, match="offline by choice"):
        w.pull()
    assert w.opened == 0
    w = world(tmp_path, catalog=PINNED)
    w.settings = replace(w.settings, offline=True)
    with pytest.raises(NetworkError, match="two:a is not on this machine") as caught:
        w.pull("two")
    assert caught.value.message.count("offline") == 1
    assert w.said("warning") == ""


@pytest.mark.parametrize(
    ("env", "toml", "hint"),
    [
        ({"MIYABI_OFFLINE": "1"}, "", "Unset MIYABI_OFFLINE."),
        ({"HF_HUB_OFFLINE": "yes", "MIYABI_OFFLINE": "0"}, "", "Unset HF_HUB_OFFLINE."),
        ({"HF_HUB_OFFLINE": "1", "MIYABI_OFFLINE": "1"}, "", "Unset MIYABI_OFFLINE and HF_HUB_OFFLINE."),
        ({}, "offline = true", "Take `offline = true` out of {}/config.toml."),
        (
            {"MIYABI_OFFLINE": "1"},
            "offline = true",
            "Unset MIYABI_OFFLINE. Take `offline = true` out of {}/config.toml.",
        ),
    ],
)
def test_the_hint_names_what_made_us_offline(tmp_path: Path, env: dict[str, str], toml: str, hint: str) -> None:
    (tmp_path / "config.toml").write_text(toml)
    settings = config.load({"HOME": str(tmp_path), "MIYABI_CONFIG": str(tmp_path), **env})
    for name in ("gemma3:270m", "hf:a/b"):
        with pytest.raises(NetworkError) as caught:
            pull(ModelRef.parse(name), Store(settings.store), settings)
        assert caught.value.hint == hint.format(tmp_path)


NO_HASH = """
[models."stranger:1"]
file = "m.gguf"
size = 25
sources = [{ packages = "no-such-p{1..3}", version = "1.0", member = "p/{1..3}", each = 10 }]

[models."huge:1"]
file = "m.gguf"
size = 1000000000000000000
sha256 = "%s"
sources = [{ packages = "no-such-package", version = "1.0", member = "p/x", each = 1000000000000000000 }]
""" % ("0" * 64)

# what was typed -> exit code, what the line says, what the hint says
MISTAKES = {
    "pull qwen2.5-codr:1.5b": (3, "no model is called 'qwen2.5-codr:1.5b'", "Did you mean qwen2.5-coder:1.5b?"),
    "pull qwen2.5-coder:70b": (3, "has no tag '70b'", "Known: qwen2.5-coder:1.5b"),
    "pull s3://bucket/m.gguf": (2, "unknown scheme 's3'", "Names look like"),
    "pull Qwen/Qwen3-8B-GGUF": (2, "is no short name", "Did you mean hf:Qwen/Qwen3-8B-GGUF?"),
    "pull hf:Qwen/Q:../x": (2, "is not a quantization", "Names look like"),
    "pull file:gone.gguf": (3, "gone.gguf: no such file or folder", "Check the path"),
    "pull file:m.bin": (1, "can run code", ".safetensors or .gguf"),
    "pull file:web.gguf": (1, "does not begin as a GGUF file", ""),
    "pull file:many": (3, "2 models in one folder: a.gguf, b.gguf", "Name one of the files"),
    f"pull file:m.gguf --sha256 {'0' * 64}": (1, "expected " + "0" * 64, ""),
    "pull file:m.gguf --sha256 12": (2, "not a sha256: '12'", "64 hexadecimal digits"),
    f"pull qwen2.5-coder --sha256 {'0' * 64}": (2, "is pinned to cc324af070c2", ""),
    "pull stranger": (1, "packages are anybody's upload", "--trust-first-use"),
    "pull stranger --trust-first-use": (3, "no-such-p1==1.0 and 2 more packages", "pip config list"),
    "pull huge": (4, "MiB are free", "miyabi-llm prune"),
    "pull nothing --json": (3, "no model is called 'nothing'", "Known short names"),
    "resolve qwen2.5-codr": (3, "no model is called", "Did you mean qwen2.5-coder:1.5b?"),
    "resolve file:gone.gguf": (3, "no such file", ""),
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_one_clear_line_and_an_exit_code(
    typed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, says, hint = MISTAKES[typed]
    for name, data in {"m.bin": b"x", "m.gguf": MODEL, "web.gguf": b"<html>", "many/a.gguf": MODEL}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "many/b.gguf").write_bytes(MODEL)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/catalog.toml").write_text(NO_HASH)
    env = {"MIYABI_CONFIG": str(tmp_path / "config"), "MIYABI_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    env |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    assert cli.execute(typed.split(" ")) == code
    out, err = capsys.readouterr()
    line, *rest = [x for x in err.splitlines() if not x.startswith(("warning: ", "stranger:1:"))]
    assert line.startswith("miyabi-llm: ")
    assert says in line
    assert hint in "".join(rest)
    assert len(rest) <= 1
    assert "Traceback" not in err
    assert "error" in json.loads(out) if "--json" in typed else out == ""


HUB_MISTAKES = {
    "pull hf:o/r:Q9_X": (3, "o/r has no Q9_X", "Q4_K_M"),
    "pull hf:o/r/gone.gguf": (3, "gone.gguf", ""),
    "pull hf:o/none": (3, "o/none is not there", "hf auth login"),
    "pull hf:o/gated": (1, "", "hf auth login"),
    "pull hf:o/r@v9:Q4_K_M": (3, "no revision v9", "commits/main"),
    "pull hf:o/pickle": (1, "", ""),
    f"pull hf:o/r:Q4_K_M --sha256 {'0' * 64}": (1, "is expected", ""),
}


@pytest.mark.parametrize("typed", HUB_MISTAKES)
def test_a_mistake_at_the_hub_is_one_clear_line_too(
    typed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, says, hint = HUB_MISTAKES[typed]
    monkeypatch.setenv("HOME", str(tmp_path))
    with Faultd() as server:
        hub = Hub(server)
        hub.add("o/r", {"r-Q4_K_M.gguf": MODEL, "r-Q8_0.gguf": OTHER})
        hub.add("o/gated", {"r-Q4_K_M.gguf": MODEL}, gated="auto", token="t")
        hub.add("o/pickle", {"config.json": b"{}", "pytorch_model.bin": b"x"})
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        assert cli.execute(typed.split(" ")) == code
        out, err = capsys.readouterr()
        line, *rest = [x for x in err.splitlines() if not x.startswith(("warning: ", "hf:o/"))]
        assert line.startswith("miyabi-llm: ")
        assert says in line
        assert hint in "".join(rest)
        assert len(rest) <= 1
        assert out == ""
        assert cli.execute(["pull", "hf:o/r:Q4_K_M"]) == 0
        assert HEX in capsys.readouterr().out


def test_the_commands_show_what_they_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(MODEL)
    assert cli.execute(["pull", str(path), "--dry-run"]) == 0
    assert "not here" in capsys.readouterr().out
    assert cli.execute(["pull", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["sha256"] == HEX
    assert cli.execute(["pull", str(path)]) == 0
    assert HEX in capsys.readouterr().out
    assert cli.execute(["resolve", "gemma3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["canonical"], found["trust"], found["here"]) == ("gemma3:270m", "verified", False)
    assert cli.execute(["resolve", "gemma3"]) == 0
    assert "no chat template" in capsys.readouterr().out
