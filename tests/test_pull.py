"""From a name to a verified model: sources in order, wrong bytes never, and one clear line for every mistake."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from miyabi_llm import cli, config
from miyabi_llm.config import Settings
from miyabi_llm.errors import AccessDenied, BadUsage, Corrupt, DiskFull, ModelMissing, NetworkError, Unsafe
from miyabi_llm.pull import Options, pull, resolve
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.sources.base import Part, Source
from miyabi_llm.store import Fs, Store
from miyabi_llm.types import Event, Listing, OnEvent, RemoteFile
from tests import ggufs
from tests.faultd import Faultd
from tests.registries import Hub

MODEL = ggufs.tiny()
HEX = hashlib.sha256(MODEL).hexdigest()
OTHER = ggufs.tiny(tokens=41)


def sha(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())


@dataclass
class Shelf:
    """A far side with files by name. `says` overrides the hash it publishes; `sends` what really comes, try by try."""

    files: dict[str, bytes] = field(default_factory=lambda: {"m.gguf": MODEL})
    hashes: bool = True
    sends: list[bytes | BaseException] = field(default_factory=list)
    fails: Exception | None = None
    listed: int = 0
    fetched: list[str] = field(default_factory=list)
    scheme: str = "hf"

    def list(self, ref: ModelRef) -> Listing:
        self.listed += 1
        if self.fails:
            raise self.fails
        files = tuple(
            RemoteFile(n, len(d), sha(d) if self.hashes else None, urls=(f"https://example.org/{n}",))
            for n, d in self.files.items()
        )
        return Listing(ref, ref.pinned("c0ffee"), "gguf", files, "mit", notes=("a note",), card={"downloads": 3})

    def fetch(self, file: RemoteFile, part: Part, on_event: OnEvent) -> None:
        self.fetched.append(file.name)
        data = self.sends.pop(0) if self.sends else self.files[file.name]
        if isinstance(data, BaseException):
            half = self.files[file.name][: len(self.files[file.name]) // 2]
            part.write(0, half)
            raise data
        part.reset(None, len(data))
        part.write(0, data)


@dataclass
class World:
    """A store, settings and shelves, one for each source in the order they are opened."""

    settings: Settings
    store: Store
    shelves: Sequence[Shelf]
    events: list[Event] = field(default_factory=list)
    opened: int = 0

    def open(self, scheme: str, settings: Settings) -> Source:
        self.opened += 1
        return self.shelves[(self.opened - 1) % len(self.shelves)]

    def pull(self, name: str = "hf:a/b", **options: object):
        chosen = replace(Options(open_source=self.open), **options)  # type: ignore[arg-type]
        return pull(ModelRef.parse(name), self.store, self.settings, self.events.append, options=chosen)

    def said(self, kind: str) -> str:
        return "\n".join(e.message for e in self.events if e.kind == kind)


def world(tmp_path: Path, *shelves: Shelf, catalog: str = "", fs: Fs | None = None) -> World:
    (tmp_path / "config").mkdir(exist_ok=True)
    (tmp_path / "config/catalog.toml").write_text(catalog, encoding="utf-8")
    names = {"HOME": tmp_path, "MIYABI_HOME": tmp_path / "data", "MIYABI_CONFIG": tmp_path / "config"}
    settings = config.load({k: str(v) for k, v in names.items()})
    return World(settings, Store(settings.store, fs), shelves or (Shelf(),))


TWO = """
[models."two:a"]
{}
sources = ["hf:a/one", "hf:a/two"]
"""
PINNED = TWO.format(f'file = "short.gguf"\nsha256 = "{HEX}"\nsize = {len(MODEL)}\nnote = "two sources"')


def test_a_model_comes_with_its_card(tmp_path: Path) -> None:
    w = world(tmp_path)
    artifact = w.pull()
    assert w.store.find(ModelRef.parse("hf:a/b")) == artifact
    assert artifact.trust == "verified"
    assert artifact.license == "mit"
    assert [(f.name, f.sha256, f.size) for f in artifact.files] == [("m.gguf", HEX, len(MODEL))]
    assert artifact.card["resolved"] == "hf:a/b@c0ffee"
    assert artifact.card["tool"]["name"] == "miyabi-llm"
    assert artifact.card["downloads"] == 3
    assert artifact.card["notes"] == ["a note"]
    assert w.store.blob(HEX).read_bytes() == MODEL


def test_a_model_that_is_here_is_not_asked_for(tmp_path: Path) -> None:
    w = world(tmp_path)
    first = w.pull()
    assert w.pull() == first
    assert (w.opened, w.shelves[0].listed) == (1, 1)
    assert w.pull(refresh=True).files == first.files
    assert w.shelves[0].listed == 2
    assert w.shelves[0].fetched == ["m.gguf"]


def test_bytes_under_another_name_are_not_fetched_again(tmp_path: Path) -> None:
    w = world(tmp_path, catalog=PINNED)
    w.pull()
    again = w.pull("two")
    assert str(again.ref) == "two:a"
    assert again.files[0].name == "short.gguf"
    assert w.shelves[0].fetched == ["m.gguf"]


def test_bytes_of_another_tool_are_shared(tmp_path: Path) -> None:
    w = world(tmp_path)
    blob = tmp_path / f".ollama/models/blobs/sha256-{HEX}"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(MODEL)
    assert w.pull().files[0].sha256 == HEX
    assert w.shelves[0].fetched == []
    assert "verified" in w.said("log")


def test_the_next_source_is_tried_and_the_reason_said(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf(fails=NetworkError("the hub is away")), Shelf(), catalog=PINNED)
    artifact = w.pull("two")
    assert artifact.source == "hf:a/two"
    assert artifact.card["notes"] == ["two sources", "a note"]
    assert [(e.name, e.message) for e in w.events if e.kind == "warning"] == [
        ("two:a", "hf:a/one: the hub is away; trying the next source")
    ]


def test_when_all_sources_fail_every_reason_is_named(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf(fails=NetworkError("away")), Shelf(fails=ModelMissing("no such file")), catalog=PINNED)
    with pytest.raises(NetworkError, match=r"no source of two:a .* hf:a/one: away; hf:a/two: no such file"):
        w.pull("two")
    w = world(tmp_path, Shelf(fails=AccessDenied("accept the licence", hint="Log in.")))
    with pytest.raises(AccessDenied, match=r"^accept the licence$") as caught:
        w.pull()
    assert caught.value.hint == "Log in."


def test_wrong_bytes_are_fetched_again_in_the_same_command(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf(sends=[OTHER]))
    assert w.pull().files[0].sha256 == HEX
    assert w.shelves[0].fetched == ["m.gguf", "m.gguf"]
    assert "fetching it again" in w.said("warning")


def test_wrong_bytes_twice_lead_to_the_next_source(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf(sends=[OTHER, MODEL[:-1] + b"x"]), Shelf(), catalog=PINNED)
    assert w.pull("two").source == "hf:a/two"
    (tmp_path / "b").mkdir()
    w = world(tmp_path / "b", Shelf(sends=[OTHER] * 2))
    with pytest.raises(Corrupt):
        w.pull()
    assert w.store.list() == []
    assert list((w.store.root / "blobs").iterdir()) == []


def test_each_source_is_named_once_with_its_reason(tmp_path: Path) -> None:
    said = "hf:a/one: https://hub.example does not answer (2 times)"
    w = world(tmp_path, Shelf(fails=NetworkError(said)), Shelf(fails=AccessDenied("a/two is gated")), catalog=PINNED)
    with pytest.raises(AccessDenied) as caught:
        w.pull("two")
    assert caught.value.message == f"no source of two:a could give it: {said}; a/two is gated"
    assert w.said("warning") == f"{said}; trying the next source"


class Never(Shelf):
    """A far side that must not be asked."""

    def list(self, ref: ModelRef) -> Listing:
        raise AssertionError("asked")


def hub_cache(tmp_path: Path, data: bytes) -> Path:
    blob = tmp_path / f".cache/huggingface/hub/models--a--b/blobs/{sha(data)}"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(data)
    return blob


def test_pinned_bytes_of_another_tool_need_no_source(tmp_path: Path) -> None:
    blob = hub_cache(tmp_path, MODEL)
    w = world(tmp_path, Never(), catalog=PINNED)
    w.settings = replace(w.settings, offline=True)
    artifact = w.pull("two")
    assert w.opened == 0
    assert (str(artifact.ref), artifact.trust, artifact.source) == ("two:a", "verified", "this machine")
    assert (artifact.files[0].name, artifact.format) == ("short.gguf", "gguf")
    assert artifact.card["adopted"][0]["from"] == str(blob)
    assert artifact.card["notes"] == ["two sources"]
    assert str(blob) in w.said("done")
    assert w.store.find(ModelRef.parse("two:a")) == artifact


@pytest.mark.parametrize(
    ("name", "pin", "file"),
    [
        (f"https://example.org/d/a%20b.gguf?x=1#sha256={HEX}", None, "a b.gguf"),
        ("hf:a/b/dir/m.gguf", HEX, "dir/m.gguf"),
        ("hf:a/Some-GGUF:Q8_0", HEX, "Some-Q8_0.gguf"),
    ],
)
def test_a_pin_of_the_users_is_looked_for_here_too(tmp_path: Path, name: str, pin: Digest | None, file: str) -> None:
    hub_cache(tmp_path, MODEL)
    w = world(tmp_path, Never())
    assert [f.name for f in w.pull(name, sha256=pin).files] == [file]


def test_pinned_bytes_in_the_store_need_no_source(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf(), Never(), catalog=PINNED)
    w.pull()
    w.settings = replace(w.settings, offline=True)
    assert w.pull("two").files[0].name == "short.gguf"
    # what a pull left that was killed just before its manifest
    w.store.layout.manifest(ModelRef.parse("two:a")).unlink()
    w.store.layout.manifest(ModelRef.parse("hf:a/b")).unlink()
    assert w.pull("two").trust == "verified"
    assert w.pull("pypi:some-model==1.0", sha256=sha(MODEL)).files[0].name == "short.gguf"  # as it is called here
    assert w.opened == 1


def test_wrong_bytes_under_the_pinned_name_are_not_taken(tmp_path: Path) -> None:
    hub_cache(tmp_path, MODEL).write_bytes(OTHER)
    w = world(tmp_path, catalog=PINNED)
    assert w.pull("two").source == "hf:a/one"
    w.pull("two", refresh=True)
    assert w.shelves[0].listed == 2


@pytest.mark.parametrize("name", ["hf:a/b/m-00001-of-00002.gguf", "hf:a/b", "ollama:a:b", "https://example.org/m.bin"])
def test_a_pin_without_a_known_file_name_asks_its_source(tmp_path: Path, name: str) -> None:
    hub_cache(tmp_path, MODEL)
    w = world(tmp_path)
    w.pull(name, sha256=sha(MODEL))
    assert w.shelves[0].listed == 1


def test_a_source_with_other_bytes_than_the_catalog_is_not_even_asked_for_them(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf({"m.gguf": OTHER}), Shelf(), catalog=PINNED)
    assert w.pull("two").source == "hf:a/two"
    assert w.shelves[0].fetched == []
    assert "is expected" in w.said("warning")


def test_a_file_without_a_hash_is_trusted_on_first_use(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf(hashes=False))
    assert w.pull().trust == "first-use"
    assert "trusted on first use" in w.said("warning")


def test_a_pin_makes_it_verified_or_refuses_it(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf(hashes=False))
    with pytest.raises(Corrupt):
        w.pull(sha256=sha(OTHER))
    assert w.pull(sha256=sha(MODEL)).trust == "verified"
    with pytest.raises(BadUsage, match="2 files"):
        world(tmp_path, Shelf({"a.gguf": MODEL, "b.gguf": OTHER})).pull("hf:c/d", sha256=sha(MODEL))
    with pytest.raises(BadUsage, match="pinned to"):
        world(tmp_path, catalog=PINNED).pull("two", sha256=sha(OTHER))


def test_another_pin_is_not_the_model_that_is_here(tmp_path: Path) -> None:
    shelf = Shelf()
    w = world(tmp_path, shelf)
    w.pull()
    shelf.files = {"m.gguf": OTHER}
    assert w.pull(sha256=sha(OTHER)).files[0].sha256 == sha(OTHER)


@pytest.mark.parametrize(
    "name", ["../m.gguf", "/m.gguf", ".hidden.gguf", "a/.b/m.gguf", "a\\m.gguf", "m.bin", "run.py"]
)
def test_names_that_must_not_come_in(tmp_path: Path, name: str) -> None:
    w = world(tmp_path, Shelf({name: MODEL}))
    with pytest.raises(Unsafe, match="refused"):
        w.pull()
    assert w.shelves[0].fetched == []


@pytest.mark.parametrize("data", [b"<html>no model</html>", MODEL[:100], b"GGUF" + b"\xff" * 200])
def test_a_hostile_header_is_not_published(tmp_path: Path, data: bytes) -> None:
    w = world(tmp_path, Shelf({"m.gguf": data}))
    with pytest.raises(Corrupt, match=r"m\.gguf: GGUF header"):
        w.pull()
    assert w.store.list() == []
    assert not w.store.has(sha(data))  # nor kept


def test_bytes_with_a_hostile_header_stay_when_a_model_needs_them(tmp_path: Path) -> None:
    data = b"GGUF" + b"\xff" * 200
    w = world(tmp_path, Shelf({"m.gguf": MODEL, "notes.txt": data}), Shelf({"m.gguf": data}))
    w.pull("hf:a/text")
    with pytest.raises(Corrupt):
        w.pull("hf:a/model")
    assert w.store.has(sha(data))


def test_a_pinned_hostile_header_is_refused_whoever_has_it(tmp_path: Path) -> None:
    data = b"GGUF" + b"\xff" * 200
    hub_cache(tmp_path, data)
    w = world(tmp_path, Never())
    with pytest.raises(Corrupt, match="GGUF header"):
        w.pull("hf:a/b/m.gguf", sha256=sha(data))
    assert not w.store.has(sha(data))


def test_many_files_come_and_the_same_bytes_once(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf({"a.gguf": MODEL, "b.gguf": OTHER, "c.gguf": MODEL}))
    assert [f.name for f in w.pull().files] == ["a.gguf", "b.gguf", "c.gguf"]
    assert w.shelves[0].fetched == ["a.gguf", "b.gguf"]


class SmallDisk(Fs):
    """A disk with a little room."""

    room = 300 * 2**20

    def free(self, path: Path) -> int:
        return self.room


def test_a_full_disk_is_said_before_the_first_byte(tmp_path: Path) -> None:
    class Huge(Shelf):
        def list(self, ref: ModelRef) -> Listing:
            found = super().list(ref)
            return replace(found, files=(replace(found.files[0], size=10 * 2**30),))

    w = world(tmp_path, Huge(), fs=SmallDisk())
    with pytest.raises(DiskFull, match=r"hf:a/b needs 10240 MiB and 512 MiB to spare .*; 300 MiB are free") as caught:
        w.pull()
    assert caught.value.exit_code == 4
    assert "miyabi-llm prune" in str(caught.value.hint)
    assert w.shelves[0].fetched == []


def test_what_does_not_fit_the_machine_is_warned_of(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.pull(fits=lambda listing: f"{listing.size} bytes are too many")
    assert f"{len(MODEL)} bytes are too many" in w.said("warning")


def test_an_interruption_keeps_what_came_and_says_so(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf(sends=[KeyboardInterrupt()]))
    with pytest.raises(KeyboardInterrupt):
        w.pull()
    assert "what has arrived is kept, `miyabi-llm pull hf:a/b` continues" in w.said("warning")
    with w.store.part(HEX, len(MODEL)) as part:
        assert part.done == [(0, len(MODEL) // 2)]
    assert w.pull().trust == "verified"


def test_a_local_model_is_adopted(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(MODEL)
    w = world(tmp_path)
    artifact = pull(ModelRef.parse(str(tmp_path / "m.gguf")), w.store, w.settings)
    assert artifact.trust == "local"
    assert artifact.files[0].sha256 == HEX


def test_a_catalog_name_resolves_without_a_network(tmp_path: Path) -> None:
    w = world(tmp_path, Shelf(fails=NetworkError("away")), catalog=PINNED)
    found = resolve(ModelRef.parse("two"), w.settings, store=w.store, open_source=w.open)
    assert (str(found.canonical), found.layer, found.trust, found.here) == ("two:a", "user", "verified", False)
    assert [(c.source, c.asked) for c in found.candidates] == [("hf:a/one", False), ("hf:a/two", False)]
    assert w.opened == 0
    far = resolve(ModelRef.parse("two"), w.settings, remote=True, open_source=w.open)
    assert [c.problem for c in far.candidates] == ["away", "away"]
    with pytest.raises(NetworkError, match="away"):
        resolve(ModelRef.parse("hf:a/b"), w.settings, open_source=w.open)


def test_a_longer_name_resolves_at_its_source(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.pull()
    found = resolve(ModelRef.parse("hf:a/b"), w.settings, store=w.store, open_source=w.open)
    assert (found.here, found.layer, found.size, found.license) == (True, None, len(MODEL), "mit")


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
