"""Sessions that saw something private: they stay on this machine until somebody says otherwise."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from miyabi_llm.errors import MiyabiError
from miyabi_llm.route.keys import seal
from miyabi_llm.route.values import Verdict


class TaintFailed(MiyabiError):
    """The list of private sessions cannot be read or written: every session counts as private."""

    code = "taint-failed"


@dataclass(frozen=True, slots=True)
class Tainted:
    """A private session by its sealed name, since when, and which kinds were found."""

    session: str
    verdict: Verdict
    since: float
    kinds: tuple[str, ...]


_TABLES = """
create table if not exists sessions (
  session text primary key, verdict integer not null, since real not null, kinds text not null
) strict, without rowid;
create table if not exists releases (session text not null, at real not null) strict;
create table if not exists findings (
  session text not null, mark text not null, kind text not null, primary key (session, mark)
) strict, without rowid;
"""


class _Log(Protocol):
    def append(self, event: Mapping[str, object], *, sync: bool = True) -> int: ...


def log_releases(taints: Taints, log: _Log) -> bool:
    """Write down what was untainted since the last time; True when the log has all of it. Raises AuditFailed."""
    for session, at in taints.releases():
        log.append({"kind": "untaint", "session": session, "released": round(at, 3)})
        taints.released(at)
    return True


class Taints:
    """The sessions, in a file that the gateway and `route untaint` share. Names and findings are kept as HMACs."""

    def __init__(self, path: Path, key: bytes, clock: Callable[[], float] = time.time) -> None:
        """Open or make the file. Raises TaintFailed."""
        self._key, self._clock = key, clock
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
            path.chmod(0o600)
            self._db.execute("pragma journal_mode = wal")
            self._db.executescript(_TABLES)
        except (OSError, sqlite3.Error) as e:
            raise TaintFailed(f"{path}: {e}", hint="Mend or remove the file.") from e

    def name(self, session: str) -> str:
        """The sealed name of a session, as the log and `route untaint` show it."""
        return seal(self._key, session.encode("utf-8", "surrogatepass"), "session")[:32]

    def of(self, session: str) -> Verdict:
        """What a session holds. Doubt is CONFIDENTIAL; a request without a session holds what it shows."""
        if not session:
            return Verdict.PUBLIC
        try:
            with self._lock:
                row = self._db.execute(
                    "select verdict from sessions where session = ?", (self.name(session),)
                ).fetchone()
            return Verdict(row[0]) if row else Verdict.PUBLIC
        except (sqlite3.Error, ValueError):
            return Verdict.CONFIDENTIAL

    def mark(self, session: str, verdict: Verdict, findings: Iterable[tuple[str, bytes]] = ()) -> None:
        """Remember that a session is private from now on; `findings` are kinds with their marks. Raises TaintFailed."""
        if not session or verdict is Verdict.PUBLIC:
            return
        name = self.name(session)
        found = sorted({(kind, seal(self._key, mark, "finding")[:32]) for kind, mark in findings if mark})
        try:
            with self._lock, self._db:
                self._db.execute("begin immediate")
                kinds = ",".join(sorted({kind for kind, _ in found}))
                self._db.execute(
                    "insert into sessions values (?, ?, ?, ?) on conflict (session) do update set"
                    " verdict = max(verdict, excluded.verdict)",
                    (name, int(verdict), self._clock(), kinds),
                )
                self._db.executemany(
                    "insert or ignore into findings values (?, ?, ?)", [(name, m, k) for k, m in found]
                )
        except sqlite3.Error as e:
            raise TaintFailed(f"a private session cannot be kept: {e}") from e

    def untaint(self, session: str) -> bool:
        """Forget a session, by its own or its sealed name; False when it is not known. Log it: see `audit`."""
        with self._lock, self._db:
            self._db.execute("begin immediate")
            names = (session, self.name(session))
            gone = self._db.execute("delete from sessions where session in (?, ?)", names).rowcount
            self._db.execute("delete from findings where session in (?, ?)", names)
            if gone:
                sealed = session if len(session) == 32 else self.name(session)
                self._db.execute("insert into releases values (?, ?)", (sealed, self._clock()))
        return gone > 0

    def releases(self) -> tuple[tuple[str, float], ...]:
        """Sessions that were untainted, by their sealed names, and when; until the log has them."""
        with self._lock:
            return tuple(self._db.execute("select session, at from releases order by at").fetchall())

    def released(self, until: float) -> None:
        """Forget the releases up to a time: the log has them."""
        with self._lock:
            self._db.execute("delete from releases where at <= ?", (until,))

    def all(self) -> tuple[Tainted, ...]:
        """Every private session, the newest first."""
        with self._lock:
            rows = self._db.execute("select * from sessions order by since desc").fetchall()
        return tuple(Tainted(n, Verdict(v), s, tuple(k.split(",")) if k else ()) for n, v, s, k in rows)

    def close(self) -> None:
        """Close the file."""
        self._db.close()
