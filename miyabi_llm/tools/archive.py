"""Unpacking archives from strangers: files and folders only, inside one fresh folder, within bounds."""

from __future__ import annotations

import os
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from miyabi_llm.errors import Corrupt, Unsafe

Want = Callable[[PurePosixPath], PurePosixPath | None]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most an archive may hold: members, bytes unpacked, and bytes unpacked per byte packed."""

    members: int = 20_000
    size: int = 4 << 30
    ratio: int = 100


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    kind: str  # file, folder, link, other
    size: int
    executable: bool
    target: str
    open: Callable[[], IO[bytes] | None]


def everything(path: PurePosixPath) -> PurePosixPath | None:
    """A `want` that takes every member under its own name."""
    return path


def unpack(archive: Path, into: Path, *, want: Want = everything, bounds: Bounds | None = None) -> int:
    """Unpack a .tar.gz or .zip into `into`, which must not exist; returns the number of files.

    `want` maps a member's path to its path below `into`, or None to leave it out. A link may only name a file beside
    itself (lib.so -> lib.so.1). Raises Unsafe for anything that leaves the folder, comes twice or is no file; Corrupt
    for what is no archive or breaks off. What was unpacked until then stays in `into` for the caller to remove.
    """
    bounds = bounds or Bounds()
    into.mkdir(mode=0o700, parents=True)
    most = min(bounds.size, max(1 << 20, archive.stat().st_size * bounds.ratio))
    seen: set[str] = set()
    links: list[tuple[Path, str]] = []
    left, files = most, 0
    try:
        for count, member in enumerate(_members(archive)):
            if count >= bounds.members:
                raise Unsafe(f"{archive.name} holds more than {bounds.members} files")
            inside = want(safe_path(member.name))
            if inside is None or member.kind == "folder":
                continue
            _claim(str(inside), seen, archive.name)
            place = into / inside
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if member.kind == "link":
                if "/" in member.target or "\\" in member.target or member.target in ("", ".", ".."):
                    raise Unsafe(f"{archive.name}: the link {member.name} leads away, to {member.target[:80]!r}")
                links.append((place, member.target))
            elif member.kind == "file":
                left -= _write(member, place, left, f"{archive.name} unpacks to more than {most} bytes")
                files += 1
            else:
                raise Unsafe(f"{archive.name}: {member.name} is neither a file nor a folder")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError) as e:
        if isinstance(e, OSError) and e.errno is not None:
            raise  # the disk's trouble, not the archive's
        raise Corrupt(f"{archive.name} cannot be unpacked: {e}") from e
    _link(links, archive.name)
    return files


def safe_path(name: str) -> PurePosixPath:
    """`name` as a relative path below a folder. Raises Unsafe for any other."""
    path = PurePosixPath(name)
    bad = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name or len(name) > 1024
    if bad or any(part.rstrip(". ") != part for part in path.parts):
        raise Unsafe(f"a member of the archive is called {name[:80]!r}")
    return path


def _claim(name: str, seen: set[str], archive: str) -> None:
    folded = unicodedata.normalize("NFC", name).casefold()  # some filesystems take both for one
    if folded in seen:
        raise Unsafe(f"{archive} holds {name[:80]!r} twice")
    seen.add(folded)


def _write(member: _Member, place: Path, left: int, too_much: str) -> int:
    if member.size > left:
        raise Unsafe(too_much)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    fd = os.open(place, flags, 0o755 if member.executable else 0o644)
    written = 0
    with os.fdopen(fd, "wb") as out, member.open() or _empty(member) as source:
        while block := source.read(1 << 20):
            written += len(block)
            if written > left:
                raise Unsafe(too_much)
            out.write(block)
    if written != member.size:
        raise Corrupt(f"{member.name} in the archive is {written} bytes long instead of {member.size}")
    return written


def _empty(member: _Member) -> IO[bytes]:
    raise Corrupt(f"{member.name} in the archive cannot be read")


def _link(links: list[tuple[Path, str]], archive: str) -> None:
    """Make the links after the files; a link to a link is made after its target, and one to nothing is refused."""
    while links:
        ready = [(place, target) for place, target in links if (place.parent / target).is_file()]
        if not ready:
            raise Unsafe(f"{archive}: the link {links[0][0].name} leads nowhere")
        for place, target in ready:
            os.symlink(target, place)
        links = [link for link in links if link not in ready]


def _members(archive: Path) -> Iterator[_Member]:
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive) as pack:
            for info in pack.infolist():
                yield _of_zip(pack, info)
        return
    with tarfile.open(archive, "r|gz") as tar:
        for tarred in tar:
            yield _of_tar(tar, tarred)


def _of_tar(tar: tarfile.TarFile, m: tarfile.TarInfo) -> _Member:
    kind = "file" if m.isreg() and not m.issparse() else "folder" if m.isdir() else "link" if m.issym() else "other"
    return _Member(m.name, kind, m.size, bool(m.mode & 0o100), m.linkname, lambda: tar.extractfile(m))


def _of_zip(pack: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    mode = info.external_attr >> 16
    kind = "folder" if info.is_dir() else "other" if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode) else "file"
    return _Member(info.filename, kind, info.file_size, bool(mode & 0o100), "", lambda: pack.open(info))
