"""Files of rows: JSONL, JSON and CSV by the standard library; what else there is, is made JSONL by an engine first.

Every row ends as a Row or as a Problem with its number, so that the counts add up; no row, however it is broken, is an
exception.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from miyabi_llm.dataset import forms
from miyabi_llm.dataset.values import Problem, Read, Reading, Row
from miyabi_llm.errors import BadUsage, MachineLimit

MOST_ROW = 4 << 20  # bytes; a longer row is a mistake: it would be a million tokens
MOST_FILE = 8 << 30  # bytes of text in all
MOST_GROWTH = 200  # times a compressed file may grow before it is taken for a bomb
MOST_BAD = 10_000  # problems kept; the rest of such a file is not worth reading
OURS = (".jsonl", ".ndjson", ".json", ".csv", ".jsonl.gz", ".csv.gz")
HUB = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(:(?P<split>[\w.+-]+))?", re.ASCII)

Raw = tuple[int, Any | Problem]


def needs_engine(source: str) -> bool:
    """Whether `source` can only be read by the training environment's libraries: Parquet, folders, the hub."""
    return bool(HUB.fullmatch(source)) or source.lower().endswith((".parquet", ".arrow")) or Path(source).is_dir()


def read(path: Path, reading: Reading, *, name: str = "") -> Read:
    """The rows of `path` and what is wrong with the others; `name` is what errors call it.

    Raises BadUsage for a file that is not there or is no file of rows at all, MachineLimit for one that is too large.
    """
    shown = name or str(path)
    rows: list[Row] = []
    problems: list[Problem] = []
    form = reading.format if reading.format != "auto" else ""
    digest = hashlib.sha256()
    for number, value in _raw(path, shown, digest):
        found = value if isinstance(value, Problem) else None
        if found is None and not form:
            form = forms.detect(value) or ""
            found = None if form else Problem(number, *forms.no_form(value))
        if found is None:
            made = forms.row(value, number, form, reading)
            found = made if isinstance(made, Problem) else None
            if isinstance(made, Row):
                rows.append(made)
        if found is not None:
            problems.append(found)
            if len(problems) > MOST_BAD:
                raise BadUsage(
                    f"{shown}: more than {MOST_BAD:,} rows cannot be read; the first: {problems[0]}",
                    hint="`miyabi-llm data lint FILE` lists them.",
                )
    return Read(tuple(rows), tuple(problems), form, digest.hexdigest())


def _raw(path: Path, shown: str, digest: Any) -> Iterator[Raw]:
    low = path.name.lower()
    if not low.endswith(OURS):
        raise BadUsage(f"{shown}: no form of file we read", hint=f"Known: {', '.join(OURS)}, .parquet, hf:ORG/NAME.")
    try:
        with path.open("rb") as file:
            stream = _Counted(file, path.stat().st_size, shown, digest, packed=low.endswith(".gz"))
            stem = low.removesuffix(".gz")
            if stem.endswith(".csv"):
                yield from _csv(stream)
            elif stem.endswith(".json"):
                yield from _json(stream, shown)
            else:
                yield from _lines(stream)
    except FileNotFoundError as e:
        raise BadUsage(f"{shown}: no such file", hint="Paths of a recipe begin where the recipe lies.") from e
    except (OSError, EOFError, zlib.error) as e:
        raise BadUsage(f"{shown}: {getattr(e, 'strerror', None) or e}") from e


class _Counted:
    """Lines of a file, its bytes hashed, with a limit for a line, for the whole and for what a packed file grows to."""

    def __init__(self, file: IO[bytes], size: int, shown: str, digest: Any, *, packed: bool) -> None:
        self._file: IO[bytes] = gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[assignment]
        self._limit = min(MOST_FILE, max(size * MOST_GROWTH, 1 << 20)) if packed else MOST_FILE
        self._seen, self._shown, self._digest, self._packed = 0, shown, digest, packed

    def line(self) -> tuple[bytes, int]:
        """The next line (of one that is too long its beginning) and its length in bytes. Empty: the end."""
        line = self._take(self._file.readline(MOST_ROW + 1))
        length = len(line)
        while length > MOST_ROW and not line.endswith(b"\n"):
            more = self._take(self._file.readline(1 << 20))
            length += len(more)
            if not more or more.endswith(b"\n"):
                break
        return line, length

    def all(self, most: int) -> bytes:
        """Everything that is left, or its first `most` bytes and one more."""
        return self._take(self._file.read(most + 1))

    def _take(self, data: bytes) -> bytes:
        self._seen += len(data)
        self._digest.update(data)
        if self._seen > self._limit:
            what = "unpacks to" if self._packed else "has"
            raise MachineLimit(
                f"{self._shown} {what} more than {self._limit >> 20:,} MiB",
                hint="A packed file that grows so much is broken or hostile." if self._packed else "Split the file.",
            )
        return data


