"""The client itself: one endpoint, bounded reads, no redirects, no proxy on the way to a local server."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from miyabi_llm.client.failures import refusal, unreachable
from miyabi_llm.client.sse import LIMIT, SseParser
from miyabi_llm.client.values import Delta, Message, read_chunk, read_json, stream_error
from miyabi_llm.errors import AnswerCut, BadUsage, MiyabiError, NetworkError
from miyabi_llm.types import Endpoint

Kind = Literal["llama.cpp", "vllm", "ollama", "other"]

CONNECT_S = 10.0
IDLE_S = 300.0  # without one byte; llama-server sends a comment every 30 s even while it reads a long prompt
LOOK_S = 30.0  # for small questions about the server


class Client:
    """Talks to one endpoint. Close it, or use it as a context manager.

    `idle_s` is how long a stream may stay silent. A local endpoint (loopback or private address) is reached
    directly, whatever proxies the environment names. Every failure is a MiyabiError with the server's words.
    """

    def __init__(self, endpoint: Endpoint, *, idle_s: float = IDLE_S) -> None:
        self.endpoint = endpoint
        headers = {"accept-encoding": "identity"}
        if endpoint.key:
            headers["authorization"] = f"Bearer {endpoint.key.reveal()}"
        self._http = httpx.Client(
            base_url=endpoint.base_url,
            headers=headers,
            follow_redirects=False,
            trust_env=not is_local(endpoint.base_url),
            timeout=httpx.Timeout(idle_s, connect=CONNECT_S),
        )
        self._look = httpx.Timeout(LOOK_S, connect=CONNECT_S)
        self._kind: Kind | None = None
        self._props: dict[str, Any] = {}

    def close(self) -> None:
        """Close the connections; a stream in flight ends, and the server stops working on it."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def models(self) -> tuple[str, ...]:
        """The names the server offers."""
        return tuple(m["id"] for m in self._models() if isinstance(m.get("id"), str))

    def kind(self) -> Kind:
        """Which server this is, as far as it says; asked once."""
        if self._kind is None:
            self._kind = self._find_kind()
        return self._kind

    def props(self) -> Mapping[str, Any]:
        """llama-server's properties; empty for other servers."""
        self.kind()
        return self._props

    def context_size(self) -> int | None:
        """Tokens one request may use, prompt and answer together; None where the server does not say."""
        kind = self.kind()
        if kind == "llama.cpp":
            settings = self._props.get("default_generation_settings")
            return _positive(settings.get("n_ctx")) if isinstance(settings, dict) else None
        if kind == "ollama":
            rows = self._optional("GET", "/api/ps").get("models")
            wanted = {self.endpoint.model, f"{self.endpoint.model}:latest"}
            mine = (
                [r for r in rows if isinstance(r, dict) and r.get("name") in wanted] if isinstance(rows, list) else []
            )
            return _positive(mine[0].get("context_length")) if mine else None
        for model in self._models():
            if model.get("id") == self.endpoint.model:
                return _positive(model.get("max_model_len"))
        return None

    def trained_context(self) -> int | None:
        """The context the model was trained for, in tokens; None where the server does not say."""
        if self.kind() != "llama.cpp":
            return None
        for model in self._models(optional=True):
            meta = model.get("meta")
            if isinstance(meta, dict):
                return _positive(meta.get("n_ctx_train"))
        return None

    def count_prompt(self, messages: Sequence[Message], params: Mapping[str, Any] | None = None) -> int | None:
        """The exact tokens of `messages` under the server's own chat template; None where it cannot say.

        llama-server counts a chat request itself, or (older ones) renders the template and tokenizes it;
        vLLM tokenizes messages.
        """
        body = {**(params or {}), "model": self.endpoint.model, "messages": [m.as_dict() for m in messages]}
        if self.kind() == "llama.cpp":
            count = _positive(self._optional("POST", "/v1/chat/completions/input_tokens", body).get("input_tokens"))
            if count is not None:
                return count
            prompt = self._optional("POST", "/apply-template", body).get("prompt")
            if not isinstance(prompt, str):
                return None
            question = {"content": prompt, "add_special": True, "parse_special": True}
            tokens = self._optional("POST", "/tokenize", question).get("tokens")
            return len(tokens) if isinstance(tokens, list) else None
        if self.kind() == "vllm":
            return _positive(self._optional("POST", "/tokenize", body).get("count"))
        return None

    def chat(self, messages: Sequence[Message], params: Mapping[str, Any] | None = None) -> Iterator[Delta]:
        """Stream one answer. `params` are further fields of the request (temperature, max_tokens, ...).

        Closing the iterator closes the connection, and the server stops. Raises AnswerCut when the stream
        ends, breaks or reports an error before its finish_reason: a part is never taken for the whole.
        """
        body = {
            **(params or {}),
            "model": self.endpoint.model,
            "messages": [m.as_dict() for m in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.kind() == "llama.cpp":
            body["return_progress"] = True
        finished = False
        with self._failures(), self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            self._check(response)
            try:
                for delta in _deltas(response):
                    finished = finished or delta.finish_reason is not None
                    yield delta
            except httpx.ReadTimeout as e:
                raise AnswerCut("the server fell silent in the middle of its answer") from e
            except httpx.HTTPError as e:
                if not finished:  # after the finish_reason only the counts can be missing
                    raise AnswerCut(f"the connection broke in the middle of the answer: {_why(e)}") from e
        if not finished:
            raise AnswerCut("the answer ended without a finish reason: it may not be whole")

    def _find_kind(self) -> Kind:
        props = self._optional("GET", "/props")
        if isinstance(props.get("default_generation_settings"), dict):
            self._props = props
            return "llama.cpp"
        if "ollama" in self.endpoint.dialects or "Ollama is running" in self._root_text():
            return "ollama"
        owners = {m.get("owned_by") for m in self._models(optional=True)}
        return "vllm" if "vllm" in owners else "other"

    def _root_text(self) -> str:
        try:
            return self._http.get("/", timeout=self._look).text[:100]
        except httpx.HTTPError:
            return ""

    def _models(self, *, optional: bool = False) -> list[dict[str, Any]]:
        body = self._optional("GET", "/v1/models") if optional else self._ask("GET", "/v1/models")
        rows = body.get("data")
        return [r for r in rows if isinstance(r, dict)] if isinstance(rows, list) else []

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        with self._failures(), self._http.stream(method, path, json=body, timeout=self._look) as response:
            self._check(response)
            return read_json(_bounded(response), f"the answer of {self.endpoint.base_url}{path}")

    def _optional(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the server says to a question it need not understand; empty when it does not."""
        try:
            return self._ask(method, path, body)
        except MiyabiError:
            return {}

    def _check(self, response: httpx.Response) -> None:
        if response.status_code == 200:
            return
        try:
            body = read_json(_bounded(response), "")
        except NetworkError:
            body = {}
        raise refusal(self.endpoint, response.status_code, body, response.headers.get("retry-after"))

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as e:
            raise unreachable(self.endpoint, _why(e)) from e


def base_url(text: str) -> str:
    """A server's address as a person types it, without a trailing `/` or `/v1`. Raises BadUsage."""
    hint = "Addresses look like http://127.0.0.1:8080 or https://HOST/v1."
    try:
        parts = urlsplit(text.strip())
        parts.port  # noqa: B018 - raises on a port that is none
    except ValueError as e:
        raise BadUsage(f"not an address: {text[:200]!r}: {e}", hint=hint) from e
    if parts.scheme not in ("http", "https") or not parts.hostname or any(c.isspace() for c in text.strip()):
        raise BadUsage(f"not an address: {text[:200]!r}", hint=hint)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise BadUsage("an address holds no key, query or fragment", hint="Name the key's variable with --key-env.")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def is_local(url: str) -> bool:
    """Whether `url` names this machine or a private address, by its text alone: no name is looked up."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_link_local


def _deltas(response: httpx.Response) -> Iterator[Delta]:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":  # a server that does not stream, or an error that came with status 200
        yield read_chunk(read_json(_bounded(response), "the server's answer"))
        return
    if kind != "text/event-stream":
        raise NetworkError(f"the server answered with {kind or 'no content type'}: not an OpenAI-compatible chat API")
    parser = SseParser()
    for piece in response.iter_raw():
        for event in parser.feed(piece):
            if event.data.strip() == "[DONE]":
                return
            body = read_json(event.data, "a piece of the server's answer")
            if event.event == "error":
                raise stream_error(body)
            yield read_chunk(body)


def _bounded(response: httpx.Response) -> bytes:
    body = bytearray()
    for piece in response.iter_raw():
        body += piece
        if len(body) > LIMIT:
            raise NetworkError(f"the server's answer has more than {LIMIT:,} bytes")
    return bytes(body)


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _why(e: httpx.HTTPError) -> str:
    return str(e) or type(e).__name__
