"""Find bytes that other tools already keep on this machine, and share them without a second copy."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from miyabi_llm.config import Settings
from miyabi_llm.errors import Corrupt, Missing
from miyabi_llm.refs import Digest, is_safe_name

How = Literal["reflink", "hardlink"]

CHUNK = 1 << 20  # bytes read at a time
FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
# What a file system answers when it cannot share blocks, or not with this file: try the next way.
_CANNOT = {
    errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS,
    errno.EISDIR, errno.ETXTBSY, errno.ENOTSUP,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Folders:
    """Where the other tools keep their models. A folder may be absent; the first of each is where `link` writes."""

    hf: Path
    ollama: tuple[Path, ...]
    lm_studio: tuple[Path, ...]


class Adopter(Protocol):
    """The store, as far as this file needs it."""

    def adopt(self, path: Path, sha256: Digest | None = None) -> tuple[Digest, int, str]:
        """Hash `path`, compare with `sha256`, publish its bytes; returns hash, size in bytes and how."""
        ...


def folders(settings: Settings) -> Folders:
    """The folders of the hub cache, Ollama and LM Studio, by the variables those tools honour."""
    env, home = settings.env, settings.user_home
    cache = Path(env["XDG_CACHE_HOME"]) if env.get("XDG_CACHE_HOME") else home / ".cache"
    hf_home = Path(env["HF_HOME"]) if env.get("HF_HOME") else cache / "huggingface"
    hub = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE")
    ollama: tuple[Path, ...] = (home / ".ollama/models", Path("/usr/share/ollama/.ollama/models"))
    if env.get("OLLAMA_MODELS"):
        ollama = (Path(env["OLLAMA_MODELS"]), *ollama)
    return Folders(
        hf=(Path(hub) if hub else hf_home / "hub").expanduser(),
        ollama=tuple(p.expanduser() for p in ollama),
        lm_studio=(home / ".lmstudio/models", home / ".cache/lm-studio/models"),
    )


def candidates(sha256: Digest | None, size: int | None, name: str, settings: Settings) -> Iterator[Path]:
    """Files that may hold the wanted bytes, most likely first: named by the hash, then same name and size.

    Nothing is read here and nothing is proven: every candidate must be hashed before it is used, also one
    that carries the right hash in its name, because the hub's client compares sizes only.
    """
    where = folders(settings)
    seen: set[tuple[int, int]] = set()
    for path in (*_named_by_hash(sha256, where), *(_named(name, where) if size is not None else ())):
        with contextlib.suppress(OSError):  # gone meanwhile, a broken link, or not ours to look at
            found = path.stat()
            key = (found.st_dev, found.st_ino)
            if path.is_file() and size in (None, found.st_size) and key not in seen and os.access(path, os.R_OK):
                seen.add(key)
                yield path.resolve()


def locate(sha256: Digest, size: int | None, name: str, settings: Settings) -> Path | None:
    """The first candidate whose own bytes hash to `sha256`, or None. Reads every candidate whole."""
    for path in candidates(sha256, size, name, settings):
        with contextlib.suppress(OSError):
            if hash_file(path) == sha256:
                return path
    return None


def take(store: Adopter, sha256: Digest, size: int | None, name: str, settings: Settings) -> tuple[Path, str] | None:
    """Adopt the wanted bytes from another tool's folder: where they were found and how they are shared, or None.

    Like `locate` and `store.adopt` in one, but every candidate is read once only.
    """
    for path in candidates(sha256, size, name, settings):
        with contextlib.suppress(OSError, Corrupt, Missing):
            return path, store.adopt(path, sha256)[2]
    return None


def share(source: Path, target: Path) -> How:
    """Give `source`'s bytes the new name `target` at no cost in disk: a reflink, else a hard link.

    `target` must not exist (FileExistsError); it must be a temporary name, because a reflink is made in two steps. The
    mode of a hard-linked file stays as it is: it is also the other tool's file. A hard link is made only to a file of
    our own user, who could change the bytes anyway. Raises OSError when neither is possible: the caller then copies.

    There is no symbolic link: the store takes any link among its blobs for a planted one, and bytes on another file
    system can go or change without a trace in ours.
    """
    source = source.resolve(strict=True)
    if reflink(source, target):
        return "reflink"
    if hasattr(os, "getuid") and source.stat().st_uid != os.getuid():
        raise OSError(errno.EPERM, "another user's file cannot be shared", str(source))
    os.link(source, target)
    return "hardlink"


def reflink(source: Path, target: Path) -> bool:
    """Clone `source` to the new file `target`, sharing its blocks until one of the two changes; False if impossible."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    with source.open("rb") as src:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            fcntl.ioctl(fd, FICLONE, src.fileno())
        except OSError as e:
            os.unlink(target)
            if e.errno in _CANNOT:
                return False
            raise
        else:
            return True
        finally:
            os.close(fd)


def hash_file(path: Path) -> Digest:
    """The sha256 of a file's bytes. Raises OSError."""
    sha = hashlib.sha256()
    with path.open("rb", buffering=0) as f:
        while chunk := f.read(CHUNK):
            sha.update(chunk)
    return Digest(sha.hexdigest())


def _named_by_hash(sha256: Digest | None, where: Folders) -> Iterator[Path]:
    if sha256 is None:
        return
    with contextlib.suppress(OSError):
        yield from (repo / "blobs" / sha256 for repo in sorted(where.hf.glob("models--*")))
    yield from (root / "blobs" / f"sha256-{sha256}" for root in where.ollama)


def _named(name: str, where: Folders) -> Iterator[Path]:
    """Files called `name` in the hub's snapshots, or like its last part in LM Studio's PUBLISHER/REPO folders."""
    if not is_safe_name(name):
        return
    parts, last = Path(*name.split("/")), name.rsplit("/", 1)[-1]
    with contextlib.suppress(OSError):
        yield from (rev / parts for rev in sorted(where.hf.glob("models--*/snapshots/*")))
    for root in where.lm_studio:
        with contextlib.suppress(OSError):
            yield from (repo / last for repo in sorted(root.glob("*/*")))
