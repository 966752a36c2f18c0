"""What can be asked of a running embedded server: its version and its one model."""

from __future__ import annotations

from typing import Any

from miyabi_llm.backends.base import ModelState
from miyabi_llm.backends.wire import Wire
from miyabi_llm.errors import ServerFailed
from miyabi_llm.types import Endpoint


class EmbeddedControl(Wire):
    """A control with one model, which is loaded as long as the server runs."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__("embedded", endpoint)

    def version(self) -> str:
        """`llama-cpp-python 0.3.36`. Raises NetworkError, ServerFailed while it loads."""
        told = self.get("/props")
        return str(told.get("build_info", "")) if isinstance(told, dict) else ""

    def models(self) -> tuple[ModelState, ...]:
        """The one model; it is `loading` until the server is ready."""
        try:
            told = self.get("/v1/models")
        except ServerFailed as e:
            if e.details.get("status") == 503:
                return (ModelState(self.endpoint.model, "loading"),)
            raise
        rows = told.get("data") if isinstance(told, dict) else None
        known = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        return tuple(ModelState(str(row.get("id")), "loaded", ctx=_ctx(row)) for row in known)


def _ctx(row: dict[str, Any]) -> int | None:
    meta = row.get("meta")
    ctx = meta.get("n_ctx") if isinstance(meta, dict) else None
    return ctx if isinstance(ctx, int) else None
