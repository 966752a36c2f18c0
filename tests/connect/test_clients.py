"""What each client is told, merged into files of a home of its own."""

from __future__ import annotations

import json
import stat
import string
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm import config, connect
from miyabi_llm.config import Settings
from miyabi_llm.connect import KeySource, Target
from miyabi_llm.errors import BadUsage
from miyabi_llm.types import Endpoint, Secret, plain

KEY = "k3y-that-must-not-be-copied"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return config.load({"HOME": str(tmp_path / "home")}, file=False)


@pytest.fixture
def target(tmp_path: Path) -> Target:
    key = tmp_path / "run of mine" / "m.key"
    key.parent.mkdir()
    key.write_text(KEY)
    endpoint = Endpoint("http://127.0.0.1:8080", "qwen:1.5b", ("openai", "anthropic"), Secret(KEY), key, "llama-cpp")
    return Target(endpoint, 65536, KeySource(key))


def written(client: str, target: Target, settings: Settings) -> list[connect.Written]:
    return [connect.apply(file) for file in connect.connection(client, target, settings).files]


def everything(folder: Path) -> str:
    return "\n".join(p.read_text() for p in folder.rglob("*") if p.is_file())


def test_claude_code_twice_changes_nothing_and_keeps_a_backup(target: Target, settings: Settings) -> None:
    path = settings.user_home / ".claude/settings.json"
    path.parent.mkdir(parents=True)
    before = '{"model": "opus",\n "env": {"ANTHROPIC_API_KEY": "theirs", "FOO": "1"}}\n'
    path.write_text(before)
    path.chmod(0o640)
    (first,) = written("claude-code", target, settings)
    assert first.changed
    assert first.removed == ("env.ANTHROPIC_API_KEY",)
    assert first.backup is not None
    assert first.backup.parent == path.parent
    assert first.backup.read_text() == before
    now = json.loads(path.read_text())
    assert now["model"] == "opus"
    assert now["env"]["FOO"] == "1"
    assert now["env"]["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8080"
    assert now["env"]["ANTHROPIC_MODEL"] == "qwen:1.5b"
    assert now["apiKeyHelper"] == f"cat '{target.endpoint.key_file}'"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    files = sorted(path.parent.iterdir())
    assert written("claude-code", target, settings) == [connect.Written(path, False)]
    assert sorted(path.parent.iterdir()) == files
    other = replace(target, endpoint=replace(target.endpoint, model="other"))
    (third,) = written("claude-code", other, settings)
    assert third.backup is not None
    assert third.backup != first.backup
    assert first.backup.read_text() == before


def test_the_helper_prints_the_key(target: Target, settings: Settings) -> None:
    import subprocess

    (file,) = connect.connection("claude-code", target, settings).files
    done = subprocess.run(["sh", "-c", file.values["apiKeyHelper"]], capture_output=True, text=True, timeout=10)
    assert done.stdout == KEY


def test_claude_code_without_a_key(target: Target, settings: Settings) -> None:
    open_ = Target(replace(target.endpoint, key=None, key_file=None))
    written("claude-code", target, settings)
    written("claude-code", open_, settings)
    now = json.loads((settings.user_home / ".claude/settings.json").read_text())
    assert "apiKeyHelper" not in now  # it would be asked for a key that is not there
    assert now["env"]["ANTHROPIC_AUTH_TOKEN"] == "none"


def test_codex(target: Target, settings: Settings) -> None:
    path = settings.user_home / ".codex/config.toml"
    path.parent.mkdir(parents=True)
    path.write_text('# mine\n[mcp_servers.docs]\ncommand = "npx"\n')
    written("codex", target, settings)
    now = tomllib.loads(path.read_text())
    assert now["mcp_servers"] == {"docs": {"command": "npx"}}
    assert now["model_provider"] == "miyabi-llm"
    assert now["model_context_window"] == 65536
    assert now["model_providers"]["miyabi-llm"]["auth"] == {"command": "cat", "args": [str(target.endpoint.key_file)]}
    assert path.read_text().startswith("# mine\n")
    by_variable = replace(target, key=KeySource(variable="THEIR_KEY"))
    written("codex", by_variable, settings)
    provider = tomllib.loads(path.read_text())["model_providers"]["miyabi-llm"]
    assert provider["env_key"] == "THEIR_KEY"
    assert "auth" not in provider


def test_opencode_takes_the_file_that_is_there(target: Target, settings: Settings) -> None:
    folder = settings.user_home / ".config/opencode"
    folder.mkdir(parents=True)
    (folder / "opencode.jsonc").write_text('{\n  // dark\n  "theme": "x"\n}\n')
    (done,) = written("opencode", target, settings)
    assert done.path == folder / "opencode.jsonc"
    text = done.path.read_text()
    assert "// dark" in text
    now = json.loads(text.replace("// dark", ""))
    assert now["model"] == "miyabi-llm/qwen:1.5b"
    assert now["provider"]["miyabi-llm"]["options"]["apiKey"] == f"{{file:{target.endpoint.key_file}}}"


def test_continue_has_a_copy_of_the_key_for_its_owner_only(target: Target, settings: Settings) -> None:
    folder = settings.user_home / ".continue"
    folder.mkdir(parents=True)
    (folder / ".env").write_text("OTHER=1\n")
    (folder / ".env").chmod(0o644)
    written("continue", target, settings)
    now = yaml.safe_load((folder / "config.yaml").read_text())
    assert now["models"][0]["apiKey"] == "${{ secrets.MIYABI_LLM_API_KEY }}"
    assert (folder / ".env").read_text() == f"OTHER=1\nMIYABI_LLM_API_KEY={KEY}\n"
    assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600
    assert [w.changed for w in written("continue", target, settings)] == [False, False]


@pytest.mark.parametrize("client", sorted(set(connect.CLIENTS) - {"ollama"}))
def test_the_key_is_shown_nowhere_and_copied_by_continue_only(client: str, target: Target, settings: Settings) -> None:
    told = connect.connection(client, target, settings)
    assert KEY not in repr(told)
    assert KEY not in json.dumps(plain(told))
    assert KEY not in "".join(connect.preview(f) for f in told.files)
    for file in told.files:
        connect.apply(file)
    if settings.user_home.exists() and client != "continue":
        assert KEY not in everything(settings.user_home)


def test_a_dialect_that_is_not_spoken_is_refused(target: Target, settings: Settings) -> None:
    plainly = replace(target, endpoint=replace(target.endpoint, dialects=("openai",)))
    with pytest.raises(BadUsage, match=r"claude-code speaks the anthropic dialect; .* speaks openai"):
        connect.connection("claude-code", plainly, settings)
    with pytest.raises(BadUsage, match="ollama speaks the ollama dialect"):
        connect.connection("ollama", target, settings)
    embedded = replace(target, endpoint=replace(target.endpoint, backend="embedded"))
    with pytest.raises(BadUsage, match="no /v1/responses"):
        connect.connection("codex", embedded, settings)
    with pytest.raises(BadUsage, match="'emacs' is no client"):
        connect.connection("emacs", target, settings)


def test_a_small_context_is_said(target: Target, settings: Settings) -> None:
    assert "4096 tokens" in " ".join(connect.connection("opencode", replace(target, ctx=4096), settings).notes)


@pytest.mark.parametrize("text", [b"{", b"[1]", b'{"env": 3}', b"\xff\xfe{}"])
def test_a_malformed_file_is_an_error_and_stays(text: bytes, target: Target, settings: Settings) -> None:
    path = settings.user_home / ".claude/settings.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    with pytest.raises(BadUsage, match=r"settings.json is no json we can change"):
        written("claude-code", target, settings)
    assert path.read_bytes() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_link_into_a_folder_of_dotfiles_stays_a_link(target: Target, settings: Settings, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles/settings.json"
    real.parent.mkdir()
    real.write_bytes(b'{\r\n  "a": 1\r\n}\r\n')
    path = settings.user_home / ".claude/settings.json"
    path.parent.mkdir(parents=True)
    path.symlink_to(real)
    (done,) = written("claude-code", target, settings)
    assert path.is_symlink()
    assert json.loads(real.read_text())["env"]["ANTHROPIC_MODEL"] == "qwen:1.5b"
    assert b"\n" not in real.read_bytes().replace(b"\r\n", b"")  # line ends as they were
    assert done.backup is not None
    assert done.backup.parent == real.parent


def test_exports_are_words_of_a_shell(target: Target, settings: Settings) -> None:
    import subprocess

    odd: Any = replace(target.endpoint, model="a b'c$d")
    exports = connect.connection("aider", replace(target, endpoint=odd), settings).exports
    script = (
        "\n".join(f"export {k}={v}" for k, v in exports.items()) + '\nprintf "%s|%s" "$AIDER_MODEL" "$OPENAI_API_KEY"'
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=10)
    assert done.stdout == f"openai/a b'c$d|{KEY}"


WORD = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=15)
SECRET = st.text(string.ascii_letters + string.digits, min_size=20, max_size=30)
READ = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load, "env": str}


@given(WORD, WORD, SECRET, st.sampled_from(["claude-code", "codex", "opencode", "continue"]))
def test_any_name_and_path_is_read_back_and_no_key_is_shown(model: str, path: str, key: str, client: str) -> None:
    home = config.load({"HOME": "/nobody"}, file=False)
    file = Path("/run") / path.replace("/", "-")
    endpoint = Endpoint("http://127.0.0.1:8080", model, ("openai", "anthropic"), Secret(key), file, "llama-cpp")
    told = connect.connection(client, Target(endpoint, 8192, KeySource(file)), home)
    for settings in told.files:
        text = connect.preview(settings)
        assert key not in text
        read = READ[settings.form](text)
        if settings.form != "env":
            assert read == settings.values
