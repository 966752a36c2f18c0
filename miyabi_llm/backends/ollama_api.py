"""Ollama's own API, typed: what it lists, loads, takes and streams; an error inside a good answer is an error."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from miyabi_llm.backends.base import ModelState
from miyabi_llm.backends.ollama_values import (
    Create,
    Ndjson,
    Row,
    Shown,
    count,
    elsewhere,
    read_row,
    read_rows,
    read_shown,
    read_state,
    refuse_cloud,
    same,
)
from miyabi_llm.backends.wire import LOAD_S, LOOK_S, Wire, parse, words_of
from miyabi_llm.errors import ModelMissing, NetworkError, ServerFailed
from miyabi_llm.types import Endpoint, Event, OnEvent

PULL_SILENT_S = 300.0  # seconds a pull may say nothing
CHUNK = 1 << 20  # bytes sent at a time
UNLOAD_S = 10.0  # seconds until an unloaded model is gone from the list


class OllamaApi(Wire):
    """One Ollama server. NetworkError when it does not answer, ServerFailed with its words when it says no."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__("ollama", endpoint)

    def version(self) -> str:
        """What it says it is, such as 0.30.1; builds from source say 0.0.0."""
        return self.look(LOOK_S)

    def look(self, timeout: float) -> str:
        """`version` with a deadline of its own, in seconds."""
        said = self.get("/api/version", timeout=timeout)
        version = said.get("version") if isinstance(said, dict) else None
        if not isinstance(version, str):
            raise ServerFailed(f"{self.endpoint.base_url} is no Ollama: it tells no version")
        return version

    def tags(self) -> tuple[Row, ...]:
        """Every model it has, those that run elsewhere too."""
        rows = (read_row(r) for r in read_rows(self.get("/api/tags")))
        return tuple(row for row in rows if row is not None)

    def running(self) -> tuple[ModelState, ...]:
        """The models in memory, with their size in all and on the GPU, their context and when they go."""
        states = (read_state(r) for r in read_rows(self.get("/api/ps")))
        return tuple(state for state in states if state is not None)

    def show(self, name: str) -> Shown | None:
        """What it says of a model, None when it has none of that name."""
        try:
            return read_shown(self.post("/api/show", {"model": name}))
        except ServerFailed as e:
            if e.details.get("status") == 404:
                return None
            raise

    def cloud_disabled(self) -> bool | None:
        """Whether it is barred from running models elsewhere; None where it does not say (older servers)."""
        try:
            said = self.get("/api/status")
        except ServerFailed:
            return None
        cloud = said.get("cloud") if isinstance(said, dict) else None
        disabled = cloud.get("disabled") if isinstance(cloud, dict) else None
        return disabled if isinstance(disabled, bool) else None

    def has_blob(self, sha256: str) -> bool:
        """Whether the bytes with this hash are in its store."""
        path = f"/api/blobs/sha256:{sha256}"
        with self._failures(path):
            status = self._http.head(path, timeout=LOOK_S).status_code
        if status not in (200, 404):
            raise ServerFailed(f"{self.endpoint.base_url}{path} answers {status}", status=status)
        return status == 200

    def upload(self, sha256: str, path: Path, on_event: OnEvent) -> int:
        """Send the file's bytes; the server hashes them. Returns how many were sent."""
        size, target = path.stat().st_size, f"/api/blobs/sha256:{sha256}"

        def pieces() -> Iterator[bytes]:
            done = 0
            with path.open("rb") as f:
                while chunk := f.read(CHUNK):
                    yield chunk
                    done += len(chunk)
                    on_event(Event("progress", "upload", path.name, done=done, total=size, unit="bytes"))

        headers = {"content-length": str(size), "content-type": "application/octet-stream"}
        with self._failures(target):
            answer = self._http.post(target, content=pieces(), headers=headers, timeout=LOAD_S)
        if answer.status_code not in (200, 201):
            raise self._refusal(target, answer.status_code, answer.content)
        return size

    def create(self, wanted: Create, on_event: OnEvent) -> None:
        """Make a model; returns when the server said success."""
        self._progress("/api/create", wanted.body(), on_event, LOAD_S)

    def pull(self, name: str, on_event: OnEvent) -> None:
        """Have the server fetch a model of its own library. Raises Unsupported for one that runs elsewhere."""
        refuse_cloud(name)
        self._progress("/api/pull", {"model": name, "stream": True}, on_event, PULL_SILENT_S)
        if (shown := self.show(name)) is not None and shown.remote_host:
            self.delete(name)
            raise elsewhere(name, shown.remote_host)

    def delete(self, name: str) -> None:
        """Remove a model, and the bytes no other model needs. Raises ModelMissing."""
        try:
            self._ask("DELETE", "/api/delete", {"model": name}, LOOK_S)
        except ServerFailed as e:
            raise self._missing(e, name) from e

    def generate_nothing(self, name: str, **more: Any) -> str:
        """A request without a prompt: loads the model, or unloads it with keep_alive 0. Returns the done_reason."""
        try:
            said = self.post("/api/generate", {"model": name, "stream": False, **more}, timeout=LOAD_S)
        except ServerFailed as e:
            raise self._missing(e, name) from e
        if words := words_of(said):  # an error that came with status 200
            raise ServerFailed(f"{self.endpoint.base_url}: {words}")
        reason = said.get("done_reason") if isinstance(said, dict) else None
        return reason if isinstance(reason, str) else ""

    def unload(self, name: str) -> None:
        """Free the memory of a model; returns when it is gone, or after some seconds. Raises ModelMissing."""
        if (reason := self.generate_nothing(name, keep_alive=0)) != "unload":
            raise ServerFailed(f"{name}: the server did not unload it, it says {reason!r}")
        deadline = time.monotonic() + UNLOAD_S
        while any(same(s.name, name) for s in self.running()) and time.monotonic() < deadline:
            time.sleep(0.05)

    def rendered(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt the server makes of `messages`, without running it. Loads the endpoint's model.

        Raises ServerFailed when it does not say: servers before 0.12 answer the chat instead.
        """
        body = {"model": self.endpoint.model, "messages": list(messages), "stream": False, "_debug_render_only": True}
        said = self.post("/api/chat", body, timeout=LOAD_S)
        info = said.get("_debug_info") if isinstance(said, dict) else None
        text = info.get("rendered_template") if isinstance(info, dict) else None
        if not isinstance(text, str):
            raise ServerFailed(
                f"{self.endpoint.base_url} does not tell the prompt it renders{': ' + words_of(said) if said else ''}",
                hint="Update Ollama.",
            )
        return text

    def _progress(self, path: str, body: Mapping[str, Any], on_event: OnEvent, silent_s: float) -> None:
        """POST and hear the lines to the end. The last must say success."""
        lines, last = Ndjson(), ""
        timeout = httpx.Timeout(LOOK_S, read=silent_s)
        with self._failures(path), self._http.stream("POST", path, json=dict(body), timeout=timeout) as response:
            if response.status_code != 200:
                raise self._refusal(path, response.status_code, response.read())
            for piece in response.iter_bytes():
                for said in lines.feed(piece):
                    last = self._heard(path, said, last, on_event)
        for said in lines.finish():
            last = self._heard(path, said, last, on_event)
        if last != "success":
            told = f"; its last words were {last!r}" if last else ""
            raise ServerFailed(f"{self.endpoint.base_url}{path} ended before it said success{told}")

    def _heard(self, path: str, said: Mapping[str, Any], last: str, on_event: OnEvent) -> str:
        if words := words_of(said):
            raise ServerFailed(f"{self.endpoint.base_url}{path}: {words}", hint="The server's log may say more.")
        if "error" in said:
            raise ServerFailed(f"{self.endpoint.base_url}{path}: an error without words: {str(said)[:200]}")
        status = said.get("status")
        status = status if isinstance(status, str) else ""
        total, done = count(said.get("total")), count(said.get("completed"))
        if total:
            on_event(Event("progress", status, done=min(done or 0, total), total=total, unit="bytes"))
        elif status and status not in (last, "success"):
            on_event(Event("phase", "ollama", status))
        return status

    def _failures(self, path: str) -> _Failures:
        return _Failures(f"{self.endpoint.base_url}{path}")

    def _refusal(self, path: str, status: int, body: bytes) -> ServerFailed:
        words = words_of(parse(body)) or body[:300].decode("utf-8", "replace")
        return ServerFailed(f"{self.endpoint.base_url}{path} answers {status}: {words}", status=status)

    def _missing(self, e: ServerFailed, name: str) -> ServerFailed | ModelMissing:
        if e.details.get("status") != 404:
            return e
        return ModelMissing(f"{self.endpoint.base_url} has no model {name!r}", hint="`ollama list` shows those it has.")


class _Failures:
    """While the block runs, what the HTTP library raises becomes a NetworkError that names the address."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: object) -> None:
        if isinstance(e, httpx.HTTPError):
            raise NetworkError(f"{self._url}: {e or type(e).__name__}", hint="Is it running? `ollama ps`") from e


def rendered(endpoint: Endpoint, messages: Sequence[Mapping[str, Any]]) -> str:
    """The prompt Ollama makes of `messages` for the endpoint's model: to compare templates before they are trusted."""
    with OllamaApi(endpoint) as api:
        return api.rendered(messages)
