"""Commands to a running LocalAI: what it knows, what it holds, loading and unloading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from miyabi_llm.backends.base import ModelState
from miyabi_llm.backends.near import refuse_far
from miyabi_llm.backends.wire import LOAD_S, Wire
from miyabi_llm.errors import MiyabiError, ModelMissing, ServerFailed
from miyabi_llm.types import Endpoint, OnEvent, ServeSpec

ENGINE_MISSING = "backend not found"  # its words when the engine of a model is not installed


class LocalAIControl(Wire):
    """`/v1/models`, `/system`, `/backend/monitor`, `/backend/load`, `/backend/shutdown`, `/version`."""

    def __init__(self, backend: str, endpoint: Endpoint) -> None:
        refuse_far(endpoint.base_url)
        super().__init__(backend, endpoint)

    def version(self) -> str:
        """Its release and commit."""
        said = self.get("/version")
        version = said.get("version") if isinstance(said, dict) else None
        if not isinstance(version, str):
            raise ServerFailed(f"{self.endpoint.base_url} is no LocalAI: it tells no version")
        return version

    def models(self) -> tuple[ModelState, ...]:
        """Every model it offers; those in memory with what their engine says it uses."""
        loaded = set(read_names(self.get("/system"), "loaded_models"))
        names = read_names(self.get("/v1/models"), "data")
        return tuple(self._state(name) if name in loaded else ModelState(name, "unloaded") for name in names)

    def load(self, name: str, *, ctx: int | None = None, keep_s: float | None = None) -> ModelState:
        """Have a model in memory; returns when it is. Its context stands in its configuration."""
        if ctx is not None or keep_s is not None:
            self.cannot("change the context or the idle time of a model while it runs")
        self._known(name)
        self._load(name)
        return self._state(name)

    def unload(self, name: str) -> None:
        """Free the memory of a model; one that is not loaded is left alone."""
        self._known(name)
        try:
            self.post("/backend/shutdown", {"model": name}, timeout=60.0)
        except ServerFailed as e:
            if e.details.get("status") == 404 and name not in read_names(self.get("/system"), "loaded_models"):
                return
            raise

    def add(self, spec: ServeSpec, on_event: OnEvent) -> str:
        """Load a model whose configuration it was started with. Raises Unsupported for any other."""
        if spec.alias not in read_names(self.get("/v1/models"), "data"):
            self.cannot("take another model while it runs: it reads its models folder at its start")
        try:
            self._load(spec.alias)
        except ServerFailed as e:
            if e.details.get("status") != 404:  # an older one has no such page: the first request loads
                raise
        return spec.alias

    def _load(self, name: str) -> None:
        try:
            self.post("/backend/load", {"model": name}, timeout=LOAD_S)
        except ServerFailed as e:
            if ENGINE_MISSING in e.message:
                hint = "`local-ai backends install llama-cpp`, with the --backends-path that `--dry-run` shows."
                raise ServerFailed(e.message, hint=hint, **e.details) from e
            raise

    def _known(self, name: str) -> None:
        names = read_names(self.get("/v1/models"), "data")
        if name not in names:
            known = f"It knows: {', '.join(names)}." if names else "It knows none."
            raise ModelMissing(f"{self.endpoint.base_url} does not know {name!r}", hint=known)

    def _state(self, name: str) -> ModelState:
        from urllib.parse import quote

        try:
            said = self.get(f"/backend/monitor?model={quote(name, safe='')}")
        except MiyabiError:  # it went meanwhile, or its engine tells nothing
            return ModelState(name, "loaded")
        return read_status(name, said)


def read_names(answer: Any, field: str) -> tuple[str, ...]:
    """The `id`s of the rows under `field`; whatever is no such row is passed over. Pure."""
    return tuple(row["id"] for row in _rows(answer, field) if isinstance(row.get("id"), str))


def read_status(name: str, answer: Any) -> ModelState:
    """What `/backend/monitor` says: `{"state": 2, "memory": {"total": BYTES, "breakdown": {…}}}`. Pure.

    States: 0 (left out) uninitialised, 1 busy, 2 ready, -1 error. Where the engine does not answer LocalAI samples its
    process: what is resident counts then, not the address space.
    """
    memory = answer.get("memory") if isinstance(answer, dict) else None
    parts = memory.get("breakdown") if isinstance(memory, dict) else None
    resident = _count(parts.get("gopsutil-RSS")) if isinstance(parts, dict) else None
    used = resident or (_count(memory.get("total")) if isinstance(memory, dict) else None)
    failed = isinstance(answer, dict) and answer.get("state") == -1 and resident is None
    return ModelState(name, "failed" if failed else "loaded", memory=used)


def _rows(answer: Any, field: str) -> Iterator[dict[str, Any]]:
    rows = answer.get(field) if isinstance(answer, dict) else None
    yield from (row for row in (rows if isinstance(rows, list) else ()) if isinstance(row, dict))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
