"""What a pin decides needs no network; else the source is asked, and the files are compared."""

from dataclasses import dataclass, field, replace

import pytest

from miyabi_llm import config
from miyabi_llm.errors import MiyabiError, ModelMissing, NetworkError
from miyabi_llm.outdated import outdated
from miyabi_llm.refs import Digest, ModelRef
from miyabi_llm.sources.base import Part, Source
from miyabi_llm.types import Artifact, Listing, OnEvent, RemoteFile, StoredFile

A, B = Digest("a" * 64), Digest("b" * 64)
OLD, NEW = "1" * 40, "2" * 40
PINNED = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"


@dataclass
class Far:
    """A source that lists what it was given, and counts."""

    files: tuple[RemoteFile, ...] = ()
    revision: str | None = None
    error: MiyabiError | None = None
    asked: list[ModelRef] = field(default_factory=list)

    scheme = "hf"

    def list(self, ref: ModelRef) -> Listing:
        self.asked.append(ref)
        if self.error:
            raise self.error
        return Listing(ref, replace(ref, revision=self.revision), "gguf", self.files)

    def fetch(self, file: RemoteFile, part: Part, on_event: OnEvent) -> None:
        raise AssertionError("nothing is downloaded")


def model(ref: str, *files: StoredFile, resolved: str | None = None) -> Artifact:
    card = {"resolved": resolved} if resolved else {}
    return Artifact(
        ModelRef.parse(ref), "gguf", files or (StoredFile("m.gguf", A, 9),), "verified", ref, "", None, card
    )


def stand(artifact: Artifact, far: Far, **env: str) -> tuple[str, str]:
    def open_source(scheme: str, settings: config.Settings) -> Source:
        return far

    (found,) = outdated([artifact], config.load({"HOME": "/nowhere", **env}), open_source=open_source)
    return found.state, found.reason


@pytest.mark.parametrize(
    "ref",
    [
        f"hf:Org/Repo@{OLD}:Q4",
        f"https://example.org/m.gguf#sha256={A}",
        "pypi:some-model==1.0",
    ],
)
def test_what_is_pinned_is_never_asked_for(ref: str) -> None:
    far = Far()
    assert stand(model(ref), far, MIYABI_OFFLINE="1")[0] == "pinned"
    assert far.asked == []


def test_a_catalog_name_is_fixed_by_its_hash() -> None:
    assert stand(model("qwen2.5-coder:1.5b", StoredFile("x", Digest(PINNED), 1)), Far())[0] == "pinned"
    assert stand(model("qwen2.5-coder:1.5b"), Far())[0] == "outdated"
    assert stand(model("nobody-knows:it"), Far())[0] == "unknown"
    assert stand(model("file:/x.gguf"), Far())[0] == "local"


@pytest.mark.parametrize(
    ("far", "state", "word"),
    [
        (Far((RemoteFile("m.gguf", 9, A),), OLD), "current", ""),
        (Far((RemoteFile("m.gguf", 9, None),), OLD), "current", ""),
        (Far((RemoteFile("m.gguf", 9, A),), NEW), "current", "revision moved"),
        (Far((RemoteFile("m.gguf", 9, B),), NEW), "outdated", "other bytes: m.gguf"),
        (Far((RemoteFile("m.gguf", 9, A), RemoteFile("n.gguf", 9, B)), NEW), "outdated", "n.gguf"),
        (Far((RemoteFile("n.gguf", 9, A),), NEW), "outdated", "m.gguf"),
        (Far((RemoteFile("m.gguf", 10, None),), NEW), "outdated", "another size"),
        (Far((RemoteFile("m.gguf", 9, None),), NEW), "unknown", "not every file"),
        (Far(error=ModelMissing("gone")), "unknown", "gone"),
        (Far(error=NetworkError("no answer")), "unknown", "no answer"),
    ],
)
def test_the_files_decide(far: Far, state: str, word: str) -> None:
    found, reason = stand(model("hf:Org/Repo:Q4", resolved=f"hf:Org/Repo@{OLD}:Q4"), far)
    assert (found, word in reason) == (state, True), reason
    assert far.asked == [ModelRef.parse("hf:Org/Repo:Q4")]


def test_revisions_are_told() -> None:
    far = Far((RemoteFile("m.gguf", 9, B),), NEW)
    art = model("hf:Org/Repo:Q4", resolved=f"hf:Org/Repo@{OLD}:Q4")
    (found,) = outdated([art], config.load({"HOME": "/nowhere"}), open_source=lambda scheme, settings: far)
    assert (found.here, found.there, found.failed) == (OLD, NEW, False)


def test_offline_is_an_error_that_says_so() -> None:
    with pytest.raises(NetworkError, match="offline by choice"):
        stand(model("hf:Org/Repo:Q4"), Far(), MIYABI_OFFLINE="1")


def test_one_source_that_fails_does_not_hide_the_others() -> None:
    far = Far(error=NetworkError("down"))
    models = [model("hf:Org/Repo:Q4"), model("file:/x.gguf")]
    found = outdated(models, config.load({"HOME": "/nowhere"}), open_source=lambda scheme, settings: far)
    assert [(s.state, s.failed) for s in found] == [("unknown", True), ("local", False)]
