"""Everything serialised in a request, looked through: what is private in it, and what could not be looked at."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from miyabi_llm import detect
from miyabi_llm.route.values import Dialect, Finding, Limits, Privacy, Verdict
from miyabi_llm.route.verdict import glob

# Headers that carry keys for the gateway itself or say how to talk; they are never sent on as they came.
_OWN_HEADERS = frozenset({"authorization", "x-api-key", "proxy-authorization", "host", "content-length", "cookie"})
_DEPTH = 64  # levels of JSON
_SHOWN = 200  # findings kept; more of them change nothing


@dataclass(frozen=True, slots=True)
class Scan:
    """What a scan saw. Not `complete`: something was not looked through, and `unseen` says what.

    `parsed` is the body as JSON (None when it is none), `chars` all characters of its texts, `seconds` the time taken.
    """

    findings: tuple[Finding, ...]
    complete: bool
    unseen: tuple[str, ...]
    files: tuple[str, ...]
    chars: int
    seconds: float
    parsed: Any = None

    @property
    def floor(self) -> Verdict:
        """The least verdict this scan allows: PUBLIC only when it is complete and found nothing."""
        return Verdict.PUBLIC if self.complete and not self.findings else Verdict.CONFIDENTIAL


def scan_request(
    body: bytes,
    dialect: Dialect,
    headers: Mapping[str, str],
    cache: detect.Cache,
    privacy: Privacy = Privacy(),  # noqa: B008  # frozen
    limits: Limits = Limits(),  # noqa: B008  # frozen
) -> Scan:
    """Look through a request. Never raises: whatever goes wrong is an incomplete scan, and so CONFIDENTIAL."""
    begin = time.perf_counter()
    looker = _Looker(cache, privacy, begin + limits.scan_seconds)
    parsed: Any = None
    try:
        if len(body) > limits.scan_bytes:
            looker.miss(f"body of {len(body)} bytes, more than {limits.scan_bytes}")
        else:
            parsed = json.loads(body)
            looker.look(parsed, "", "", 0)
            for name, value in headers.items():
                if name.lower() not in _OWN_HEADERS:
                    looker.text(value, f"headers.{name}", name)
    except _LateError:
        looker.miss(f"a scan of more than {limits.scan_seconds:g} s")
    except (ValueError, RecursionError):
        looker.miss("a body that is no JSON")
    except Exception as e:  # any bug of a detector means: not looked through, never "clean"
        looker.miss(f"a fault of the scanner ({type(e).__name__})")
    return Scan(
        tuple(looker.findings[:_SHOWN]),
        not looker.unseen,
        tuple(dict.fromkeys(looker.unseen)),
        tuple(looker.files),
        looker.chars,
        time.perf_counter() - begin,
        parsed,
    )


class _LateError(Exception):
    """The time of the scan is over."""


class _Looker:
    """Walks a body. Collects findings, file names and what it could not look at."""

    def __init__(self, cache: detect.Cache, privacy: Privacy, deadline: float) -> None:
        self.cache = cache
        self.privacy = privacy
        self.options = detect.Options()
        self.deadline = deadline
        self.findings: list[Finding] = []
        self.unseen: list[str] = []
        self.files: dict[str, None] = {}
        self.chars = 0

    def miss(self, what: str) -> None:
        self.unseen.append(what)

    def look(self, value: Any, where: str, label: str, depth: int) -> None:
        if depth > _DEPTH:
            self.miss("JSON nested too deeply")
        elif isinstance(value, str):
            self.text(value, where, label)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                self.text(key, f"{where}.{{key}}", "")
                self.look(item, f"{where}.{key}" if where else key, key, depth + 1)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                self.look(item, f"{where}[{i}]", label, depth + 1)
        elif value is not None and not isinstance(value, bool):
            self.text(str(value), where, label)

    def text(self, text: str, where: str, label: str) -> None:
        if time.perf_counter() > self.deadline:
            raise _LateError
        self.chars += len(text)
        result = detect.cached(text, self.cache, self.options)
        self.unseen.extend(result.unseen)
        for hit in result.hits:
            if hit.kind not in self.privacy.ignore and not self._allowed(text[hit.start : hit.end]):
                self.findings.append(Finding(hit.kind, f"{where}:{hit.start}", hit.masked))

    def _allowed(self, found: str) -> bool:
        return any(glob(g, found) for g in self.privacy.allow)


def texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
