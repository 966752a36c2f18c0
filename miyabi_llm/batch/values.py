"""What a batch is made of: requests, what is wrong with a line, limits, and the summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from miyabi_llm.errors import BadUsage

Kind = Literal["chat", "completions", "embeddings"]
Judge = Callable[[str], str | None]

URLS: Mapping[str, Kind] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
}
PATHS: Mapping[Kind, str] = {kind: url for url, kind in URLS.items()}


@dataclass(frozen=True, slots=True)
class Shape:
    """How lines become requests.

    `to`, `system`, `max_tokens` and `temperature` are for plain rows (a prompt, messages, a line of text) that do not
    say it themselves; `schema` goes into every chat request. With `text` each line is a prompt, whatever it holds.
    """

    to: Kind = "chat"
    text: bool = False
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.to not in PATHS:
            raise BadUsage(f"unknown kind of request: {self.to!r}", hint=f"One of {', '.join(PATHS)}.")
        if self.system is not None and self.to != "chat":
            raise BadUsage(f"a system text is for chat requests, not for {self.to}")
        if self.schema is not None and self.to != "chat":
            raise BadUsage(f"a schema is for chat requests, not for {self.to}")


@dataclass(frozen=True, slots=True)
class Row:
    """One request: the line it stands on (from 1), its name, where it goes and what it says."""

    line: int
    custom_id: str
    url: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """A line that is no request, and why."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


@dataclass(frozen=True, slots=True)
class Limits:
    """How hard to try. Seconds, except `concurrency` (requests at once; None: the server's slots) and `tries`.

    `tries` bounds how often one request is sent that fails; waiting for a server that is busy, loading or gone is no
    try, but ends after `patience_s`. `timeout_s` is for one answer. After the first Ctrl-C requests in flight have
    `grace_s` to finish. Pauses between tries start at `backoff_s`, are doubled up to `backoff_limit_s` and shortened
    by chance to a half at most; what the server asks for in Retry-After is followed up to `retry_after_s`.
    """

    concurrency: int | None = None
    tries: int = 5
    patience_s: float = 300.0
    timeout_s: float = 3600.0
    grace_s: float = 10.0
    backoff_s: float = 0.5
    backoff_limit_s: float = 30.0
    retry_after_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Prices:
    """What a million tokens cost, in any currency: read (`prompt`) and written (`completion`)."""

    prompt: float
    completion: float


@dataclass(frozen=True, slots=True)
class Job:
    """What to do: the file to read, the file to write, and how.

    `resume` False begins anew and drops what `target` holds. `retry_failed` asks again what failed before.
    `judge` looks at the text of each chat answer and says what is wrong with it.
    """

    source: Path
    target: Path
    shape: Shape = field(default_factory=Shape)
    skip_bad: bool = False
    resume: bool = True
    retry_failed: bool = False
    ordered: bool = False
    prices: Prices | None = None
    judge: Judge | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """How a batch stands. Rows, tokens and `cost` are those of the whole output file, all runs together.

    `total` = `done` + `failed` + `skipped` (lines that are no request) + `left`. `resumed` rows were there when this
    run began; `retried` counts requests of this run that were sent again. `cut` answers ended at their token limit;
    `uncounted` report no usage. `seconds` and `tokens_per_s` (completion tokens) are of this run alone. `cost` is
    None without prices. `interrupted` says that rows are left because somebody asked to stop.
    """

    output: Path
    total: int
    done: int
    failed: int
    skipped: int
    left: int
    resumed: int
    retried: int
    cut: int
    uncounted: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    tokens_per_s: float | None
    cost: float | None
    interrupted: bool


class Stop:
    """A request to stop, from a signal handler or another thread: asked once gently, asked again at once."""

    def __init__(self) -> None:
        self._count = 0

    def ask(self) -> None:
        """Stop; a second time: without waiting for what is in flight."""
        self._count += 1

    @property
    def asked(self) -> int:
        """How often it was asked."""
        return self._count
