"""Which headers go up to a server, and which come down from it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

Pairs = tuple[tuple[str, str], ...]

# Of one connection, or the client's secrets, or rebuilt by us.
_NOT_UP: Final = frozenset(
    (
        *("host", "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "upgrade"),
        *("transfer-encoding", "content-length", "authorization", "x-api-key", "cookie", "origin", "referer", "expect"),
        *("accept-encoding", "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"),
    )
)
# To a cloud go only those that its own clients send; what else a client or a proxy before us adds may be anything.
_CLOUD: Final = frozenset(("accept", "content-type", "user-agent", "x-app"))
_CLOUD_PREFIXES: Final = ("anthropic-", "x-stainless-")
_NOT_DOWN: Final = frozenset(
    (
        *("connection", "keep-alive", "transfer-encoding", "trailer", "upgrade", "server", "set-cookie", "date"),
        "content-length",
    )
)


def up(headers: Iterable[tuple[str, str]], *, cloud: bool) -> Pairs:
    """The client's headers as a server may see them; to a cloud, by an allow-list."""
    return tuple(
        (k, v)
        for k, v in headers
        if (name := k.lower()) not in _NOT_UP
        and not name.startswith(("x-miyabi-", "sec-"))
        and (not cloud or name in _CLOUD or name.startswith(_CLOUD_PREFIXES))
    )


def down(headers: Iterable[tuple[str, str]]) -> Pairs:
    """A server's headers as the client may see them; whose pages may read an answer is not for it to say."""
    return tuple(
        (k, v)
        for k, v in headers
        if (name := k.lower()) not in _NOT_DOWN and not name.startswith(("access-control-", "x-miyabi-"))
    )