def _lines(stream: _Counted) -> Iterator[Raw]:
    number = 0
    while True:
        line, length = stream.line()
        if not line:
            return
        number += 1
        if length > MOST_ROW:
            yield number, Problem(number, f"{length:,} bytes; a row has {MOST_ROW:,} at most", "cut it into rows")
            continue
        text = _text(line, number)
        if isinstance(text, Problem):
            yield number, text
        elif text.strip():
            yield number, _parsed(text, number)


def _text(line: bytes, number: int) -> str | Problem:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as e:
        return Problem(number, f"not UTF-8 at byte {e.start + 1}", "save the file as UTF-8")


def _parsed(text: str, number: int) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        return Problem(number, "too deeply nested")
    except json.JSONDecodeError as e:
        return Problem(number, f"not JSON: {e.msg} at character {e.pos + 1}")
    except ValueError as e:
        return Problem(number, f"not JSON: {e}")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _json(stream: _Counted, shown: str) -> Iterator[Raw]:
    """One array of rows. It is read as a whole: large data belongs in JSONL."""
    most = 256 << 20
    data = stream.all(most)
    if len(data) > most:
        raise MachineLimit(f"{shown}: a .json file of more than {most >> 20} MiB", hint="Write it as .jsonl.")
    text = _text(data, 1)
    value = text if isinstance(text, Problem) else _parsed(text, 1) if text.strip() else []
    if isinstance(value, Problem):
        yield 1, value
    elif not isinstance(value, list):
        yield 1, Problem(1, "the file is no array of rows", "write one row a line and call it .jsonl")
    else:
        yield from enumerate(value, 1)


def _csv(stream: _Counted) -> Iterator[Raw]:
    """Records below a line of names; a record's number is the line it begins on."""
    bad: list[int] = []

    def lines() -> Iterator[str]:
        number = 0
        while True:
            line, length = stream.line()
            if not line:
                return
            number += 1
            text = _text(line, number)
            if isinstance(text, Problem) or length > MOST_ROW or "\0" in text:
                bad.append(number)
                yield "\ufffd\n"
            else:
                yield text

    csv.field_size_limit(MOST_ROW)
    records = csv.reader(lines(), strict=True)
    names: list[str] | None = None
    while True:
        at, seen = records.line_num + 1, len(bad)
        try:
            record = next(records)
        except StopIteration:
            return
        except csv.Error as e:
            yield at, Problem(at, f"not CSV: {e}")
            continue
        if len(bad) > seen:
            yield at, Problem(at, "not UTF-8, too long, or with a NUL", "save the file as UTF-8")
        elif not record:
            continue
        elif names is None:
            names = [n.strip() for n in record]
            if len(set(names)) < len(names):
                raise BadUsage(f"line 1: two columns have one name: {', '.join(names)[:200]}")
        elif len(record) != len(names):
            yield at, Problem(at, f"{len(record)} fields, but the first line names {len(names)}")
        else:
            yield at, {n: v for n, v in zip(names, record, strict=True) if v != ""}


def write(path: Path, rows: Iterator[dict[str, Any]]) -> str:
    """Write rows as JSONL, whole or not at all; the sha256 of the file."""
    from miyabi_llm.store.fs import nonce

    digest = hashlib.sha256()
    part = path.with_name(f".{path.name}.{nonce()}.part")
    try:
        with part.open("wb") as file:
            for row in rows:
                line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
                digest.update(line)
                file.write(line)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return digest.hexdigest()


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that `write` wrote."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
