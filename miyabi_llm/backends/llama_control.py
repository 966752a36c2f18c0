"""Commands to a running llama-server: one model, or several where it runs as a router."""

from __future__ import annotations

import time
from typing import Any, Literal

from miyabi_llm.backends.base import ModelState
from miyabi_llm.backends.wire import LOAD_S, Wire
from miyabi_llm.errors import ModelMissing, ServerFailed

States = Literal["unloaded", "loading", "loaded", "sleeping", "failed"]
_STATES: dict[str, States] = {
    "unloaded": "unloaded",
    "downloading": "loading",
    "loading": "loading",
    "loaded": "loaded",
    "sleeping": "sleeping",
    "failed": "failed",
}
POLL = 0.05  # seconds between looks at a model that loads


class LlamaControl(Wire):
    """`/props`, `/models`, `/models/load`, `/models/unload`: the last two of a router only."""

    def version(self) -> str:
        """Its build, as `/props` says it."""
        said = self.get("/props")
        build = said.get("build_info") if isinstance(said, dict) else None
        return build if isinstance(build, str) else ""

    def models(self) -> tuple[ModelState, ...]:
        """A router's models by their status; the one model of a plain server is loaded."""
        rows = self.get("/models")
        found = rows.get("data") if isinstance(rows, dict) else None
        return tuple(state for row in found or () if (state := _state(row)) is not None)

    def load(self, name: str, *, ctx: int | None = None, keep_s: float | None = None) -> ModelState:
        """Load a model of the router's preset and wait for it; its context and idle time stand in the preset."""
        if ctx is not None or keep_s is not None:
            self.cannot("change the context or the idle time of a model while it runs")
        if (now := self._one(name)).state == "loaded":
            return now
        self._command("/models/load", name)
        deadline = time.monotonic() + LOAD_S
        while time.monotonic() < deadline:
            if (now := self._one(name)).state == "loaded":
                return now
            if now.state in ("failed", "unloaded"):
                raise ServerFailed(f"{name}: llama-server could not load it", hint="`miyabi-llm logs` says why.")
            time.sleep(POLL)
        raise ServerFailed(f"{name}: not loaded after {LOAD_S:g} s", hint="`miyabi-llm logs` says why.")

    def unload(self, name: str) -> None:
        """Unload a model of the router."""
        self._one(name)
        self._command("/models/unload", name)

    def _command(self, path: str, name: str) -> None:
        try:
            self.post(path, {"model": name}, timeout=LOAD_S)
        except ServerFailed as e:
            if e.details.get("status") == 404:  # a plain server does not know the path
                self.cannot("change its one model while it runs")
            raise

    def _one(self, name: str) -> ModelState:
        models = self.models()
        for state in models:
            if state.name == name:
                return state
        known = ", ".join(s.name for s in models)
        raise ModelMissing(f"{self.endpoint.base_url} does not know {name!r}", hint=f"It knows: {known}.")


def _state(row: Any) -> ModelState | None:
    """One row of `/models`; None when it is not one. Pure."""
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        return None
    status = row.get("status")
    value = status.get("value") if isinstance(status, dict) else "loaded"
    state = _STATES.get(value if isinstance(value, str) else "", "unloaded")
    if isinstance(status, dict) and status.get("failed"):
        state = "failed"
    meta = row.get("meta")
    ctx = meta.get("n_ctx") if isinstance(meta, dict) else None
    return ModelState(row["id"], state, ctx=ctx if isinstance(ctx, int) else None)
