"""LM Studio: models handed to its own daemon, by its `lms` command and its REST interface."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from miyabi_llm.backends.base import Capabilities, Detected, InstallOptions, Unsupported, Way, client_url
from miyabi_llm.backends.llama_cpp import DEFAULT_CTX, model_files
from miyabi_llm.backends.near import answers, on_path
from miyabi_llm.config import Settings
from miyabi_llm.errors import BackendMissing
from miyabi_llm.proc.ports import is_loopback
from miyabi_llm.tools.program import Program, Unusable, run_briefly
from miyabi_llm.types import Endpoint, Format, LaunchPlan, OnEvent, Secret, ServeSpec

if TYPE_CHECKING:
    from miyabi_llm.backends.base import Control

PROGRAM = "lms"
PORT = 1234  # its own default
GREETING = "/lmstudio-greeting"
TOKEN = "LM_API_TOKEN"  # the variable its documentation uses for a token made in its settings
OPEN = "LM Studio demands no key of ours: every program on this machine can use it; its tokens are made in its settings"
VERSION_S = 2.0  # seconds `lms` may take to say its version
INSTALL_HINT = "Run `miyabi-llm backend install lm-studio`: it installs it, or says how."


CAPABILITIES = Capabilities(
    dialects=("openai", "anthropic"),
    attach=True,
    several=True,
    load=True,
    unload=True,
    context=True,
    verified="stand-in",
    limits=(
        "not run against the real program here: written from its sources, tested with a stand-in",
        "it is a daemon of its own: woken when needed, it goes on after us, and neither `ps` nor `stop` knows it",
        "no key of ours: its tokens are made in its own settings and read from LM_API_TOKEN",
        "one server per user: a second one on another port is not possible",
        "with one model loaded it answers to any model name: we look at its list, not at its answers",
        "no LoRA adapters, no KV cache type, no thread count; LM Studio 0.4 or newer for load and unload",
    ),
)


@dataclass(frozen=True, slots=True)
class LmStudio:
    """A daemon of its own: we wake it, and it goes on after us. Not run against the real program here."""

    name: str = "lm-studio"
    accepts: frozenset[Format] = frozenset({"gguf"})
    capabilities: Capabilities = CAPABILITIES

    def detect(self, settings: Settings) -> Detected:
        """`lms` on PATH or in LM Studio's own folder, and the server where it last ran."""
        running, reason = _running(settings)
        path = find_lms(settings.env.get("PATH", ""), settings.user_home)
        if path is None:
            said = "it runs, but its command `lms` is not found" if running else "is not installed"
            return Detected(self.name, False, said, running=running)
        program = inspect(path, settings)
        if isinstance(program, Unusable):
            return Detected(self.name, False, f"{path} {program.reason}", rejected=(program,), running=running)
        return Detected(self.name, not reason, reason, program=program, running=running, version=program.version)

    def plan(self, spec: ServeSpec, found: Detected) -> LaunchPlan:
        """Attach to the server, waking it first when it does not run; the model is handed over by `lms`.

        Raises BackendMissing without `lms`, BadUsage without a GGUF file, Unsupported for what LM Studio cannot do.
        """
        if found.program is None:
            raise BackendMissing("`lms`, the command of LM Studio, is not installed", hint=INSTALL_HINT)
        _refuse(spec, found.running)
        model_files(spec.files)
        ctx = DEFAULT_CTX if spec.ctx is None else spec.ctx
        notes = (OPEN,) if spec.key else ()
        spec = replace(spec, ctx=ctx, key=None)
        wake: tuple[tuple[str, ...], ...] = ()
        if found.running is not None:
            endpoint = replace(found.running, model=spec.alias)
        else:
            port = PORT if spec.attach else spec.port  # another one would be remembered as the user's own choice
            wake = ((*found.program.argv, "server", "start", "--port", str(port), "--bind", spec.host),)
            url = client_url(spec.host, port)
            endpoint = Endpoint(url, spec.alias, self.capabilities.dialects, backend=self.name)
        return LaunchPlan(
            self.name, None, {}, endpoint, health_path=GREETING, ctx=ctx, wake=wake, handover=spec, notes=notes
        )  # fmt: skip

    def ways(self, system: str) -> tuple[Way, ...]:
        """The package manager where there is one, and its own installer by hand."""
        once = "start LM Studio once: that puts `lms` into ~/.lmstudio/bin"
        page = "https://lmstudio.ai/download"
        managers = {
            "Darwin": (Way("package manager", ("brew", "install", "--cask", "lm-studio"), once),),
            "Windows": (Way("package manager", ("winget", "install", "ElementLabs.LMStudio"), once),),
        }
        script = "install.ps1" if system == "Windows" else "install.sh"
        headless = f"without a screen: read https://lmstudio.ai/{script}, then run it yourself"
        return (
            *managers.get(system, ()),
            Way("by hand", (), f"the app from {page}; {once}"),
            Way("by hand", (), headless),
        )

    def install(self, settings: Settings, on_event: OnEvent, options: InstallOptions) -> Program:
        """By the machine's package manager. Raises BackendMissing with the steps where there is none."""
        from miyabi_llm.backends import managed

        return managed.install(self, settings, on_event)

    def control(self, endpoint: Endpoint) -> Control:
        """Its models: list, import, load, unload."""
        from miyabi_llm.backends.lm_studio_api import LmStudioControl

        return LmStudioControl(self.name, endpoint)


