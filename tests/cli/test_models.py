"""The commands about stored models, as a person or a script types them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from miyabi_llm import config
from miyabi_llm.cli import execute
from miyabi_llm.cli.stored import complete
from miyabi_llm.refs import ModelRef
from miyabi_llm.store import Store
from miyabi_llm.types import Artifact, StoredFile

from ..store.tiny import TEMPLATE, gguf_bytes, gguf_file

NAME = "hf:Org/Repo-GGUF:F16"
COMMIT = "f86cb2c1fa58255f8052cc32aeede1b7482d4361"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store where the command line will look, under a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MIYABI_HOME", str(tmp_path / "miyabi"))
    return Store(config.load().store)


def add(store: Store, name: str = NAME, made: str = "x", **card: Any) -> Artifact:
    """Put a small model of one file into the store."""
    path, sha256, size = gguf_file(store.root.parent / "made" / f"{made}.gguf", made)
    store.adopt(path, sha256)
    files = (StoredFile("tiny.gguf", sha256, size),)
    art = Artifact(ModelRef.parse(name), "gguf", files, "verified", name, "2026-11-22T01:02:03+00:00", "mit", card)
    path.unlink()
    store.publish(art)
    return art


Said = tuple[int, Any, str]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command: (exit code, stdout or its JSON, stderr)."""

    def go(*argv: str) -> Said:
        rc = execute(list(argv))
        out, err = capsys.readouterr()
        return rc, json.loads(out) if "--json" in argv else out, err

    return go


def rot(store: Store, artifact: Artifact) -> None:
    """Flip a bit of a model's bytes on disk."""
    blob = store.blob(artifact.files[0].sha256)
    blob.chmod(0o600)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)


def test_list(store: Store, say: Callable[..., Said]) -> None:
    assert say("list", "--json") == (0, [], "")
    rc, out, err = say("list")
    assert (rc, out) == (0, "")
    assert "miyabi-llm pull" in err
    add(store)
    rc, out, err = say("list")
    assert out.splitlines()[0].split() == ["NAME", "FORMAT", "SIZE", "TRUST", "PULLED"]
    assert out.splitlines()[1].split() == [NAME, "gguf", "1.2", "KiB", "verified", "2026-11-22"]
    _, found, _ = say("list", "--json")
    assert (found[0]["ref"], found[0]["size"]) == (NAME, len(gguf_bytes("x")))


def test_list_says_what_is_damaged_and_goes_on(store: Store, say: Callable[..., Said]) -> None:
    gone = add(store)
    add(store, "hf:Org/Other:F16", "y")
    store.blob(gone.files[0].sha256).unlink()
    rc, found, err = say("list", "--json")
    assert (rc, [a["ref"] for a in found]) == (0, ["hf:Org/Other:F16"])
    assert f"miyabi-llm pull {NAME}" in err


