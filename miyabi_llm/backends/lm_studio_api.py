"""Commands to a running LM Studio: its REST interface, and `lms` for what that cannot do."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from miyabi_llm.backends.base import ModelState
from miyabi_llm.backends.llama_cpp import model_files
from miyabi_llm.backends.lm_studio_place import GREETING, INSTALL_HINT, find_lms
from miyabi_llm.backends.near import refuse_far
from miyabi_llm.backends.wire import LOAD_S, LOOK_S, Wire, words_of
from miyabi_llm.errors import BackendMissing, ModelMissing, ServerFailed
from miyabi_llm.proc.ports import is_loopback
from miyabi_llm.tools.command import complete
from miyabi_llm.types import Endpoint, Event, OnEvent, ServeSpec

OURS = "miyabi-llm"  # our publisher's name in its models folder
TTL = 3600.0  # seconds without a request until it unloads a model: its own default for models loaded on demand
IMPORT_S = 300.0  # seconds an import may take: it makes a link
APPEARS_S = 15.0  # seconds until an imported model is in its list
_DAEMON = re.compile(r"\bv(\d+\.\d+\S*) is running")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class LmStudioControl(Wire):
    """`/api/v1/models`, `…/load`, `…/unload`; `lms import`, `lms load`, `lms daemon status`."""

    def __init__(self, backend: str, endpoint: Endpoint) -> None:
        refuse_far(endpoint.base_url)
        super().__init__(backend, endpoint)

    def version(self) -> str:
        """What its daemon says through `lms`: there is no page for it."""
        said = _DAEMON.search(self._lms("daemon", "status", timeout=LOOK_S))
        if said is None:
            self.cannot("tell its version")
        return said[1]

    def models(self) -> tuple[ModelState, ...]:
        """Every model on its disk; one row for each loaded instance, under the name clients use."""
        try:
            return read_models(self._said(self.get("/api/v1/models")))
        except ServerFailed as e:
            if "unexpected endpoint" not in e.message.lower() and e.details.get("status") != 404:
                raise
        return read_old_models(self._said(self.get("/api/v0/models")))  # before 0.4

    def load(self, name: str, *, ctx: int | None = None, keep_s: float | None = None) -> ModelState:
        """Have a model in memory: one of ours by the name it had here, or any by its key."""
        before = self._find(name)
        if before is not None and before.state == "loaded":
            if keep_s is None and ctx in (None, before.ctx):
                return before
            self.unload(name)  # a second load would be a second instance beside it
        if self._lms_here() is not None and (path := self._path_of(name)):
            self._load(path, name, ctx, keep_s)
        elif before is None and self._find(name) is None:
            raise ModelMissing(f"LM Studio does not know {name!r}", hint="`lms ls` lists what it has.")
        elif keep_s:
            self._lms("load", name, "--yes", *_load_words(ctx, keep_s), timeout=LOAD_S)
        else:
            body = {"model": name, "echo_load_config": True} | ({} if ctx is None else {"context_length": ctx})
            answer = self._said(self.post("/api/v1/models/load", body, timeout=LOAD_S))
            return read_loaded(name, answer)
        return self._find(name) or ModelState(name, "loaded")

    def unload(self, name: str) -> None:
        """Free the memory of a loaded instance."""
        self._said(self.post("/api/v1/models/unload", {"instance_id": name}, timeout=60.0))

    def add(self, spec: ServeSpec, on_event: OnEvent) -> str:
        """Import a model of our store as a link and load it under `spec.alias`, with its context and idle time."""
        said = self.get(GREETING)
        if not isinstance(said, dict) or said.get("lmstudio") is not True:
            raise ServerFailed(f"{self.endpoint.base_url} is no LM Studio", hint="Use another port with --port.")
        path = f"{repository(spec)}/{model_files(spec.files)[0].name}"
        there = self._find(spec.alias)
        if there is not None and there.state == "loaded":
            if there.ctx == spec.ctx and self._is(spec.alias, path):
                return spec.alias
            self.unload(spec.alias)
        self._import(spec, on_event)
        on_event(Event("phase", "load", f"{spec.alias} in LM Studio"))
        self._load(path, spec.alias, spec.ctx, TTL if spec.keep_s is None else spec.keep_s, *spec.extra)
        return spec.alias

    def _import(self, spec: ServeSpec, on_event: OnEvent) -> None:
        for name, file in spec.files.items():
            if not name.lower().endswith(".gguf"):
                continue
            on_event(Event("phase", "import", f"{name} into LM Studio, as a link"))
            words = ("import", str(file), "--yes", "--user-repo", repository(spec))
            for kind in ("--hard-link", "--symbolic-link"):  # the second across file systems
                code, said = self._try(*words, kind, timeout=IMPORT_S)
                if code == 0 or "already exists" in said:  # its name holds the hash: the same bytes
                    break
                if "EXDEV" not in said and "cross-device" not in said:
                    raise ServerFailed(
                        f"`lms import` failed: {said[-500:]}", hint="`miyabi-llm link REF --to lm-studio`"
                    )
            else:
                raise ServerFailed(
                    f"`lms import` could not link {name}: {said[-500:]}", hint="Is its disk another one?"
                )

    def _load(self, path: str, alias: str, ctx: int | None, keep_s: float | None, *more: str) -> None:
        words = ("load", path, "--exact", "--identifier", alias, "--yes", *_load_words(ctx, keep_s), *more)
        deadline = time.monotonic() + APPEARS_S
        while True:
            code, said = self._try(*words, timeout=LOAD_S)
            if code == 0:
                return
            if "being exactly" not in said or time.monotonic() > deadline:  # it has not seen the new file yet
                raise ServerFailed(
                    f"LM Studio could not load {alias}: {said[-500:]}", hint="`lms log stream` says more."
                )
            time.sleep(0.25)

    def _is(self, alias: str, path: str) -> bool:
        """Whether the instance `alias` runs our file: the list says its publisher, `lms ps` its path."""
        rows = _rows(_json(self._lms("ps", "--json", timeout=LOOK_S)))
        return any(row.get("identifier") == alias and row.get("path") == path for row in rows)

    def _path_of(self, alias: str) -> str | None:
        """Where the model that we imported as `alias` lies in its models folder."""
        start = f"{OURS}/{slug(alias)}-"
        rows = _rows(_json(self._lms("ls", "--json", timeout=LOOK_S)))
        paths = [row["path"] for row in rows if isinstance(row.get("path"), str)]
        return next((p for p in paths if re.fullmatch(re.escape(start) + r"[0-9a-f]{12}/[^/]+", p)), None)

    def _find(self, name: str) -> ModelState | None:
        return next((m for m in self.models() if m.name == name), None)

    def _said(self, answer: Any) -> Any:
        """The answer, unless it is an error that comes with status 200, as its do."""
        if isinstance(answer, dict) and answer.get("error"):
            words = words_of(answer) or "an error without words"
            raise ServerFailed(f"{self.endpoint.base_url} says: {words}", status=200)
        return answer

    def _lms_here(self) -> Path | None:
        """`lms`, which knows the daemon of this machine only; None for a server of another one."""
        here = is_loopback(urlsplit(self.endpoint.base_url).hostname or "")
        return find_lms(None, Path.home()) if here else None

    def _lms(self, *words: str, timeout: float) -> str:
        code, said = self._try(*words, timeout=timeout)
        if code != 0:
            raise ServerFailed(f"`lms {' '.join(words)}` failed: {said[-500:]}")
        return said

    def _try(self, *words: str, timeout: float) -> tuple[int | None, str]:
        program = self._lms_here()
        if program is None:
            raise BackendMissing("`lms`, the command of LM Studio, is not on its machine", hint=INSTALL_HINT)
        ran = complete((str(program), *words), timeout=timeout)
        return ran.code, _COLOUR.sub("", f"{ran.text.strip()} {ran.trouble or ''}".strip())


def slug(alias: str) -> str:
    """A name as one folder of its models: letters, digits, dots, dashes. Pure."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", alias).strip("-")[:60] or "model"


