"""The permit without which nothing leaves: bound to the exact bytes, their verdict and their audit record. Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any, Final

from miyabi_llm.gateway.headers import Pairs
from miyabi_llm.route.values import Verdict

GOOD_S: Final = 30.0  # seconds from a permit's making to its use
LIMIT: Final = 7800  # bytes of a permit, which travels in one header


class NoPermit(Exception):
    """Nothing is sent: the permit is missing, forged, used, old, or for something else."""


@dataclass(frozen=True, slots=True)
class Permit:
    """What may be sent: to `target` on `path` with `headers`, the bytes whose SHA-256 is `digest`, until `expires`.

    `expires` is seconds of CLOCK_MONOTONIC, which the two processes share. `audit` is the record that was on the disk
    before this was made; `nonce` makes it good for one use.
    """

    target: str
    path: str
    headers: Pairs
    digest: str
    verdict: str
    audit: str
    nonce: str
    expires: float


def digest(data: bytes) -> str:
    """The SHA-256 of the bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def sign(permit: Permit, key: bytes) -> str:
    """The permit as text, with its seal. Raises NoPermit for anything but PUBLIC, and for one that is too long."""
    if permit.verdict != Verdict.PUBLIC.name:
        raise NoPermit(f"no permit for {permit.verdict.lower()} bytes")
    body = json.dumps(asdict(permit), separators=(",", ":")).encode()
    text = f"{base64.urlsafe_b64encode(body).decode()}.{_seal(body, key)}"
    if len(text) > LIMIT:
        raise NoPermit("the request's headers are too long to be sent to a cloud")
    return text


def read(text: str, key: bytes) -> Permit:
    """The permit in `text`. Raises NoPermit when its seal is not ours."""
    encoded, _, seal = text.partition(".")
    try:
        body = base64.b64decode(encoded.encode("ascii"), altchars=b"-_", validate=True)
    except ValueError:
        raise NoPermit("the permit cannot be read") from None
    if not hmac.compare_digest(_seal(body, key), seal):
        raise NoPermit("the permit is forged")
    fields: dict[str, Any] = json.loads(body)
    return Permit(**(fields | {"headers": tuple((k, v) for k, v in fields["headers"])}))


class Desk:
    """Checks permits where the bytes leave; remembers those that were used as long as they would be good."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._used: set[str] = set()
        self._until: deque[tuple[float, str]] = deque()  # the same, by the time from which they need not be known

    def check(self, text: str, data: bytes, now: float) -> Permit:
        """The permit for exactly `data`, used up by this. Raises NoPermit."""
        permit = read(text, self._key)
        if permit.verdict != Verdict.PUBLIC.name:
            raise NoPermit("the verdict is not public")
        if not now <= permit.expires <= now + GOOD_S:
            raise NoPermit("the permit is too old")
        if not hmac.compare_digest(permit.digest, digest(data)):
            raise NoPermit("the bytes are not those of the permit")
        if not permit.audit:
            raise NoPermit("the permit has no line in the audit")
        while self._until and self._until[0][0] < now:
            self._used.discard(self._until.popleft()[1])
        if permit.nonce in self._used:
            raise NoPermit("the permit was used")
        self._used.add(permit.nonce)
        self._until.append((now + GOOD_S, permit.nonce))  # no permit is good for longer
        return permit


def _seal(body: bytes, key: bytes) -> str:
    return hmac.new(key, body, hashlib.sha256).hexdigest()
