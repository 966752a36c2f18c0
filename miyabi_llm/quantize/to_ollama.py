"""A finished file for a running Ollama, kept there only if its prompts are those of the model's own template.

Not run against the real program: the tests play against a stand-in written from its published server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from miyabi_llm.backends.ollama import Ollama
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, GateFailed, MiyabiError, NetworkError
from miyabi_llm.gguf import Header
from miyabi_llm.quantize.values import Handed
from miyabi_llm.tools.moment import Kitchen, moment
from miyabi_llm.types import Artifact, Endpoint, Event, OnEvent, ServeSpec

CTX = 512  # tokens of the server that renders what Ollama's rendering is held against
_HELLO = {"role": "user", "content": "Hello"}
PROBES: Mapping[str, Sequence[Mapping[str, str]]] = {
    "user": (_HELLO,),
    "system": ({"role": "system", "content": "Be brief."}, _HELLO),
    "turns": (_HELLO, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "日本の首都は?"}),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """The name at Ollama, the context it shall have, and what the file's header says."""

    name: str
    ctx: int
    header: Header
    settings: Settings


def parse(text: str) -> str:
    """NAME or NAME:TAG out of `ollama:NAME`. Raises BadUsage."""
    scheme, _, name = text.partition(":")
    if scheme != "ollama" or not name or "/" in name:
        raise BadUsage(f"--to {text}: it is ollama:NAME or ollama:NAME:TAG")
    return name


def running(settings: Settings) -> Endpoint:
    """The Ollama that answers on this machine. Raises NetworkError when none does."""
    found = Ollama().detect(settings)
    if found.running is None:
        raise NetworkError(f"no Ollama answers: {found.reason}", hint="Start it: `ollama serve`.")
    return found.running


def hand(artifact: Artifact, files: Mapping[str, Path], wanted: Wanted, kitchen: Kitchen, on_event: OnEvent) -> Handed:
    """Give the model to the running Ollama and compare its prompts with ours.

    Raises BadUsage where another model has the name, GateFailed (and removes the model) where a prompt differs.
    """
    from miyabi_llm.backends.ollama_api import rendered
    from miyabi_llm.backends.ollama_control import OllamaControl

    spec = ServeSpec(artifact, files, wanted.name, ctx=wanted.ctx)
    plan = Ollama().plan(spec, Ollama().detect(wanted.settings))
    if plan.argv is not None or plan.handover is None:
        raise NetworkError("no Ollama answers any more", hint="Start it: `ollama serve`.")
    # attach False: the name as it was asked for, not one in our corner; so whoever has it is looked at first
    given = replace(plan.handover, attach=False)
    with OllamaControl(plan.endpoint) as control:
        _refuse_another(control.show(_with_tag(wanted.name)), artifact, wanted.name)
        name = control.add(given, on_event)
        if wanted.header.chat_template is None:
            on_event(Event("warning", "ollama", f"{name}: a base model without a template; no prompt was compared"))
            return Handed(name, plan.endpoint.base_url, 0)
        try:
            there = replace(plan.endpoint, model=name)
            on_event(Event("phase", "ollama", "comparing prompts"))
            with moment(_first(files), kitchen, CTX) as server:
                begin = server.begin()
                for probe, messages in PROBES.items():
                    ours = server.render(messages, begin=True)
                    compare(probe, ours.removeprefix(begin), rendered(there, messages).removeprefix(begin))
        except MiyabiError:
            with suppress(MiyabiError):
                control.delete(name)
            raise
    return Handed(name, plan.endpoint.base_url, len(PROBES))


def _with_tag(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


def _refuse_another(shown: object, artifact: Artifact, name: str) -> None:
    digest = getattr(shown, "digest", None)
    if shown is not None and digest not in {f.sha256 for f in artifact.files}:
        raise BadUsage(f"Ollama has another model {name!r}", hint=f"Take another name, or `ollama rm {name}`.")


def _first(files: Mapping[str, Path]) -> Path:
    return files[min(n for n in files if n.endswith(".gguf"))]


def compare(probe: str, ours: str, theirs: str) -> None:
    """Raise GateFailed where two prompts differ. Pure."""
    if ours != theirs:
        pairs = enumerate(zip(ours, theirs, strict=False))
        at = next((i for i, (x, y) in pairs if x != y), min(len(ours), len(theirs)))
        raise GateFailed(
            f"Ollama renders the probe {probe!r} otherwise from letter {at}: {theirs[at : at + 60]!r}, "
            f"the model's own template {ours[at : at + 60]!r}",
            hint="It was removed there. Ollama took a template of its own for it: start it with OLLAMA_GO_TEMPLATE=0.",
            probe=probe,
        )
