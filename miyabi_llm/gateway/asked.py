"""A request as the gateway passes it on, and what became of one try to have it answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from miyabi_llm.gateway.body import Body
from miyabi_llm.gateway.headers import Pairs
from miyabi_llm.gateway.streams import Broken, Usage, Watch
from miyabi_llm.route.values import Target

Kind = Literal[
    "unreachable", "timeout", "cut", "garbled", "overloaded", "server", "rate", "spend", "client", "elsewhere", "permit"
]


class Readable(Protocol):
    """An answer, from a local server or through the process that has the keys."""

    status: int
    reason: str
    headers: Pairs

    def header(self, name: str) -> str:
        """The first value of a header, empty when there is none."""

    async def chunk(self) -> bytes:
        """The next bytes, empty at the end. Raises Failed. May be cancelled, and asked again."""

    async def read(self, most: int) -> bytes:
        """The whole body. Raises Failed."""

    def close(self) -> None:
        """End it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: `path` is canonical, `query` what came after `?`; `stream` says how its answer comes."""

    method: str
    path: str
    query: str
    headers: Pairs
    body: Body
    stream: bool


@dataclass(slots=True)
class Opened:
    """An answer that is to be passed on: whole in `data`, or begun with `data` and going on with `left` and `rest`.

    `left` came with the beginning and is not yet looked at. `broken` is set when what follows `data` is known already
    to be an error. `passed` is set once the last event of a whole stream has gone to the client, who may leave then.
    """

    target: Target
    status: int
    reason: str
    headers: Pairs
    data: bytes
    usage: Usage
    rest: Readable | None = None
    watch: Watch | None = None
    broken: Broken | None = None
    left: bytes = b""
    changes: tuple[str, ...] = ()
    passed: bool = False


@dataclass(frozen=True, slots=True)
class Missed:
    """A try that gave no answer: nothing of it has gone to the client.

    `status`, `headers` and `body` are what the client sees when no other try helps. `retry_after` in seconds, None
    when the server does not say.
    """

    target: Target
    kind: Kind
    why: str
    status: int
    body: bytes
    headers: Pairs = ()
    retry_after: float | None = None

    @property
    def final(self) -> bool:
        """True when another target, or another time, would say the same: the request itself is at fault."""
        return self.kind == "client"


@dataclass(frozen=True, slots=True)
class Record:
    """The line of the audit that allows one try at a cloud: its number, and the word that binds the permit to it."""

    number: str
    nonce: str
