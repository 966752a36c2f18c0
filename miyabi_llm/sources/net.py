"""HTTP with care: checked addresses, redirects by hand, credentials that stay with their origin."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpcore
import httpx

from miyabi_llm import __version__
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, NetworkError, Unsafe
from miyabi_llm.sources.dial import Dialer, Reach, Resolve, proxy_for, reach, system_resolve
from miyabi_llm.types import Secret

HOPS = 5  # redirects followed for one request
USER_AGENT = f"miyabi-llm/{__version__}"

_TOKEN = re.compile(r"[\x21-\x7e]{1,16384}", re.ASCII)  # the HTTP library's own complaint would print the token
_PASSING = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.ProxyError)


class Hiccup(Exception):
    """A failure that may pass when tried again; `retry_after` is what the server asked for, in seconds."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after


class Unreachable(Hiccup):
    """Nobody was there: no such name, refused, no route. The next source is better than waiting."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A token and the one origin (scheme, host, port) it may be shown to."""

    origin: tuple[str, str, int]
    token: Secret

    @classmethod
    def bearer(cls, url: str, token: str) -> Credential:
        """`token` for the origin of `url`. Raises BadUsage, without the token, when no header can carry it."""
        if not _TOKEN.fullmatch(token):
            raise BadUsage(
                f"the token for {shown(httpx.URL(url))} has characters that no token has",
                hint="Set it again, without quotes, spaces and line ends.",
            )
        return cls(origin(httpx.URL(url)), Secret(token))


@dataclass(frozen=True, slots=True)
class Wire:
    """How connections are made: timeouts in seconds and the collaborators a test may bring.

    `stall` is the longest silence; a slow but steady answer never times out.
    """

    stall: float = 30.0
    connect: float = 15.0
    resolve: Resolve = system_resolve
    backend: httpcore.NetworkBackend = field(default_factory=httpcore.SyncBackend)
    tls: ssl.SSLContext | None = None

    @property
    def timeouts(self) -> dict[str, float]:
        """As the HTTP library wants them."""
        return {"connect": self.connect, "read": self.stall, "write": self.stall, "pool": self.stall * 4}


class Response:
    """An answer whose body has not been read yet. `chunks` is the body as sent, not decoded."""

    def __init__(self, url: httpx.URL, answer: httpcore.Response) -> None:
        self.url = url
        self.status = answer.status
        self.headers = httpx.Headers(answer.headers)
        self._answer = answer

    def chunks(self) -> Iterator[bytes]:
        """The body's bytes. Raises Hiccup when the connection stalls or breaks, or the body is cut short."""
        try:
            yield from self._answer.iter_stream()
        except _PASSING as e:
            raise Hiccup(_why(e)) from e

    def read(self, limit: int) -> bytes:
        """The whole body. Raises NetworkError beyond `limit` bytes, Hiccup when it is cut short."""
        body = bytearray()
        for chunk in self.chunks():
            body += chunk
            if len(body) > limit:
                raise NetworkError(f"{shown(self.url)}: the answer is longer than {limit} bytes")
        return bytes(body)


