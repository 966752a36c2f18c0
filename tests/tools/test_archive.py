"""The unpacker writes files below one fresh folder, within bounds, and nothing else."""

import io
import os
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from miyabi_llm.errors import Corrupt, Unsafe
from miyabi_llm.tools.archive import Bounds, unpack


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def tar(path: Path, *members: tarfile.TarInfo, data: bytes = b"data") -> Path:
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as out:
        for info in members:
            if info.isreg():
                info.size = len(data)
            out.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return path


def test_files_folders_links_and_the_right_to_run(tmp_path: Path) -> None:
    pack = tar(
        tmp_path / "a.tar.gz",
        member("./top", tarfile.DIRTYPE, mode=0o755),
        member("top/liba.so", tarfile.SYMTYPE, "liba.so.1"),
        member("top/liba.so.1", tarfile.SYMTYPE, "liba.so.1.2"),
        member("top/liba.so.1.2"),
        member("top/bin/run", mode=0o4755),
    )
    assert unpack(pack, tmp_path / "out") == 2
    assert (tmp_path / "out/top/liba.so").read_bytes() == b"data"
    assert (tmp_path / "out/top/bin/run").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "out/top/liba.so.1.2").stat().st_mode & 0o7777 == 0o644
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700


BAD = {
    "parent": (member("../evil"),),
    "hidden parent": (member("a/../../evil"),),
    "absolute": (member("/evil"),),
    "backslash": (member("a\\..\\evil"),),
    "drive": (member("C:evil"),),
    "link up": (member("lib.so", tarfile.SYMTYPE, "../evil"),),
    "link absolute": (member("lib.so", tarfile.SYMTYPE, "/etc/passwd"),),
    "link to parent folder": (member("lib.so", tarfile.SYMTYPE, ".."),),
    "link to nothing": (member("lib.so", tarfile.SYMTYPE, "none"),),
    "links in a circle": (member("a", tarfile.SYMTYPE, "b"), member("b", tarfile.SYMTYPE, "a")),
    "file through a link": (member("d", tarfile.SYMTYPE, "e"), member("d/evil"), member("e")),
    "hard link": (member("a"), member("b", tarfile.LNKTYPE, "a")),
    "device": (member("null", tarfile.CHRTYPE),),
    "pipe": (member("pipe", tarfile.FIFOTYPE),),
    "twice": (member("a"), member("a")),
    "twice by case": (member("lib/A"), member("lib/a")),
    "twice by accents": (member("caf\u00e9"), member("cafe\u0301")),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    pack = tar(tmp_path / "in" / "a.tar.gz", *BAD[kind])
    before = sorted(tmp_path.iterdir())
    with pytest.raises((Unsafe, OSError)):
        unpack(pack, tmp_path / "out")
    assert sorted(p for p in tmp_path.iterdir() if p.name != "out") == before
    assert not (tmp_path / "evil").exists()


def test_bounds(tmp_path: Path) -> None:
    bomb = tar(tmp_path / "bomb.tar.gz", member("zeros"), data=bytes(20 << 20))
    with pytest.raises(Unsafe, match="unpacks to more than"):
        unpack(bomb, tmp_path / "1", bounds=Bounds(ratio=10))
    with pytest.raises(Unsafe, match="more than 2 files"):
        unpack(tar(tmp_path / "n.tar.gz", *(member(str(i)) for i in range(4))), tmp_path / "2", bounds=Bounds(2))
    with pytest.raises(FileExistsError):
        unpack(bomb, tmp_path)


def test_what_breaks_off_is_corrupt(tmp_path: Path) -> None:
    whole = tar(tmp_path / "a.tar.gz", member("a"), data=os.urandom(100_000)).read_bytes()
    for cut in (0, 5, 1000, len(whole) // 2):
        place = tmp_path / f"cut{cut}.tar.gz"
        place.write_bytes(whole[:cut])
        with pytest.raises(Corrupt):
            unpack(place, tmp_path / f"out{cut}")


def test_zip(tmp_path: Path) -> None:
    pack = tmp_path / "a.zip"
    with zipfile.ZipFile(pack, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("build/llama-server.exe", b"MZ")
    assert unpack(pack, tmp_path / "out") == 1
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as out:
        out.writestr(link, "/etc/passwd")
    with pytest.raises(Unsafe, match="neither a file"):
        unpack(tmp_path / "b.zip", tmp_path / "out2")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as out:
        out.writestr("../evil", "x")
    with pytest.raises(Unsafe):
        unpack(tmp_path / "c.zip", tmp_path / "out3")
    (tmp_path / "d.zip").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(Corrupt):
        unpack(tmp_path / "d.zip", tmp_path / "out4")


def test_what_is_not_wanted_is_left_out(tmp_path: Path) -> None:
    def want(path: PurePosixPath) -> PurePosixPath | None:
        return PurePosixPath(*path.parts[1:]) if path.parts[0] == "keep" else None

    assert unpack(tar(tmp_path / "a.tar.gz", member("keep/x"), member("drop/y")), tmp_path / "out", want=want) == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x"]


@examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("ab./\\\u00e9\u0301C:~ ", min_size=1, max_size=8), min_size=1, max_size=4), st.data())
def test_no_name_writes_outside(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("any")
    kinds = [data.draw(st.sampled_from((tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE))) for _ in names]
    pack = tar(root / "a.tar.gz", *(member(n, k, n[::-1]) for n, k in zip(names, kinds, strict=True)))
    with suppress(Unsafe, Corrupt, OSError):
        unpack(pack, root / "in" / "out")
    assert {p.name for p in root.iterdir()} <= {"a.tar.gz", "in"}
    if (root / "in").exists():
        assert [p.name for p in (root / "in").iterdir()] == ["out"]
        for path in (root / "in" / "out").rglob("*"):
            assert path.resolve().is_relative_to((root / "in" / "out").resolve())
