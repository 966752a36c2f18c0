"""Talking to a running server about its models: JSON over HTTP, direct, bounded, every failure in our words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NoReturn, Self

import httpx

from miyabi_llm.backends.base import ModelState, Unsupported
from miyabi_llm.errors import NetworkError, ServerFailed
from miyabi_llm.types import Endpoint, OnEvent, ServeSpec

LOOK_S = 10.0  # for questions that need no model
LOAD_S = 3600.0  # for loading one
LIMIT = 8 << 20  # bytes of an answer that are read


class Wire:
    """A control whose every ability is missing: a backend's own overrides what it has.

    No proxy, no redirect. `get` and `post` return the parsed JSON and raise NetworkError when nobody answers,
    ServerFailed with the server's words when it says no.
    """

    def __init__(self, backend: str, endpoint: Endpoint) -> None:
        self.backend, self.endpoint = backend, endpoint
        key = {"authorization": f"Bearer {endpoint.key.reveal()}"} if endpoint.key else {}
        self._http = httpx.Client(
            base_url=endpoint.base_url, headers=key, trust_env=False, verify=endpoint.base_url.startswith("https:")
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def version(self) -> str:
        """What the server says it is."""
        self.cannot("tell its version")

    def models(self) -> tuple[ModelState, ...]:
        """Every model it offers, by the OpenAI list: all of them count as loaded."""
        rows = self.get("/v1/models")
        found = rows.get("data") if isinstance(rows, dict) else None
        names = [r.get("id") for r in found if isinstance(r, dict)] if isinstance(found, list) else []
        return tuple(ModelState(name, "loaded") for name in names if isinstance(name, str))

    def load(self, name: str, *, ctx: int | None = None, keep_s: float | None = None) -> ModelState:
        """Have a model it knows ready."""
        self.cannot("load a model while it runs")

    def unload(self, name: str) -> None:
        """Free the memory of a model."""
        self.cannot("unload a model while it runs")

    def add(self, spec: ServeSpec, on_event: OnEvent) -> str:
        """Make a model of our store known to it."""
        self.cannot("take another model while it runs")

    def cannot(self, what: str) -> NoReturn:
        """Raise Unsupported."""
        raise Unsupported(f"{self.backend} cannot {what}", hint="`miyabi-llm backend list` shows what each can do.")

    def get(self, path: str, *, timeout: float = LOOK_S) -> Any:
        """GET `path`."""
        return self._ask("GET", path, None, timeout)

    def post(self, path: str, body: Mapping[str, Any], *, timeout: float = LOOK_S) -> Any:
        """POST `body` as JSON to `path`."""
        return self._ask("POST", path, body, timeout)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float) -> Any:
        url = f"{self.endpoint.base_url}{path}"
        try:
            with self._http.stream(method, path, json=body, timeout=timeout) as response:
                said = bytearray()
                for chunk in response.iter_bytes():
                    said += chunk
                    if len(said) > LIMIT:
                        raise ServerFailed(f"{url} answers more than {LIMIT >> 20} MiB", hint="Is it the right server?")
        except httpx.TimeoutException as e:
            raise NetworkError(f"{url}: no answer within {timeout:g} s", hint="`miyabi-llm ps`") from e
        except httpx.HTTPError as e:
            raise NetworkError(f"{url}: {e or type(e).__name__}", hint="Is it running? `miyabi-llm ps`") from e
        answer = parse(bytes(said))
        if response.status_code != 200:
            words = words_of(answer) or bytes(said[:300]).decode("utf-8", "replace")
            raise ServerFailed(f"{url} answers {response.status_code}: {words}", status=response.status_code)
        return answer


def parse(body: bytes) -> Any:
    """JSON, or None when it is none. Pure."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def words_of(answer: Any) -> str:
    """What an error answer says: `{"error": "…"}`, `{"error": {"message": "…"}}` or `{"message": "…"}`. Pure."""
    error = answer.get("error", answer.get("message")) if isinstance(answer, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else ""
