"""What was spent: reserved at its worst before a request is sent, settled after. Two gateways may share one file."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from miyabi_llm.errors import MiyabiError
from miyabi_llm.route.prices import Usage
from miyabi_llm.route.savings import Saving

WAIT = 5.0  # seconds to wait for another process's transaction


class BudgetSpent(MiyabiError):
    """The month's budget does not hold what this request may cost."""

    code = "budget-spent"


class LedgerFailed(MiyabiError):
    """The ledger cannot be written: nothing may be sent that costs money."""

    code = "ledger-failed"


@dataclass(frozen=True, slots=True)
class Totals:
    """A month in US dollars: spent by settled answers, held for those under way, saved by local ones (net)."""

    month: str
    spent: float
    held: float
    saved: float
    power: float
    cloud_requests: int
    local_requests: int
    tokens: Usage


_TABLES = """
create table if not exists entries (
  id integer primary key, at real not null, month text not null, target text not null, model text not null,
  state text not null check (state in ('held', 'settled', 'local')),
  usd real not null, input integer not null default 0, output integer not null default 0,
  cache_read integer not null default 0, cache_write integer not null default 0,
  instead text not null default '', cloud_usd real not null default 0, power_usd real not null default 0
) strict;
create index if not exists by_month on entries (month, state);
"""


class Ledger:
    """The file of entries. No content, no sessions: times, targets, models, tokens, dollars."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open or make the file. Raises LedgerFailed."""
        self._clock = clock
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
            path.chmod(0o600)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = normal")
            self._db.executescript(_TABLES)
        except (OSError, sqlite3.Error) as e:
            raise LedgerFailed(f"{path}: {e}", hint="Nothing goes to a cloud without a ledger.") from e

    def reserve(self, target: str, model: str, worst: float, monthly: float | None = None) -> int:
        """Hold `worst` US dollars of this month for one request, before it is sent; returns the entry's number.

        Checking and holding is one transaction, so that no two requests share the same rest of a budget.
        Raises BudgetSpent, LedgerFailed.
        """
        now = self._clock()
        month = month_of(now)
        with self._transaction() as db:
            if monthly is not None:
                left = monthly - _used(db, month)
                if worst > left + 1e-12:
                    raise BudgetSpent(
                        f"the request may cost ${worst:.4f}; ${max(left, 0):.4f} of the budget of {month} are left",
                        hint="Raise [budget] monthly_usd, or ask a local target.",
                    )
            cursor = db.execute(
                "insert into entries (at, month, target, model, state, usd) values (?, ?, ?, ?, 'held', ?)",
                (now, month, target, model, worst),
            )
            return int(cursor.lastrowid or 0)

    def settle(self, entry: int, usd: float | None, usage: Usage = Usage()) -> None:  # noqa: B008  # frozen
        """Put what an answer cost in the place of what was held. None: not known, so what was held counts as spent."""
        with self._transaction() as db:
            db.execute(
                "update entries set state = 'settled', usd = coalesce(?, usd), input = ?, output = ?, cache_read = ?,"
                " cache_write = ? where id = ? and state = 'held'",
                (usd, usage.input, usage.output, usage.cache_read, usage.cache_write, entry),
            )

    def drop(self, entry: int) -> None:
        """Give back what was held: nothing was sent, or the target said that nothing is charged."""
        with self._transaction() as db:
            db.execute("delete from entries where id = ? and state = 'held'", (entry,))

    def local(self, target: str, model: str, usage: Usage, saved: Saving) -> None:
        """Note an answer of a local target and what it saved."""
        self.locals(((self._clock(), target, model, usage, saved),))

    def locals(self, answers: Iterable[tuple[float, str, str, Usage, Saving]]) -> None:
        """Note several answers of local targets, each with its time, in one transaction."""
        with self._transaction() as db:
            db.executemany(
                "insert into entries (at, month, target, model, state, usd, input, output, cache_read, cache_write,"
                " instead, cloud_usd, power_usd) values (?, ?, ?, ?, 'local', 0, ?, ?, ?, ?, ?, ?, ?)",
                [(at, month_of(at), target, model, u.input, u.output, u.cache_read, u.cache_write,
                  saved.instead, saved.cloud, saved.power) for at, target, model, u, saved in answers],
            )  # fmt: skip

    def left(self, monthly: float) -> float:
        """US dollars of this month that are neither spent nor held."""
        try:
            with self._lock:
                return monthly - _used(self._db, month_of(self._clock()))
        except sqlite3.Error as e:
            raise LedgerFailed(f"the ledger cannot be read: {e}") from e

    def totals(self, month: str | None = None) -> Totals:
        """The sums of a month (`2026-11`; None: this one)."""
        month = month or month_of(self._clock())
        with self._lock:
            row = self._db.execute(
                "select coalesce(sum(usd) filter (where state = 'settled'), 0),"
                " coalesce(sum(usd) filter (where state = 'held'), 0),"
                " coalesce(sum(cloud_usd - power_usd) filter (where state = 'local' and instead <> ''), 0),"
                " coalesce(sum(power_usd), 0), count(*) filter (where state <> 'local'),"
                " count(*) filter (where state = 'local'), coalesce(sum(input), 0), coalesce(sum(output), 0),"
                " coalesce(sum(cache_read), 0), coalesce(sum(cache_write), 0) from entries where month = ?",
                (month,),
            ).fetchone()
        spent, held, saved, power, cloud, local, *tokens = row
        return Totals(month, spent, held, saved, power, cloud, local, Usage(*tokens))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("begin immediate")
                try:
                    yield self._db
                    self._db.execute("commit")
                except BaseException:
                    self._db.execute("rollback")
                    raise
            except sqlite3.Error as e:
                raise LedgerFailed(f"the ledger cannot be written: {e}", hint="Nothing was sent.") from e


def _used(db: sqlite3.Connection, month: str) -> float:
    row = db.execute(
        "select coalesce(sum(usd), 0) from entries where month = ? and state <> 'local'", (month,)
    ).fetchone()
    return float(row[0])


def month_of(now: float) -> str:
    """`2026-11`, UTC. Pure."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m")