class Session:
    """The connections of one piece of work; close it after.

    Each thread has pools of its own: a shared pool may take another thread's connection for a dead one, in the
    moment between its request and the answer, and close it.
    """

    def __init__(self, settings: Settings, *, wire: Wire | None = None) -> None:
        self._settings = settings
        self._wire = wire or Wire()
        self._tls = self._wire.tls
        self._pools: dict[tuple[Reach, bool, str | None, int], tuple[httpcore.ConnectionPool, Dialer]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; no thread uses the session any more."""
        for pool, _ in list(self._pools.values()):
            pool.close()

    def abort(self) -> None:
        """Wake every thread that waits for bytes; each sees a Hiccup."""
        for _, dialer in list(self._pools.values()):
            dialer.abort()

    @contextmanager
    def open(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        credential: Credential | None = None,
    ) -> Iterator[Response]:
        """Send a request and follow its redirects: at most five, never to http, never to a less public place.

        The credential goes to its own origin only and is gone for good after the first redirect that leaves it.
        Raises Hiccup (may pass), NetworkError, Unsafe.
        """
        here, floor = httpx.URL(url), Reach.LOOPBACK
        if self._settings.offline:
            raise NetworkError(
                f"offline: {shown(here)} was not asked",
                hint=f"{self._settings.offline_hint} Or name a model that is here (`miyabi-llm list`).",
            )
        for _ in range(HOPS + 1):
            _check_url(here)
            if credential and origin(here) != credential.origin:
                credential = None
            with self._send(here, floor, (method, headers or {}, credential)) as answer:
                if answer.status not in (301, 302, 303, 307, 308):
                    yield Response(here, answer)
                    return
                _finish(answer)
                floor = max(floor, self._reached(here, answer))
                here = _next(here, httpx.Headers(answer.headers).get("location"))
        raise NetworkError(f"{shown(httpx.URL(url))}: more than {HOPS} redirects")

    @contextmanager
    def _send(
        self, url: httpx.URL, floor: Reach, request: tuple[str, Mapping[str, str], Credential | None]
    ) -> Iterator[httpcore.Response]:
        method, headers, credential = request
        sent: dict[bytes | str, bytes | str] = {"Host": url.netloc, "User-Agent": USER_AGENT, "Accept": "*/*"}
        sent["Accept-Encoding"] = "identity"
        sent.update(headers.items())
        if credential:
            sent["Authorization"] = f"Bearer {credential.token.reveal()}"
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        pool = self._pool(url, floor)
        try:
            with pool.stream(method, target, headers=sent, extensions={"timeout": self._wire.timeouts}) as answer:
                yield answer
        except _PASSING as e:
            if isinstance(e.__cause__, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(e):
                raise NetworkError(
                    f"{shown(url)}: the server's certificate is not trusted: {e}",
                    hint="Behind a company proxy, name its certificate in SSL_CERT_FILE.",
                ) from e
            absent = isinstance(e, httpcore.ConnectError | httpcore.ConnectTimeout)
            raise (Unreachable if absent else Hiccup)(_why(e)) from e

    def _reached(self, url: httpx.URL, answer: httpcore.Response) -> Reach:
        """How public the place was that gave `answer`; behind a proxy, as public as can be."""
        if proxy_for(url, self._settings.env):
            return Reach.PUBLIC
        return reach(answer.extensions["network_stream"].get_extra_info("server_addr")[0])

    def _pool(self, url: httpx.URL, floor: Reach) -> httpcore.ConnectionPool:
        proxy = proxy_for(url, self._settings.env)
        if proxy and reach(url.host, unknown=Reach.PUBLIC) < Reach.PUBLIC:
            raise Unsafe(f"{shown(url)}: not a public address, not asked through a proxy")
        key = (floor, url.scheme == "http", proxy, threading.get_ident())
        with self._lock:
            if key not in self._pools:
                self._pools[key] = self._connect(floor, proxy, plain=url.scheme == "http")
            return self._pools[key][0]

    def _connect(self, floor: Reach, proxy: str | None, *, plain: bool) -> tuple[httpcore.ConnectionPool, Dialer]:
        if not plain and self._tls is None:
            self._tls = tls_context(self._settings.env)
        tls = None if plain else self._tls
        if proxy:  # the proxy may stand in a private network; it resolves the names
            dialer = Dialer(Reach.LOOPBACK, Reach.PUBLIC, self._wire.resolve, self._wire.backend)
            via = httpcore.Proxy(proxy, auth=_proxy_auth(proxy))
            return httpcore.ConnectionPool(ssl_context=tls, proxy=via, network_backend=dialer), dialer
        most = Reach.LOOPBACK if plain else Reach.PUBLIC
        dialer = Dialer(floor, most, self._wire.resolve, self._wire.backend)
        return httpcore.ConnectionPool(ssl_context=tls, network_backend=dialer), dialer


def origin(url: httpx.URL) -> tuple[str, str, int]:
    """Scheme, host and port: what a credential belongs to."""
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme, 0)


def shown(url: httpx.URL) -> str:
    """A URL for a message: without its query, where signatures and tokens live."""
    return str(url.copy_with(query=None, fragment=None))


def tls_context(env: Mapping[str, str]) -> ssl.SSLContext:
    """The system's certificates, certifi's, and those the user names in SSL_CERT_FILE."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    for extra in _some(env.get("SSL_CERT_FILE"), env.get("REQUESTS_CA_BUNDLE")):
        try:
            context.load_verify_locations(extra)
        except OSError as e:
            raise NetworkError(f"{extra}: certificates cannot be read: {e}") from e
    return context


def check_endpoint(url: str) -> None:
    """Raise Unsafe unless `url` is https, or http on this machine: a token may be sent there."""
    parsed = httpx.URL(url)
    _check_url(parsed)
    if parsed.scheme != "https" and parsed.host != "localhost" and reach(parsed.host) is not Reach.LOOPBACK:
        raise Unsafe(f"{shown(parsed)} is not this machine: only https:// is safe there", hint="Use https://.")


def _check_url(url: httpx.URL) -> None:
    if url.scheme not in ("https", "http") or not url.host:
        raise Unsafe(f"{shown(url)!r} is not an https:// address")
    if not 0 < (url.port or 443) < 65536:
        raise NetworkError(f"{shown(url)!r} has no port")
    if url.userinfo:
        raise Unsafe(f"an address with a user or password in it is refused (host {url.host})")


def _finish(answer: httpcore.Response) -> None:
    """Read a redirect's small body, so that its connection can be used again."""
    length = httpx.Headers(answer.headers).get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) <= 1 << 16:
        answer.read()


def _next(here: httpx.URL, location: str | None) -> httpx.URL:
    if not location:
        raise NetworkError(f"{shown(here)}: a redirect without a target")
    try:
        there = here.join(location)
    except (httpx.InvalidURL, ValueError) as e:
        raise NetworkError(f"{shown(here)}: a redirect to no address: {e}") from None
    if here.scheme == "https" and there.scheme != "https":
        raise Unsafe(f"{shown(here)}: redirects from https to {there.scheme}")
    _check_url(there)
    return there


def _proxy_auth(proxy: str) -> tuple[str, str] | None:
    url = httpx.URL(proxy)
    return (url.username, url.password) if url.username else None


def _some(*values: str | None) -> Iterable[str]:
    return [v for v in values if v]


def _why(error: Exception) -> str:
    if isinstance(error, httpcore.ReadTimeout):
        return "no bytes for too long"
    return str(error) or ("timed out" if isinstance(error, httpcore.TimeoutException) else type(error).__name__)
