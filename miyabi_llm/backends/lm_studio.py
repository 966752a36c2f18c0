"""LM Studio: models handed to its own daemon, by its `lms` command and its REST interface."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from miyabi_llm.backends.base import Capabilities, Detected, InstallOptions, Unsupported, Way, client_url
from miyabi_llm.backends.llama_cpp import DEFAULT_CTX, model_files
from miyabi_llm.backends.lm_studio_place import GREETING, INSTALL_HINT, PORT, find_lms, find_running, inspect
from miyabi_llm.config import Settings
from miyabi_llm.errors import BackendMissing
from miyabi_llm.proc.ports import is_loopback
from miyabi_llm.tools.program import Program, Unusable
from miyabi_llm.types import Endpoint, Format, LaunchPlan, OnEvent, ServeSpec

if TYPE_CHECKING:
    from miyabi_llm.backends.base import Control

OPEN = "LM Studio demands no key of ours: every program on this machine can use it; its tokens are made in its settings"


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
        running, reason = find_running(settings)
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
