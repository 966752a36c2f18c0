"""Local models: listed in place, copied when they must be, refused when they could run code."""

from pathlib import Path

import pytest

from miyabi_llm import config
from miyabi_llm.errors import Corrupt, ModelMissing, Unsafe
from miyabi_llm.refs import ModelRef
from miyabi_llm.sources.base import Source
from miyabi_llm.sources.file import FileSource
from miyabi_llm.store import Store
from miyabi_llm.types import Event, Listing
from tests import ggufs

SAFE = b"\x02\0\0\0\0\0\0\0{}"


def listing(tmp_path: Path, name: str) -> Listing:
    return FileSource(config.load({"HOME": str(tmp_path)})).list(ModelRef("file", name))


def folder(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SAFE if name.endswith(".safetensors") else ggufs.tiny() if name.endswith(".gguf") else b"{}")
    return root


def test_one_gguf(tmp_path: Path) -> None:
    folder(tmp_path, "m.gguf")
    for name in (str(tmp_path / "m.gguf"), "~/m.gguf"):
        found = listing(tmp_path, name)
        assert [(f.name, f.size, f.path) for f in found.files] == [
            ("m.gguf", len(ggufs.tiny()), (tmp_path / "m.gguf").resolve())
        ]
        assert found.format == "gguf"
        assert str(found.resolved) == f"file:{(tmp_path / 'm.gguf').resolve()}"


def test_all_parts_of_a_split_model(tmp_path: Path) -> None:
    names = [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    folder(tmp_path, *names)
    assert [f.name for f in listing(tmp_path, str(tmp_path / names[1])).files] == names
    (tmp_path / names[2]).unlink()
    with pytest.raises(ModelMissing, match="1 of 3 parts are missing, the first is m-00003"):
        listing(tmp_path, str(tmp_path / names[0]))


def test_a_folder_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    folder(tmp_path / "m", "config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", ".git/x.json")
    folder(tmp_path / "m", "pytorch_model.bin", "modeling.py", "README.md")
    found = listing(tmp_path, str(tmp_path / "m"))
    assert found.format == "safetensors"
    assert [f.name for f in found.files] == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert found.notes == ("left out, because they can run code: modeling.py, pytorch_model.bin",)


def test_an_adapter_and_a_folder_with_one_gguf(tmp_path: Path) -> None:
    folder(tmp_path / "a", "adapter_config.json", "adapter_model.safetensors")
    assert listing(tmp_path, str(tmp_path / "a")).format == "adapter"
    folder(tmp_path / "g", "m.gguf", "mmproj-m.gguf")
    assert [f.name for f in listing(tmp_path, str(tmp_path / "g")).files] == ["m.gguf"]
    folder(tmp_path / "g", "other.gguf")
    with pytest.raises(ModelMissing, match="2 models in one folder"):
        listing(tmp_path, str(tmp_path / "g"))


@pytest.mark.parametrize("name", ["m.bin", "m.pt", "m.PTH", "m.ckpt", "m.pkl"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    folder(tmp_path / "m", "config.json", name)
    for path in (tmp_path / "m", tmp_path / "m" / name):
        with pytest.raises(Unsafe, match="can run code"):
            listing(tmp_path, str(path))


def test_what_is_no_model_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "web.gguf").write_bytes(b"<!DOCTYPE html>")
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    folder(tmp_path / "bare", "model.safetensors")
    with pytest.raises(Corrupt, match="does not begin as a GGUF"):
        listing(tmp_path, str(tmp_path / "web.gguf"))
    with pytest.raises(Corrupt, match="does not begin as one"):
        listing(tmp_path, str(tmp_path / "x.safetensors"))
    with pytest.raises(Corrupt, match="neither"):
        listing(tmp_path, str(tmp_path / "notes.txt"))
    with pytest.raises(ModelMissing, match=r"no such file"):
        listing(tmp_path, str(tmp_path / "gone.gguf"))
    with pytest.raises(ModelMissing, match=r"without a \.gguf"):
        listing(tmp_path, str(tmp_path / "empty"))
    with pytest.raises(ModelMissing, match=r"no config\.json"):
        listing(tmp_path, str(tmp_path / "bare"))


def test_a_file_is_copied_into_a_part(tmp_path: Path) -> None:
    folder(tmp_path, "m.gguf")
    source: Source = FileSource(config.load({"HOME": str(tmp_path)}))
    file = source.list(ModelRef("file", str(tmp_path / "m.gguf"))).files[0]
    events: list[Event] = []
    store = Store(tmp_path / "store")
    with store.part("0" * 64, file.size) as part:
        source.fetch(file, part, events.append)
        blob = part.commit(None, file.size)
    assert store.blob(blob.sha256).read_bytes() == ggufs.tiny()
    assert events[-1].done == file.size
