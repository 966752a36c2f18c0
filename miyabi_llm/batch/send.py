"""One request at a time to its end: sent, judged, sent again where that may help."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx

from miyabi_llm.batch.answers import Outcome, read
from miyabi_llm.batch.values import Limits, Row
from miyabi_llm.client.http import is_local
from miyabi_llm.errors import AccessDenied, NetworkError
from miyabi_llm.types import Endpoint

ANSWER_LIMIT = 256 << 20  # bytes of one answer
CONNECT_S = 10.0


class Halted(Exception):
    """Stop was asked while a request waited for its next try."""


class Sender:
    """Sends the rows of one run. `halt` ends every wait between tries.

    What one request learns about the server (do not come back before ...) holds for all of them.
    """

    def __init__(self, http: httpx.AsyncClient, limits: Limits, halt: asyncio.Event) -> None:
        self.retried = 0
        self._http = http
        self._limits = limits
        self._halt = halt
        self._random = random.Random()
        self._not_before = 0.0
        self._answered = 0.0  # when the server last answered a request for good
        self._accepted = False  # whether it ever took our key

    async def ask(self, row: Row, body: Mapping[str, Any]) -> Outcome:
        """The end of one request: an answer, a refusal, or the last of its failures.

        Raises NetworkError when the server takes no request for `patience_s`, AccessDenied when it refuses the key,
        Halted.
        """
        content = json.dumps(body).encode()
        tries, waits, busy_since = 0, 0, 0.0
        while True:
            await self._pause(self._not_before - time.monotonic())
            outcome = await self._once(row, content)
            now = time.monotonic()
            if outcome.state == "final":
                self._learn(outcome, now)
                return outcome
            if outcome.state == "broken":
                tries, busy_since = tries + 1, 0.0
                if tries >= self._limits.tries:
                    return replace(outcome, state="final")
            else:
                busy_since = busy_since or now
                if now - busy_since > self._limits.patience_s:
                    if self._answered > busy_since:  # it works for others: this request has a trouble of its own
                        return replace(outcome, state="final")
                    raise _gone(self._http.base_url, outcome, self._limits.patience_s)
            waits += 1
            self.retried += bool(outcome.status or outcome.state == "broken")
            await self._pause(self._wait(outcome, waits, now))

    def _learn(self, outcome: Outcome, now: float) -> None:
        if outcome.status in (401, 403) and not self._accepted:
            raise AccessDenied(
                f"{self._http.base_url} refuses the requests ({outcome.status}): {_said(outcome)}",
                hint="Give the name of the variable that holds its key: --key-env NAME. Then run the command again.",
            )
        self._accepted = self._accepted or outcome.status == 200
        self._answered = now

    def _wait(self, outcome: Outcome, waits: int, now: float) -> float:
        """Seconds until the next try. What the server asks for holds back the other requests too."""
        limits = self._limits
        if outcome.wait_s is not None:
            asked = min(outcome.wait_s, limits.retry_after_s)
            if outcome.state == "busy":
                self._not_before = max(self._not_before, now + asked)
            return asked + self._random.uniform(0, min(0.25 * asked, 1.0))  # not all at the same moment
        whole = min(limits.backoff_s * 2.0 ** min(waits - 1, 20), limits.backoff_limit_s)
        return whole * self._random.uniform(0.5, 1.0)

    async def _pause(self, seconds: float) -> None:
        if self._halt.is_set():
            raise Halted
        if seconds > 0:
            try:
                await asyncio.wait_for(self._halt.wait(), seconds)
            except TimeoutError:
                return
            raise Halted

    async def _once(self, row: Row, content: bytes) -> Outcome:
        """One try. The answer is read whole: one that ends early is an error of the connection."""
        try:
            async with (
                asyncio.timeout(self._limits.timeout_s),
                self._http.stream("POST", row.url, content=content) as response,
            ):
                data = bytearray()
                async for piece in response.aiter_raw():
                    data += piece
                    if len(data) > ANSWER_LIMIT:
                        return Outcome("final", code="too_long", message=f"more than {ANSWER_LIMIT >> 20} MiB")
        except (httpx.ConnectError, httpx.ConnectTimeout) as e:
            return Outcome("busy", code="unreachable", message=_why(e))
        except (httpx.TimeoutException, TimeoutError):
            return Outcome("broken", code="timeout", message=f"no answer within {self._limits.timeout_s:g} s")
        except httpx.HTTPError as e:
            return Outcome("broken", code="connection", message=f"the connection broke: {_why(e)}")
        return read(row, response.status_code, response.headers, bytes(data))


def client(endpoint: Endpoint, limits: Limits, concurrency: int) -> httpx.AsyncClient:
    """The connections of one run: as many as requests at once, no redirects, no proxy on the way to a local server."""
    headers = {"accept-encoding": "identity", "content-type": "application/json"}
    if endpoint.key:
        headers["authorization"] = f"Bearer {endpoint.key.reveal()}"
    return httpx.AsyncClient(
        base_url=endpoint.base_url,
        headers=headers,
        follow_redirects=False,
        trust_env=not is_local(endpoint.base_url),
        timeout=httpx.Timeout(limits.timeout_s, connect=CONNECT_S, pool=None),
        limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
    )


def _gone(url: httpx.URL, last: Outcome, patience_s: float) -> NetworkError:
    said = f"it answers {last.status}: {_said(last)}" if last.status else last.message
    return NetworkError(
        f"{url} took no request for {patience_s:g} s: {said}",
        hint="What is finished is kept. When the server is back, run the same command again: it goes on.",
    )


def _said(outcome: Outcome) -> str:
    from miyabi_llm.client.values import error_text

    return error_text(outcome.body if isinstance(outcome.body, dict) else {"error": str(outcome.body or "nothing")})


def _why(e: httpx.HTTPError) -> str:
    return str(e) or type(e).__name__
