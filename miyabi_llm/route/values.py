"""What routing knows and says: verdicts, facts of a request, targets, the state of the world, a decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

Dialect = Literal["anthropic", "openai", "ollama"]
Kind = Literal["claude", "local"]
Mode = Literal["claude", "local", "hybrid"]
Circuit = Literal["closed", "open", "half-open"]


class Verdict(IntEnum):
    """How private a request is. The larger always wins; only PUBLIC may go to a cloud target."""

    PUBLIC = 0
    INTERNAL = 1
    CONFIDENTIAL = 2

    @classmethod
    def named(cls, text: str) -> Verdict | None:
        """The verdict of that name in any case, or None."""
        return cls.__members__.get(text.strip().upper())


@dataclass(frozen=True, slots=True)
class Finding:
    """Something private in a request: its kind, where, and the text with all but its edges masked.

    `where` is a path and an offset in characters: `messages[3].content[0].text:120`.
    """

    kind: str
    where: str
    masked: str


@dataclass(frozen=True, slots=True)
class Facts:
    """All of a request that decides where it goes.

    `dialect` and `path` are how it was asked (`/v1/messages`), `model` the name it asked for, `headers` have
    lower-case names and no keys of anybody, `est_tokens` counts the prompt, `max_tokens` what may be answered
    (0: not said). `hints` are of the client (bulk, cheap, hard), `project` and `session` too; `files` the paths that
    stand in the request. `complete` is False when anything in it was not looked through, and `unseen` says what.
    `asked` is the client's own verdict, `taint` what the session holds from earlier turns; both only tighten.
    """

    dialect: Dialect
    model: str
    path: str
    stream: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    est_tokens: int = 0
    max_tokens: int = 0
    hints: tuple[str, ...] = ()
    project: str = ""
    session: str = ""
    files: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    complete: bool = False
    unseen: tuple[str, ...] = ()
    asked: Verdict = Verdict.PUBLIC
    taint: Verdict = Verdict.PUBLIC


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where a target is reached. `base_url` has no trailing slash and no `/v1`; `key_env` NAMES a variable.

    `model` is empty where the client's own name is passed on. `backend` is the kind of server, empty if not said.
    `hosts` are the addresses or networks beyond loopback that count as local.
    """

    base_url: str
    model: str = ""
    dialects: tuple[Dialect, ...] = ("anthropic", "openai")
    key_env: str = ""
    backend: str = ""
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """One place a request may go. `clearance` is the most private verdict it may see: PUBLIC for every cloud.

    `context` in tokens (0: not said), `price` the model whose prices hold, `aliases` the model names that mean it.
    """

    name: str
    kind: Kind
    endpoint: Upstream
    context: int = 0
    price: str = ""
    aliases: tuple[str, ...] = ()
    clearance: Verdict = Verdict.CONFIDENTIAL

    @property
    def local(self) -> bool:
        """True for a target on this machine or an allow-listed network."""
        return self.kind == "local"


@dataclass(frozen=True, slots=True)
class When:
    """What a rule wants of a request. Empty wants nothing; several wishes must all hold. Texts are globs."""

    models: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    stream: bool | None = None
    min_tokens: int = 0
    max_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """The first rule whose `when` holds names the target and what follows when that one fails."""

    name: str
    when: When
    use: str
    fallback: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Project:
    """A project (a glob on the client's project name) and how private its requests are."""

    match: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Privacy:
    """How private a clean request is, what makes one more private, and which findings do not count.

    `deny_globs` match file paths that stand in a request, `ignore` kinds of findings, `allow` globs of their text.
    """

    default_verdict: Verdict = Verdict.CONFIDENTIAL
    deny_globs: tuple[str, ...] = ()
    projects: tuple[Project, ...] = ()
    ignore: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    names: bool = False


@dataclass(frozen=True, slots=True)
class Budget:
    """US dollars for cloud targets; None: no limit."""

    monthly_usd: float | None = None
    per_request_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Electricity:
    """What a local answer costs: watts of the machine at work, price of a kWh in `currency`, currency per US dollar."""

    watts: float = 0.0
    price_per_kwh: float = 0.0
    currency: str = "USD"
    per_usd: float = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes of a body, seconds of a scan, tokens taken as the answer's most when the client does not say."""

    body_bytes: int = 32 << 20
    scan_bytes: int = 8 << 20
    scan_seconds: float = 2.0
    default_max_tokens: int = 4096


@dataclass(frozen=True, slots=True)
class Policy:
    """The whole policy. `error` is set when there is none that can be trusted: then no cloud target exists.

    `digest` is the SHA-256 of the file's bytes, `source` its name.
    """

    mode: Mode = "local"
    targets: tuple[Target, ...] = ()
    rules: tuple[Rule, ...] = ()
    privacy: Privacy = field(default_factory=Privacy)
    budget: Budget = field(default_factory=Budget)
    electricity: Electricity = field(default_factory=Electricity)
    limits: Limits = field(default_factory=Limits)
    source: str = ""
    digest: str = ""
    error: str = ""

    def target(self, name: str) -> Target | None:
        """The target of that name, or None."""
        return next((t for t in self.targets if t.name == name), None)


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a target can be asked now; `why` says why not. A half-open circuit lets a probe through."""

    healthy: bool = True
    circuit: Circuit = "closed"
    why: str = ""

    @property
    def usable(self) -> bool:
        """True when a request may be sent."""
        return self.healthy and self.circuit != "open"


WELL = Health()


@dataclass(frozen=True, slots=True)
class State:
    """The world at the moment of a decision: health by target name (unnamed: well), US dollars left this month.

    `costs` is the most that this request may cost at each cloud target, in US dollars; a target that is not in it
    has no known price, and is refused where there is a budget.
    """

    health: Mapping[str, Health] = field(default_factory=dict)
    budget_left: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)

    def of(self, name: str) -> Health:
        """The health of a target; well if nothing is known against it."""
        return self.health.get(name, WELL)


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes, and why. No target: it is refused, and nothing is sent anywhere.

    `fallbacks` may be tried in order when the target fails before its first content byte; each has the clearance for
    this verdict. `rejected` has the other candidates with the reason each was not taken.
    """

    target: str | None
    fallbacks: tuple[str, ...]
    verdict: Verdict
    rule: str
    reason: str
    detected: tuple[str, ...] = ()
    rejected: tuple[tuple[str, str], ...] = ()