def find_lms(path: str | None, home: Path) -> Path | None:
    """`lms` in the folders of `path` (None: this process's PATH), else where LM Studio puts it."""
    return on_path(PROGRAM, path, home / ".lmstudio/bin/lms", home / ".cache/lm-studio/bin/lms")


def inspect(path: Path, settings: Settings) -> Program | Unusable:
    """Whether `path` is LM Studio's `lms`: others have that name too. Asking does not wake the daemon."""
    said = run_briefly((str(path), "version", "--json"), timeout=VERSION_S, env=settings.env)
    if said.trouble:
        return Unusable(PROGRAM, path, said.trouble)
    version = read_version(said.text)
    if said.code != 0 or version is None:
        return Unusable(PROGRAM, path, "is not LM Studio's: `lms version --json` says no version")
    return Program(PROGRAM, path, (str(path),), version, "path")


def read_version(text: str) -> str | None:
    """The version in `{"version": "…"}`, its last line; None when it is none. Pure."""
    try:
        said = json.loads((text.strip().splitlines() or [""])[-1])
    except (ValueError, RecursionError):
        return None
    version = said.get("version") if isinstance(said, dict) else None
    return version if isinstance(version, str) else None


def read_port(text: str) -> int:
    """The port its server last had, from `http-server-config.json`; its default when that says none. Pure."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return PORT
    port = said.get("port") if isinstance(said, dict) else None
    return port if isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536 else PORT


def _running(settings: Settings) -> tuple[Endpoint | None, str]:
    """The server where it last ran, and why it cannot be used. Never raises."""
    url = f"http://127.0.0.1:{_last_port(settings.user_home)}"
    status, said = answers(url, GREETING)
    if status != 200 or not isinstance(said, dict) or said.get("lmstudio") is not True:
        return None, ""
    endpoint = Endpoint(url, "", ("openai", "anthropic"), backend="lm-studio")
    if answers(url, "/v1/models")[0] not in (401, 403):
        return endpoint, ""
    token = settings.env.get(TOKEN)
    if not token:
        return endpoint, f"asks for a token: make one in its server settings and put it into {TOKEN}"
    refused = answers(url, "/v1/models", token=token)[0] in (401, 403)
    return replace(endpoint, key=Secret(token)), f"refuses the token in {TOKEN}" if refused else ""


def _last_port(home: Path) -> int:
    for folder in (".lmstudio", ".cache/lm-studio"):
        try:
            with (home / folder / ".internal/http-server-config.json").open(encoding="utf-8") as file:
                return read_port(file.read(1 << 16))
        except (OSError, UnicodeDecodeError):
            continue
    return PORT


def _refuse(spec: ServeSpec, running: Endpoint | None) -> None:
    where = "Use `--backend llama-cpp`."
    if running is not None and not spec.attach:
        hint = "Leave out --port, or run `lms server stop` first."
        raise Unsupported(f"LM Studio has one server, and it runs on {running.base_url}", hint=hint)
    if not is_loopback(spec.host):
        raise Unsupported("LM Studio is opened to other machines in its own settings, not by us", hint=where)
    if spec.adapters or spec.kv_type:
        what = "LoRA adapters" if spec.adapters else "a KV cache type"
        raise Unsupported(f"LM Studio takes no {what}", hint=where)
    if spec.nodes > 1:
        raise Unsupported("LM Studio serves on one machine", hint="Use `--backend vllm --nodes N`.")
