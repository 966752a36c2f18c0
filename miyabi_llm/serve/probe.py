"""Questions to a server that only the right, working server answers rightly."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import httpx

from miyabi_llm.types import LaunchPlan

LOOK_S = 2.0  # for questions that need no model
LIMIT = 1 << 20  # bytes of an answer that are read: who says more is not the server we know

Verdict = Literal["ours", "loading", "stranger"]
Outcome = Literal["ok", "loading", "refused", "silent", "broken"]


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer, cut at LIMIT bytes; `status` 0 when there was none, -1 when it did not come in time."""

    status: int
    body: bytes = b""

    def json(self) -> Any:
        """The body as JSON, None when it is not."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class Probe:
    """Asks one server, directly: no proxy, no redirect."""

    def __init__(self, plan: LaunchPlan) -> None:
        endpoint = plan.endpoint
        self._model, self._health = endpoint.model, plan.health_path
        self._key = {"authorization": f"Bearer {endpoint.key.reveal()}"} if endpoint.key else {}
        self._http = httpx.Client(
            base_url=endpoint.base_url, trust_env=False, verify=endpoint.base_url.startswith("https:")
        )

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._http.close()

    def healthy(self) -> bool:
        """Whether the health path answers 200. Says nothing about who answers, nor whether a token ever comes."""
        return self._ask("GET", self._health, headers=self._key).status == 200

    def identity(self) -> tuple[Verdict, str]:
        """Whether the answerer asks for our key and offers our model; with the reason when it does not."""
        if self._key:
            bare = self._ask("GET", "/v1/models")
            if bare.status == 200:
                return "stranger", "it answers without the key it was started with"
            if bare.status not in (401, 403):
                return "loading", f"/v1/models answers {bare.status}"
        reply = self._ask("GET", "/v1/models", headers=self._key)
        if reply.status in (401, 403):
            return "stranger", "it refuses the key it was started with" if self._key else "it asks for a key"
        if reply.status != 200:
            return "loading", f"/v1/models answers {reply.status}"
        rows = reply.json()
        rows = rows.get("data") if isinstance(rows, dict) else None
        names = [r.get("id") for r in rows if isinstance(r, dict)] if isinstance(rows, list) else []
        if self._model not in names:
            return "stranger", f"it offers {names or 'no model'}, not {self._model!r}"
        return "ours", ""

    def token(self, timeout: float) -> tuple[Outcome, str]:
        """Ask for one token and wait at most `timeout` seconds for it."""
        body: dict[str, Any] = {"model": self._model, "max_tokens": 1, "temperature": 0, "stream": False}
        reply = self._ask("POST", "/v1/completions", body | {"prompt": "1"}, timeout=timeout)
        if reply.status in (404, 405):
            chat = body | {"messages": [{"role": "user", "content": "1"}]}
            reply = self._ask("POST", "/v1/chat/completions", chat, timeout=timeout)
        match reply.status:
            case 200:
                answer = reply.json()
                if isinstance(answer, dict) and answer.get("choices"):
                    return "ok", ""
                return "refused", "it answers a completion with something else"
            case 503:
                return "loading", ""
            case -1:
                return "silent", f"no token within {timeout:g} s"
            case 0:
                return "broken", "it broke the connection"
            case status:
                return (
                    "refused",
                    f"it answers a completion with {status}: {reply.body[:300].decode('utf-8', 'replace')}",
                )

    def slots(self, timeout: float) -> tuple[Literal["busy", "idle", "silent", "unknown"], bytes]:
        """What the server says about its requests in progress; the bytes change whenever one moves on."""
        reply = self._ask("GET", "/slots", headers=self._key, timeout=timeout)
        if reply.status == 404:
            reply = self._ask("GET", "/metrics", headers=self._key, timeout=timeout)
            return counters(reply)
        rows = reply.json() if reply.status == 200 else None
        if isinstance(rows, list) and rows and all(isinstance(r, dict) for r in rows):
            busy = any(r.get("is_processing") for r in rows)
            return "busy" if busy else "idle", reply.body
        return "silent" if reply.status == -1 else "unknown", b""

    def contexts(self) -> list[int]:
        """Tokens of context of each slot; empty when the server does not say."""
        reply = self._ask("GET", "/slots", headers=self._key)
        rows = reply.json() if reply.status == 200 else None
        sizes = [r.get("n_ctx") for r in rows if isinstance(r, dict)] if isinstance(rows, list) else []
        return [n for n in sizes if isinstance(n, int) and n > 0]

    def repeated(self, prompt: str, timeout: float) -> tuple[int, int] | None:
        """Send a prompt for one token: (tokens from the cache, tokens computed); None without an answer that says."""
        body = {"model": self._model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "stream": False}
        answer = self._ask("POST", "/v1/completions", body, timeout=timeout).json()
        timings = answer.get("timings") if isinstance(answer, dict) else None
        if not isinstance(timings, dict):
            return None
        cached, computed = timings.get("cache_n"), timings.get("prompt_n")
        return (cached, computed) if isinstance(cached, int) and isinstance(computed, int) else None

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = LOOK_S,
    ) -> Reply:
        deadline = time.monotonic() + timeout
        # a front of many models must not load one because its supervisor asks for a token
        sent = self._key | {"x-miyabi-probe": "1"} if body is not None else headers
        try:
            with self._http.stream(method, path, json=body, headers=sent, timeout=timeout) as response:
                read = b""
                for chunk in response.iter_raw():
                    read += chunk
                    if time.monotonic() > deadline:
                        return Reply(-1, read)
                    if len(read) > LIMIT:
                        break
                return Reply(response.status_code, read[:LIMIT])
        except httpx.ConnectError:
            return Reply(0)
        except httpx.TimeoutException:
            return Reply(-1)
        except httpx.HTTPError:
            return Reply(0)


# Of vLLM, which has no slots but counts: what runs, what waits, and the tokens read and written so far.
_WORK = (b"vllm:num_requests_running{", b"vllm:num_requests_waiting{")
_TOKENS = (b"vllm:prompt_tokens_total{", b"vllm:generation_tokens_total{")


def counters(reply: Reply) -> tuple[Literal["busy", "idle", "silent", "unknown"], bytes]:
    """Requests in progress by an answer of `/metrics`; the bytes change whenever a token comes. Pure."""
    lines = reply.body.splitlines() if reply.status == 200 else []
    work = [line for line in lines if line.startswith(_WORK)]
    if not work:
        return "silent" if reply.status == -1 else "unknown", b""
    busy = any(line.rpartition(b" ")[2] not in (b"0", b"0.0") for line in work)
    shown = b"\n".join((*work, *(line for line in lines if line.startswith(_TOKENS))))
    return "busy" if busy else "idle", shown
