"""Bytes of other tools: found, never trusted before they are hashed, shared without a copy."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from miyabi_llm import config
from miyabi_llm.config import Settings
from miyabi_llm.errors import AccessDenied, BadUsage, Corrupt, Unsafe
from miyabi_llm.refs import Digest
from miyabi_llm.store import Store, adopt, link

from .tiny import artifact, gguf_file

COMMIT = "f86cb2c1fa58255f8052cc32aeede1b7482d4361"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return config.load({"HOME": str(tmp_path / "user"), "MIYABI_HOME": str(tmp_path / "miyabi")})


@pytest.mark.parametrize(
    ("env", "hub"),
    [
        ({}, "user/.cache/huggingface/hub"),
        ({"HF_HOME": "{}/h"}, "h/hub"),
        ({"HF_HOME": "{}/h", "HF_HUB_CACHE": "{}/c"}, "c"),
        ({"XDG_CACHE_HOME": "{}/x"}, "x/huggingface/hub"),
    ],
)
def test_the_hub_cache_is_where_its_client_says(env: dict[str, str], hub: str, tmp_path: Path) -> None:
    env = {k: v.format(tmp_path) for k, v in env.items()}
    ours = adopt.folders(config.load(env | {"HOME": str(tmp_path / "user")})).hf
    code = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    theirs = subprocess.run(
        [sys.executable, "-c", code], env=env | {"HOME": str(tmp_path / "user")}, capture_output=True, text=True
    ).stdout.strip()
    assert str(ours) == theirs == str(tmp_path / hub)


def _hub(settings: Settings, sha256: str) -> Path:
    return settings.user_home / f".cache/huggingface/hub/models--Org--Repo/blobs/{sha256}"


def _ollama(settings: Settings, sha256: str) -> Path:
    return settings.user_home / f".ollama/models/blobs/sha256-{sha256}"


def _studio(settings: Settings, sha256: str) -> Path:
    return settings.user_home / ".lmstudio/models/Pub/Repo/tiny.gguf"


def _snapshot(settings: Settings, sha256: str) -> Path:
    return settings.user_home / ".cache/huggingface/hub/models--Org--Repo/snapshots/main/tiny.gguf"


@pytest.mark.parametrize("place", [_hub, _ollama, _studio, _snapshot])
def test_finds_the_bytes_in_each_tool(place, settings: Settings, tmp_path: Path) -> None:
    path, sha256, size = gguf_file(tmp_path / "tiny.gguf")
    there = place(settings, sha256)
    there.parent.mkdir(parents=True)
    path.rename(there)
    assert adopt.locate(sha256, size, "tiny.gguf", settings) == there.resolve()
    assert adopt.locate(Digest("0" * 64), size, "tiny.gguf", settings) is None


@pytest.mark.parametrize("place", [_hub, _ollama, _studio])
def test_wrong_bytes_of_the_right_size_and_name_are_not_taken(place, settings: Settings, tmp_path: Path) -> None:
    path, sha256, size = gguf_file(tmp_path / "tiny.gguf")
    there = place(settings, sha256)
    there.parent.mkdir(parents=True)
    there.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert list(adopt.candidates(sha256, size, "tiny.gguf", settings)) == [there.resolve()]
    assert adopt.locate(sha256, size, "tiny.gguf", settings) is None


@pytest.mark.parametrize("name", ["../tiny.gguf", "/etc/passwd", "a//b", "", "."])
def test_a_hostile_name_finds_nothing(name: str, settings: Settings, tmp_path: Path) -> None:
    path, _, size = gguf_file(_studio(settings, ""))
    gguf_file(path.parent.parent / "tiny.gguf")
    assert list(adopt.candidates(Digest("1" * 64), size, name, settings)) == []


def test_the_same_file_is_offered_once_and_broken_links_never(settings: Settings, tmp_path: Path) -> None:
    path, sha256, size = gguf_file(tmp_path / "x")
    blob, snapshot = _hub(settings, sha256), _snapshot(settings, sha256)
    for p in (blob, snapshot):
        p.parent.mkdir(parents=True)
    path.rename(blob)
    snapshot.symlink_to(os.path.relpath(blob, snapshot.parent))
    studio = _studio(settings, sha256)
    studio.parent.mkdir(parents=True)
    studio.symlink_to(tmp_path / "nowhere")
    assert list(adopt.candidates(sha256, size, "tiny.gguf", settings)) == [blob.resolve()]


class Hasher:
    """A store that adopts nothing but says what it was offered."""

    def __init__(self) -> None:
        self.offered: list[Path] = []

    def adopt(self, path: Path, sha256: Digest | None = None) -> tuple[Digest, int, str]:
        self.offered.append(path)
        found = Digest(hashlib.sha256(path.read_bytes()).hexdigest())
        if found != sha256:
            raise Corrupt("other bytes")
        return found, path.stat().st_size, "hardlink"


def test_take_goes_on_to_the_next_candidate(settings: Settings, tmp_path: Path) -> None:
    path, sha256, size = gguf_file(tmp_path / "x")
    bad, good = _hub(settings, sha256), _ollama(settings, sha256)
    for p in (bad, good):
        p.parent.mkdir(parents=True, exist_ok=True)
    bad.write_bytes(bytes(size))
    path.rename(good)
    store = Hasher()
    assert adopt.take(store, sha256, size, "tiny.gguf", settings) == (good.resolve(), "hardlink")
    assert store.offered == [bad.resolve(), good.resolve()]
    assert adopt.take(store, Digest("2" * 64), size, "other.gguf", settings) is None


def test_share_leaves_the_owners_file_as_it_is(tmp_path: Path) -> None:
    path, _, _ = gguf_file(tmp_path / "theirs")
    path.chmod(0o640)
    how = adopt.share(path, tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o640
    if how == "hardlink":
        assert path.stat().st_ino == (tmp_path / "ours").stat().st_ino
    with pytest.raises(FileExistsError):
        adopt.share(path, tmp_path / "ours")


def test_share_across_file_systems_is_for_the_caller_to_copy(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system to write to")
    path, sha256, size = gguf_file(tmp_path / "theirs")
    target = other / f"miyabi-test-{os.getpid()}"
    try:
        with pytest.raises(OSError, match="cross-device"):
            adopt.share(path, target)
        assert not os.path.lexists(target)
        assert Store(target).adopt(path, sha256) == (sha256, size, "copy")
    finally:
        shutil.rmtree(target, ignore_errors=True)


def test_an_adopted_blob_keeps_the_owners_mode_and_changed_bytes_are_found(tmp_path: Path) -> None:
    path, sha256, size = gguf_file(tmp_path / "theirs.gguf")
    path.chmod(0o640)
    store = Store(tmp_path / "store")
    art = artifact("file:/theirs.gguf", path, sha256)
    how = store.adopt(path, sha256)[2]
    store.publish(art)
    assert all(c.ok for c in store.verify(art))
    assert path.stat().st_mode & 0o777 == 0o640
    if how == "hardlink":  # their tool changes its file, which is ours too
        with path.open("r+b") as f:
            f.seek(size - 1)
            f.write(b"\1")
        (check,) = store.verify(art)
        assert (check.ok, check.sha256) == (False, sha256)
        assert check.found != sha256
        assert path.exists()  # only our name of the bytes went to quarantine
        assert not store.has(sha256)


def test_bytes_that_are_not_the_wanted_ones_are_not_adopted(tmp_path: Path) -> None:
    path, sha256, _ = gguf_file(tmp_path / "theirs.gguf")
    store = Store(tmp_path / "store")
    with pytest.raises(Corrupt):
        store.adopt(path, Digest("3" * 64))
    assert not store.has(sha256)
    assert list((tmp_path / "store/parts").iterdir()) == []


def test_the_hub_client_reads_what_link_wrote(settings: Settings, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download, scan_cache_dir, try_to_load_from_cache

    path, sha256, size = gguf_file(tmp_path / "store/blob")
    art = artifact("hf:Org/Repo-GGUF:Q4_K_M", path, sha256, source=f"hf:Org/Repo-GGUF@{COMMIT}", name="q4/tiny.gguf")
    done = link.link("hf", art, {"q4/tiny.gguf": path}, settings)
    cache = adopt.folders(settings).hf
    got = hf_hub_download("Org/Repo-GGUF", "q4/tiny.gguf", cache_dir=cache, local_files_only=True)
    assert Path(got).samefile(path)
    pinned = hf_hub_download("Org/Repo-GGUF", "q4/tiny.gguf", revision=COMMIT, cache_dir=cache, local_files_only=True)
    assert pinned == got == try_to_load_from_cache("Org/Repo-GGUF", "q4/tiny.gguf", cache_dir=cache)
    assert done.name == f"Org/Repo-GGUF@{COMMIT}"
    assert done.notes == ()
    (repo,) = scan_cache_dir(cache).repos
    assert (repo.repo_id, repo.size_on_disk, repo.nb_files) == ("Org/Repo-GGUF", size, 1)
    assert set(link.link("hf", art, {"q4/tiny.gguf": path}, settings).files.values()) == {"present"}


def test_the_hubs_own_main_is_not_moved(settings: Settings, tmp_path: Path) -> None:
    path, sha256, _ = gguf_file(tmp_path / "store/blob")
    main = adopt.folders(settings).hf / "models--Org--Repo/refs/main"
    main.parent.mkdir(parents=True)
    main.write_text("1" * 40)
    art = artifact("hf:Org/Repo", path, sha256, source=f"hf:Org/Repo@{COMMIT}")
    done = link.link("hf", art, {"blob": path}, settings)
    assert main.read_text() == "1" * 40
    assert COMMIT in done.notes[0]


def test_a_model_without_a_repository_needs_a_name_for_the_hub(settings: Settings, tmp_path: Path) -> None:
    path, sha256, _ = gguf_file(tmp_path / "store/blob")
    art = artifact("file:/x/tiny.gguf", path, sha256, name="tiny.gguf")
    with pytest.raises(BadUsage, match="no hub repository"):
        link.link("hf", art, {"tiny.gguf": path}, settings)
    done = link.link("hf", art, {"tiny.gguf": path}, settings, name="Me/Mine")
    from huggingface_hub import try_to_load_from_cache

    assert done.name.startswith("Me/Mine@")
    assert try_to_load_from_cache("Me/Mine", "tiny.gguf", cache_dir=adopt.folders(settings).hf)


def test_ollamas_store_is_whole(settings: Settings, tmp_path: Path) -> None:
    import json

    path, sha256, size = gguf_file(tmp_path / "store/blob")
    art = artifact("hf:Org/Repo-GGUF:Q4_K_M", path, sha256, name="tiny.gguf")
    done = link.link("ollama", art, {"tiny.gguf": path}, settings)
    root = settings.user_home / ".ollama/models"
    assert done.name == "miyabi/repo-gguf:q4_k_m"
    manifest = json.loads((root / "manifests/registry.ollama.ai/miyabi/repo-gguf/q4_k_m").read_text())
    assert manifest["layers"] == [
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{sha256}", "size": size}
    ]
    for layer in [manifest["config"], *manifest["layers"]]:
        blob = root / "blobs" / layer["digest"].replace(":", "-")
        data = blob.read_bytes()
        assert hashlib.sha256(data).hexdigest() == layer["digest"].removeprefix("sha256:")
        assert len(data) == layer["size"]
    config_ = json.loads((root / "blobs" / manifest["config"]["digest"].replace(":", "-")).read_text())
    assert (config_["model_format"], config_["model_family"], config_["file_type"]) == ("gguf", "qwen2", "F16")
    assert (root / f"blobs/sha256-{sha256}").samefile(path)
    # what was linked is found again
    assert adopt.locate(sha256, size, "any", settings) == (root / f"blobs/sha256-{sha256}").resolve()
    assert set(link.link("ollama", art, {"tiny.gguf": path}, settings).files.values()) == {"present"}


def test_another_model_under_the_name_stays(settings: Settings, tmp_path: Path) -> None:
    path, sha256, _ = gguf_file(tmp_path / "store/blob")
    art = artifact("qwen2.5-coder:1.5b", path, sha256, name="tiny.gguf")
    theirs = settings.user_home / ".ollama/models/manifests/registry.ollama.ai/library/qwen2.5-coder/1.5b"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("{}")
    # our short names are not those of Ollama's library, unless the user says so
    assert link.link("ollama", art, {"tiny.gguf": path}, settings).name == "miyabi/qwen2.5-coder:1.5b"
    pulled = artifact("ollama:qwen2.5-coder:1.5b", path, sha256, name="model.gguf")
    for model, name in ((art, "qwen2.5-coder:1.5b"), (pulled, None)):
        with pytest.raises(Unsafe, match="names another model"):
            link.link("ollama", model, {model.files[0].name: path}, settings, name=name)
    assert theirs.read_text() == "{}"
    assert link.link("ollama", pulled, {"model.gguf": path}, settings, name="me/mine:x").name == "me/mine:x"


def test_two_tags_do_not_share_a_folder(settings: Settings, tmp_path: Path) -> None:
    names = set()
    for text in ("ollama:gemma3:270m", "ollama:gemma3:1b"):
        path, sha256, _ = gguf_file(tmp_path / f"store/{len(names)}", text)
        art = artifact(text, path, sha256, name="model.gguf")
        names.add(link.link("lm-studio", art, {"model.gguf": path}, settings).name)
    assert names == {"miyabi-llm/gemma3-270m", "miyabi-llm/gemma3-1b"}


def test_other_bytes_in_the_way_stay(settings: Settings, tmp_path: Path) -> None:
    path, sha256, size = gguf_file(tmp_path / "store/blob")
    art = artifact("hf:Pub/Repo", path, sha256, name="tiny.gguf")
    theirs = _studio(settings, sha256)
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(bytes(size))
    with pytest.raises(Unsafe, match="holds other bytes"):
        link.link("lm-studio", art, {"tiny.gguf": path}, settings)
    assert theirs.read_bytes() == bytes(size)
    theirs.unlink()
    theirs.symlink_to(tmp_path / "gone")  # a link to nothing is no file
    done = link.link("lm-studio", art, {"tiny.gguf": path}, settings)
    assert done.files == {theirs: "hardlink"}
    assert theirs.samefile(path)


@pytest.mark.parametrize("name", ["../x", "a/../b", "a/b/c/d", "a b", "A/B@../../x"])
def test_a_name_that_leaves_its_place_is_refused(name: str, settings: Settings, tmp_path: Path) -> None:
    path, sha256, _ = gguf_file(tmp_path / "store/blob")
    art = artifact("hf:Pub/Repo", path, sha256, name="tiny.gguf")
    for tool in link.TOOLS:
        with pytest.raises(BadUsage):
            link.link(tool, art, {"tiny.gguf": path}, settings, name=name)


def test_split_models_and_other_formats_are_not_for_ollama(settings: Settings, tmp_path: Path) -> None:
    path, sha256, _ = gguf_file(tmp_path / "store/blob")
    art = artifact("hf:Pub/Repo", path, sha256, name="model.safetensors")
    with pytest.raises(BadUsage, match="no GGUF"):
        link.link("ollama", art, {"model.safetensors": path}, settings)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_of_another_user_is_named(settings: Settings, tmp_path: Path) -> None:
    path, sha256, _ = gguf_file(tmp_path / "store/blob")
    root = settings.user_home / ".ollama/models"
    root.mkdir(parents=True)
    root.chmod(0o500)
    with pytest.raises(AccessDenied, match="denied"):
        link.link("ollama", artifact("hf:Pub/R", path, sha256, name="a.gguf"), {"a.gguf": path}, settings)


def test_the_card_says_whose_bytes_were_adopted(settings: Settings, tmp_path: Path) -> None:
    from miyabi_llm.pull import pull
    from miyabi_llm.refs import ModelRef

    path, sha256, _ = gguf_file(_ollama(settings, gguf_file(tmp_path / "x")[1]))
    loose, _, _ = gguf_file(tmp_path / "loose.gguf", "loose")
    store = Store(settings.store)
    art = pull(ModelRef.parse(str(loose)), store, settings)
    assert [(a["file"], a["from"]) for a in art.card["adopted"]] == [("loose.gguf", str(loose))]
    how = adopt.take(store, sha256, path.stat().st_size, "tiny.gguf", settings)
    assert how == (path.resolve(), art.card["adopted"][0]["how"])
