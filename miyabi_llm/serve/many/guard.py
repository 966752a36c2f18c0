"""Who may ask: the key, the Host a request names, and the page it comes from. Pure."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from miyabi_llm.proc.ports import is_loopback
from miyabi_llm.types import Secret

OPEN = ("/health", "/v1/health")  # answered without a key: they say nothing but that somebody is there


@dataclass(frozen=True, slots=True)
class Denied:
    """A request that is turned away before its body is read."""

    status: int
    message: str


@dataclass(frozen=True, slots=True)
class Guard:
    """The rules of one address. `hosts` and `origins` are let in beside the usual ones; `mend` says how to add one."""

    bind: str
    key: Secret | None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    mend: tuple[str, str] = ("add it to `hosts` in models.yaml", "add it to `origins` in models.yaml")

    def judge(self, path: str, headers: Mapping[str, Sequence[str]]) -> Denied | None:
        """Why a request is denied; None when it may pass. `headers` by lower-case name, all values of each."""
        named = headers.get("host", ())
        if len(named) != 1 or not path.startswith("/"):
            return Denied(400, "a request names one Host, and a path")
        if not self._host(named[0]):
            return Denied(421, f"no server for {named[0][:200]!r} here: {self.mend[0]}")
        for origin in headers.get("origin", ()):
            if origin not in self.origins:
                return Denied(403, f"pages of {origin[:200]!r} may not ask: {self.mend[1]}")
        if "cross-site" in headers.get("sec-fetch-site", ()) and not headers.get("origin"):
            return Denied(403, "pages of other sites may not ask")
        if path.partition("?")[0] not in OPEN and not self._keyed(headers):
            return Denied(401, "this server asks for its key: `Authorization: Bearer KEY` or `x-api-key: KEY`")
        return None

    def _host(self, named: str) -> bool:
        """A name can be made to point anywhere by whoever owns it; an address, and localhost, cannot."""
        host = named[1 : named.find("]")] if named.startswith("[") else named.partition(":")[0]
        host = host.lower().rstrip(".")
        if host == "localhost" or host in (self.bind, *self.hosts):
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return address.is_loopback or not is_loopback(self.bind)

    def _keyed(self, headers: Mapping[str, Sequence[str]]) -> bool:
        if not self.key:
            return True
        given = [v[7:] if v[:7].lower() == "bearer " else v for v in headers.get("authorization", ())]
        wanted = _hash(self.key.reveal())
        return any(hmac.compare_digest(_hash(text.strip()), wanted) for text in [*given, *headers.get("x-api-key", ())])


def _hash(text: str) -> bytes:
    """Of one length, so that comparing takes the same time for all."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
