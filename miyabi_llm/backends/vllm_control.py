"""Commands to a running vLLM: its adapters come and go, and the model sleeps where the server was started with it."""

from __future__ import annotations

from typing import Any, Literal

from miyabi_llm.backends import vllm_model
from miyabi_llm.backends.base import ModelState, Unsupported
from miyabi_llm.backends.wire import LOAD_S, Wire
from miyabi_llm.errors import BadUsage, ModelMissing, ServerFailed
from miyabi_llm.types import OnEvent, ServeSpec

START_HINT = "Start it anew: `miyabi-llm serve` with {}."


class VllmControl(Wire):
    """`/v1/load_lora_adapter`, `/sleep`, `/wake_up`: each is there only in a server that was started with it."""

    def version(self) -> str:
        """Its version."""
        said = self.get("/version")
        version = said.get("version") if isinstance(said, dict) else None
        return version if isinstance(version, str) else ""

    def models(self) -> tuple[ModelState, ...]:
        """The model and its adapters."""
        asleep = self.sleeping()
        state: Literal["sleeping", "loaded"] = "sleeping" if asleep else "loaded"
        return tuple(ModelState(row["id"], state, ctx=_number(row.get("max_model_len"))) for row in self._rows())

    def sleeping(self) -> bool | None:
        """Whether the model sleeps; None in a server that cannot."""
        try:
            said = self.get("/is_sleeping")
        except ServerFailed as e:
            if e.details.get("status") == 404:
                return None
            raise
        return bool(said.get("is_sleeping")) if isinstance(said, dict) else None

    def load(self, name: str, *, ctx: int | None = None, keep_s: float | None = None) -> ModelState:
        """Wake the model up. An adapter is there already, or comes by `add`."""
        if ctx is not None or keep_s is not None:
            self.cannot("change the context or the idle time of a model while it runs")
        row = self._row(name)
        if self.sleeping():
            self._dev("/wake_up")
            if self.sleeping():
                raise ServerFailed(f"{name}: vLLM did not wake up", hint="`miyabi-llm logs` says why.")
        return ModelState(name, "loaded", ctx=_number(row.get("max_model_len")))

    def unload(self, name: str) -> None:
        """Take an adapter away; put the model itself to sleep, its weights in the machine's memory."""
        row = self._row(name)
        if row.get("parent") is not None:
            self._lora("/v1/unload_lora_adapter", {"lora_name": name})
        elif self.sleeping() is None:
            raise Unsupported(
                f"{name}: this vLLM was started without sleep, and cannot let go of its one model",
                hint="`miyabi-llm stop` ends it. Sleep needs a GPU and an idle time at its start.",
            )
        else:
            self._dev("/sleep?level=1")

    def add(self, spec: ServeSpec, on_event: OnEvent) -> str:
        """Load a LoRA adapter of our store under the spec's alias; a second model needs a second server."""
        if spec.artifact.format != "adapter":
            self.cannot("take another model while it runs")
        if "adapter_config.json" not in spec.files:
            raise BadUsage(f"{spec.artifact.ref} is no adapter in peft's layout", hint="vLLM takes no GGUF adapters.")
        self._lora("/v1/load_lora_adapter", {"lora_name": spec.alias, "lora_path": str(vllm_model.folder(spec.files))})
        return spec.alias

    def _lora(self, path: str, body: dict[str, str]) -> None:
        try:
            self.post(path, body, timeout=LOAD_S)
        except ServerFailed as e:
            if e.details.get("status") == 404 and "Not Found" in e.message:  # the path, not the adapter
                raise Unsupported(
                    "this vLLM was started without adapters that come and go",
                    hint=START_HINT.format("--lora NAME=FOLDER"),
                ) from e
            raise

    def _dev(self, path: str) -> None:
        self.post(path, {}, timeout=LOAD_S)

    def _row(self, name: str) -> dict[str, Any]:
        rows = self._rows()
        for row in rows:
            if row["id"] == name:
                return row
        known = ", ".join(row["id"] for row in rows)
        raise ModelMissing(f"{self.endpoint.base_url} does not know {name!r}", hint=f"It knows: {known}.")

    def _rows(self) -> list[dict[str, Any]]:
        said = self.get("/v1/models")
        rows = said.get("data") if isinstance(said, dict) else None
        found = rows if isinstance(rows, list) else []
        return [row for row in found if isinstance(row, dict) and isinstance(row.get("id"), str)]


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