@pytest.mark.parametrize("heavy", [["list", "--json"], ["df", "--json"], ["rm", "hf:No/Such", "--json"]])
def test_light_commands_stay_light(heavy: list[str], store: Store) -> None:
    add(store)
    code = (
        "import sys; from miyabi_llm.cli import execute; execute(sys.argv[1:]); bad = {'httpx', 'rich', "
        "'huggingface_hub', 'psutil', 'asyncio', 'pydantic', 'tarfile', 'miyabi_llm.gguf'} & set(sys.modules); "
        "print('heavy:', sorted(bad), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, env=os.environ.copy())
    assert json.loads(done.stdout) is not None
    assert "heavy: []" in done.stderr


def test_show(store: Store, say: Callable[..., Said], tmp_path: Path) -> None:
    add(store, lineage=[{"step": "pull"}])
    rc, out, _ = say("show", NAME)
    assert rc == 0
    for words in ("architecture    qwen2", "parameters      256", "context length  2,048 tokens", "lineage", "F16"):
        assert words in out
    _, found, _ = say("show", NAME, "--json")
    assert found["tensors"] == [
        {"type": "F32", "count": 1, "bytes": 512},
        {"type": "F16", "count": 1, "bytes": 256},
    ]
    assert found["keys"]["general.license"] == "apache-2.0"
    assert found["artifact"]["card"]["lineage"] == [{"step": "pull"}]
    path, _, _ = gguf_file(tmp_path / "loose.gguf")
    rc, loose, _ = say("show", str(path), "--json")
    assert (rc, loose["artifact"], loose["license"]) == (0, None, "apache-2.0")
    assert say("show", "~/loose.gguf", "--json")[1]["parameters"] == 256


def test_show_one_fact(store: Store, say: Callable[..., Said]) -> None:
    add(store, made_by={"tool": "x"})
    assert say("show", NAME, "--field", "qwen2.context_length") == (0, "2048\n", "")
    assert say("show", NAME, "--field", "architecture")[1] == "qwen2\n"
    assert say("show", NAME, "--field", "card.made_by.tool")[1] == "x\n"
    assert say("show", NAME, "--field", "card.made_by", "--json")[1] == {"tool": "x"}
    assert say("show", NAME, "--template")[1] == TEMPLATE + "\n"
    rc, _, err = say("show", NAME, "--field", "architectur")
    assert rc == 2
    assert "Did you mean" in err
    assert say("show", NAME, "--field", "card.nothing")[0] == 2


def test_show_what_is_not_there_or_no_model(store: Store, say: Callable[..., Said], tmp_path: Path) -> None:
    add(store)
    rc, body, err = say("show", "hf:Org/Repo-GUF:F16", "--json")
    assert (rc, body["error"]["code"]) == (3, "model-missing")
    assert f"Did you mean {NAME}?" in err
    assert say("show", "./gone.gguf")[0] == 3
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    assert say("show", str(tmp_path / "bad.gguf"))[0] == 1
    (tmp_path / "base.gguf").write_bytes(gguf_bytes(template=False))
    rc, _, err = say("show", str(tmp_path / "base.gguf"), "--template")
    assert rc == 3
    assert "base model" in err


def test_a_models_own_words_do_not_steer_the_terminal(store: Store, say: Callable[..., Said], tmp_path: Path) -> None:
    data = gguf_bytes("x").replace(b"apache-2.0", b"\x1b[2J\x1b]0;h")
    (tmp_path / "evil.gguf").write_bytes(data)
    assert "\x1b" not in say("show", str(tmp_path / "evil.gguf"))[1]
    assert "\x1b" not in say("show", str(tmp_path / "evil.gguf"), "--field", "general.license")[1]


def test_show_safetensors(store: Store, say: Callable[..., Said], tmp_path: Path) -> None:
    head = json.dumps({"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}).encode()
    root = tmp_path / "hfmodel"
    root.mkdir()
    (root / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(12))
    (root / "config.json").write_text(
        json.dumps({"architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 512, "num_hidden_layers": 2})
    )
    rc, found, _ = say("show", f"file:{root}", "--json")
    assert rc == 0
    assert (found["architecture"], found["parameters"], found["context_length"]) == ("Qwen2ForCausalLM", 6, 512)
    assert (found["chat_template"], found["quantization"], found["format"]) == (False, "BF16", "safetensors")


def test_verify(store: Store, say: Callable[..., Said]) -> None:
    good = add(store)
    bad = add(store, "hf:Org/Other:F16", "y")
    assert say("verify", "--all", "--json")[:2][0] == 0
    rot(store, bad)
    rc, out, err = say("verify", NAME, "hf:Org/Other:F16")
    assert rc == 1
    assert f"ok   {NAME}  tiny.gguf" in out
    assert "BAD  hf:Org/Other:F16  tiny.gguf" in out
    assert f"expected sha256 {bad.files[0].sha256}" in err
    assert err.count("sha256 ") == 2
    assert "miyabi-llm pull hf:Org/Other:F16" in err
    rc, found, _ = say("verify", "--all", "--json")  # it is in quarantine now, and still not well
    assert (rc, found["ok"]) == (1, False)
    assert [m["ref"] for m in found["models"]] == [str(good.ref)]
    assert found["problems"][0]["name"] == "hf:Org/Other:F16"
    assert say("verify", "hf:Org/Other:F16", "--json")[0] == 1


def test_verify_wants_a_name_or_all(store: Store, say: Callable[..., Said]) -> None:
    assert say("verify")[0] == 2
    assert say("verify", NAME, "--all")[0] == 2
    assert say("verify", NAME)[0] == 3
    assert say("verify", "--all", "--json")[1]["ok"] is True


def test_rm(store: Store, say: Callable[..., Said]) -> None:
    add(store)
    other = add(store, "hf:Org/Other:F16", "y")
    rc, _, err = say("rm", "hf:Org/Other:F16", "hf:Org/Repo-GGUF:F61")
    assert rc == 3
    assert f"Did you mean {NAME}" in err
    assert len(store.list()) == 2  # nothing happened: one name was wrong
    rc, found, _ = say("rm", "hf:Org/Other:F16", "--json")
    assert (rc, found[0]["bytes"]) == (0, other.size)
    rc, out, _ = say("rm", NAME, NAME)
    assert (rc, out) == (0, f"removed {NAME}, 1.2 KiB free again\n")
    assert store.list() == []
    assert say("rm")[0] == 2


def test_rm_takes_a_damaged_model_too(store: Store, say: Callable[..., Said]) -> None:
    add(store)
    store.layout.manifest(ModelRef.parse(NAME)).write_text("{")
    assert say("show", NAME)[0] == 3
    assert say("rm", NAME)[0] == 0
    assert store.problems() == []


def test_rm_does_not_take_a_model_in_use(store: Store, say: Callable[..., Said]) -> None:
    art = add(store)
    with store.lease(art):
        rc, _, err = say("rm", NAME)
    assert rc == 1
    assert "in use" in err
    assert store.find(art.ref) == art


def test_prune_is_a_dry_run_until_yes(store: Store, say: Callable[..., Said]) -> None:
    art = add(store)
    store.layout.manifest(art.ref).unlink()
    blob = store.blob(art.files[0].sha256)
    _, found, _ = say("prune", "--json")
    assert (found["removed"], len(found["kept"])) == ([], 1)  # younger than an hour
    assert say("prune", "--yes")[1] == "Nothing to remove.\n"
    assert blob.exists()


def test_prune_does_not_speak_of_dead_leases(store: Store, say: Callable[..., Said]) -> None:
    add(store)
    store.layout.leases.joinpath("999999999-0").write_text("[]")
    assert say("prune")[1] == "Nothing to remove.\n"
    assert say("prune", "--yes")[1] == "Nothing to remove.\n"
    assert list(store.layout.leases.iterdir()) == []


def test_rm_says_which_model_has_the_same_bytes(store: Store, say: Callable[..., Said]) -> None:
    add(store)
    add(store, "hf:Org/Same:F16")
    _, out, _ = say("rm", NAME)
    assert out == f"removed {NAME}, 0 B free again: the same bytes are those of hf:Org/Same:F16\n"


def test_df(store: Store, say: Callable[..., Said]) -> None:
    art = add(store)
    _, found, _ = say("df", "--json")
    assert found["models"] == [{"ref": NAME, "bytes": art.size, "shared": 0}]
    assert found["blobs"] == art.size
    assert "MODEL" in say("df")[1]


def test_link(store: Store, say: Callable[..., Said], tmp_path: Path) -> None:
    art = add(store, resolved=f"hf:Org/Repo-GGUF@{COMMIT}:F16")
    blob = store.blob(art.files[0].sha256)
    _, found, _ = say("link", NAME, "--to", "lm-studio", "--json")
    (path,) = found["files"]
    assert path == str(tmp_path / ".lmstudio/models/Org/Repo-GGUF/tiny.gguf")
    assert blob.samefile(path)
    _, found, _ = say("link", NAME, "--to", "hf", "--json")
    assert found["name"] == f"Org/Repo-GGUF@{COMMIT}"
    assert "tiny:x" in say("link", NAME, "--to", "ollama", "--as", "tiny:x")[1]
    rc, _, err = say("link", NAME, "--to", "olama")
    assert rc == 2
    assert "lm-studio" in err
    assert say("link", NAME)[0] == 2
    rc, found, _ = say("rm", NAME, "--json")
    assert (rc, found[0]["bytes"]) == (0, 0)  # the other tools keep their names of the bytes
    assert "another tool" in found[0]["kept"]
    assert Path(path).read_bytes() == gguf_bytes("x")


def test_export_and_import(
    store: Store, say: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    art = add(store)
    monkeypatch.chdir(tmp_path)
    rc, found, _ = say("export", NAME, "--json")
    assert (rc, found["path"]) == (0, "Repo-GGUF-F16.tar")
    rc, _, err = say("export", NAME)
    assert rc == 2
    assert "--force" in err
    assert say("export", NAME, "--force")[1].splitlines()[1] == f"sha256 {found['sha256']}"
    monkeypatch.setenv("MIYABI_HOME", str(tmp_path / "other"))
    rc, out, err = say("import", "Repo-GGUF-F16.tar")
    assert (rc, out.split()) == (0, [NAME, "gguf", "1.2", "KiB", "first-use"])
    assert "verified where it was exported" in err
    assert Store(config.load().store).find(art.ref).files == art.files
    os.truncate("Repo-GGUF-F16.tar", 1000)
    assert say("import", "Repo-GGUF-F16.tar")[0] == 1


def test_outdated_when_offline(store: Store, say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIYABI_OFFLINE", "1")
    add(store, f"hf:Org/Repo@{COMMIT}:F16")
    rc, found, _ = say("outdated", "--json")
    assert (rc, found[0]["state"]) == (0, "pinned")
    add(store, NAME, "y")
    rc, body, err = say("outdated", "--json")
    assert (rc, body["error"]["code"]) == (1, "network")
    assert "offline" in err


def test_completion(store: Store) -> None:
    assert complete("") == []
    add(store)
    add(store, "ollama:tiny:x", "y")
    assert complete("") == [NAME, "ollama:tiny:x"]
    assert complete("o") == ["ollama:tiny:x"]
    code = "from miyabi_llm.cli import main; import sys; sys.argv[0] = 'miyabi-llm'; main()"
    env = dict(os.environ, _MIYABI_LLM_COMPLETE="complete_bash", COMP_WORDS="miyabi-llm show o", COMP_CWORD="2")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["ollama:tiny:x"], done.stderr


def test_a_short_name_gets_its_tag(store: Store, say: Callable[..., Said]) -> None:
    add(store, "qwen2.5-coder:1.5b")
    assert say("show", "qwen2.5-coder", "--field", "name")[1] == "qwen2.5-coder:1.5b\n"
    rc, _, err = say("show", "qwen2.5-codr")
    assert rc == 3
    assert "Did you mean qwen2.5-coder:1.5b" in err
