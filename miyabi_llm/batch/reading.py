"""The input file, read twice in a stream: once to check every line, once to send it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from miyabi_llm.batch.rows import parse
from miyabi_llm.batch.values import Problem, Row, Shape
from miyabi_llm.errors import BadUsage, MiyabiError
from miyabi_llm.types import counted, plain

LINE_LIMIT = 64 << 20  # bytes; a request with pictures in it has a few megabytes
KEPT = 10_000  # problems that are told one by one; more are only counted
SHOWN = 20  # of them in the message; all are in its details


@dataclass(frozen=True, slots=True)
class Input:
    """A checked input file: its hash, how many requests it holds, and what is wrong with the other lines.

    `ids` maps the digest of each custom_id to its line: about 150 bytes of memory a row, whatever the rows hold.
    """

    path: Path
    shape: Shape
    sha256: str
    ids: dict[bytes, int]
    problems: tuple[Problem, ...]
    bad: int

    @property
    def count(self) -> int:
        """How many requests it holds."""
        return len(self.ids)

    @property
    def asked(self) -> str:
        """A hash of all that makes requests of its lines."""
        return hashlib.sha256(json.dumps(plain(self.shape), sort_keys=True).encode()).hexdigest()


def digest(custom_id: str) -> bytes:
    """Sixteen bytes for a name of any length."""
    return hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def check(path: Path, shape: Shape) -> Input:
    """Read `path` once and judge every line. Raises BadUsage when it cannot be read or holds no line at all."""
    ids: dict[bytes, int] = {}
    problems: list[Problem] = []
    hasher, bad = hashlib.sha256(), 0
    for row in _requests(path, shape, hasher):
        if isinstance(row, Row):
            first = ids.setdefault(digest(row.custom_id), row.line)
            if first == row.line:
                continue
            row = Problem(row.line, f"custom_id {row.custom_id[:80]!r} is already on line {first}")
        bad += 1
        problems += [row] if len(problems) < KEPT else []
    if not ids and not bad:
        raise BadUsage(f"{path} holds no request", hint="One JSON object a line; see the guide to `batch`.")
    return Input(path, shape, hasher.hexdigest(), ids, tuple(problems), bad)


def refuse_bad(found: Input) -> None:
    """Raise BadUsage that names the bad lines, if there are any."""
    if not found.bad:
        return
    lines = [f"{found.path}: {counted(found.bad, 'bad line')} of {found.bad + found.count:,}; nothing was sent"]
    lines += [f"  {p}" for p in found.problems[:SHOWN]]
    if found.bad > SHOWN:
        lines.append(f"  and {found.bad - SHOWN:,} more: --json names them")
    hint = "Mend these lines, or send the others with --skip-bad."
    raise BadUsage("\n".join(lines), hint=hint, problems=[plain(p) for p in found.problems], bad=found.bad)


def rows(found: Input) -> Generator[Row, None, None]:
    """The requests of a checked file, in order, read again. Raises MiyabiError when the file is not the same any more.

    The rows before the first changed byte were right; what was asked after it is known only at the end.
    """
    hasher = hashlib.sha256()
    for row in _requests(found.path, found.shape, hasher):
        if isinstance(row, Row) and found.ids.get(digest(row.custom_id)) == row.line:
            yield row
    if hasher.hexdigest() != found.sha256:
        raise MiyabiError(
            f"{found.path} was changed while it was read",
            hint="Put the old file back and run the command again, or begin anew with --restart.",
        )


def _requests(path: Path, shape: Shape, hasher: hashlib._Hash) -> Iterator[Row | Problem]:
    """What stands on each line that is not blank; `hasher` sees every byte."""
    with _opened(path) as file:
        number = 0
        while line := file.readline(LINE_LIMIT + 1):
            number += 1
            hasher.update(line)
            if len(line) <= LINE_LIMIT:
                found = parse(line, number, shape)
            else:
                found = Problem(number, f"longer than {LINE_LIMIT >> 20} MiB")
                while not line.endswith(b"\n") and (line := file.readline(1 << 20)):
                    hasher.update(line)
            if found is not None:
                yield found


def _opened(path: Path) -> BinaryIO:
    try:
        if path.exists() and not path.is_file():
            raise BadUsage(f"{path} is not a file: it is read twice", hint="Write a pipe to a file first.")
        return path.open("rb")
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror}") from e