def repository(spec: ServeSpec) -> str:
    """PUBLISHER/FOLDER of a model of ours: its name and the start of its hash: one name, one thing. Pure."""
    model = model_files(spec.files)[0]
    names = {name for name, path in spec.files.items() if path == model}
    sha = next((f.sha256 for f in spec.artifact.files if f.name in names), "0" * 64)
    return f"{OURS}/{slug(spec.alias)}-{sha[:12]}"


def read_models(answer: Any) -> tuple[ModelState, ...]:
    """`GET /api/v1/models`; rows it does not promise are passed over. Pure."""
    return tuple(state for row in _rows(answer, "models") for state in _states(row))


def read_old_models(answer: Any) -> tuple[ModelState, ...]:
    """`GET /api/v0/models`, of LM Studio before 0.4. Pure."""
    rows = (row for row in _rows(answer, "data") if isinstance(row.get("id"), str))
    return tuple(
        ModelState(
            row["id"],
            "loaded" if row.get("state") == "loaded" else "unloaded",
            ctx=_count(row.get("loaded_context_length")),
        )
        for row in rows
    )


def read_loaded(name: str, answer: Any) -> ModelState:
    """The answer to a load: `{"instance_id", "status": "loaded", "load_config": {"context_length"}}`. Pure.

    Raises ServerFailed when it says anything else.
    """
    if not isinstance(answer, dict) or answer.get("status") != "loaded":
        raise ServerFailed(f"{name}: LM Studio answers a load with something else: {str(answer)[:200]}")
    instance, config = answer.get("instance_id"), answer.get("load_config")
    ctx = _count(config.get("context_length")) if isinstance(config, dict) else None
    return ModelState(instance if isinstance(instance, str) else name, "loaded", ctx=ctx)


def _states(row: dict[str, Any]) -> Iterator[ModelState]:
    instances = [i for i in _rows(row, "loaded_instances") if isinstance(i.get("id"), str)]
    for instance in instances:
        config = instance.get("config")
        yield ModelState(
            instance["id"], "loaded", ctx=_count(config.get("context_length")) if isinstance(config, dict) else None
        )
    if not instances and isinstance(row.get("key"), str):
        yield ModelState(row["key"], "unloaded")


def _rows(answer: Any, field: str | None = None) -> list[dict[str, Any]]:
    if field is not None:
        answer = answer.get(field) if isinstance(answer, dict) else None
    return [row for row in answer if isinstance(row, dict)] if isinstance(answer, list) else []


def _json(text: str) -> Any:
    """The last line that is JSON: warnings may come before it. None when there is none."""
    for line in reversed(text.splitlines()):
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            continue
    return None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _load_words(ctx: int | None, keep_s: float | None) -> tuple[str, ...]:
    words = () if ctx is None else ("--context-length", str(ctx))
    return (*words, *(("--ttl", str(max(1, round(keep_s)))) if keep_s else ()))
