"""The command `quickstart`: the whole road on this machine, once, with what it measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from miyabi_llm.cli.answer import Answer
    from miyabi_llm.config import Settings
    from miyabi_llm.store import Store
    from miyabi_llm.tools.program import Program
    from miyabi_llm.types import Artifact, Endpoint

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

QUESTION = """What can go wrong with each added line (+)? Think of hostile and of empty input. \
Answer in short sentences and show the corrected line."""
SYSTEM = "You review code changes for bugs and security holes."
MAX_TOKENS = 300
PREREQUISITES = ("compiler", "python", "memory", "disk")  # what no later step of this command can mend


@dataclass(frozen=True, slots=True)
class Measured:
    """What the road cost. Seconds, tokens per second, bytes resident."""

    model: str
    sha256: str
    program: str
    load_s: float
    ttft_s: float | None
    prompt_per_second: float | None
    tokens_per_second: float | None
    memory: int
    total_s: float
    review: str
    finish_reason: str | None


@app.command("quickstart")
def quickstart(
    json_: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Doctor, install, pull, serve and review a small diff: the whole road, measured."""
    from miyabi_llm import config, pull
    from miyabi_llm.cli import progress, show
    from miyabi_llm.refs import ModelRef
    from miyabi_llm.store import Store
    from miyabi_llm.tools.install import install

    begin = time.perf_counter()
    settings = config.load()
    store = Store(settings.store)
    show.note("1/5 doctor: looking at this machine")
    _judge(settings)
    with progress.shown(as_json=json_) as on_event:
        show.note("2/5 backend: llama.cpp (the first time it may be built from source: some minutes)")
        program = install(settings, on_event)
        show.note(f"    {program.path} ({program.version})")
        show.note(f"3/5 pull: {settings.default_model}")
        artifact = pull.pull(ModelRef.parse(settings.default_model), store, settings, on_event)
        show.note(f"    {artifact.files[0].name}  sha256 {artifact.files[0].sha256}")
    show.note("4/5 serve: until a token came out of it")
    with _served(artifact, store, settings, as_json=json_) as served:
        show.note("5/5 run: reviewing a small diff\n")
        answer = _ask(served.endpoint, as_json=json_)
        measured = _measured(artifact, program, served, answer, settings)
    measured = replace(measured, total_s=time.perf_counter() - begin)
    show.emit(measured, as_json=json_, render=_show)


def _judge(settings: Settings) -> None:
    """Say what the doctor has against this machine, and stop at what no later step mends."""
    from miyabi_llm import doctor
    from miyabi_llm.cli import show
    from miyabi_llm.errors import MachineLimit

    for f in doctor.examine(settings):
        if f.level in ("warn", "fail"):
            show.note(f"    {f.name}: {f.message}" + (f"  ->  {f.fix}" if f.fix else ""))
        if f.level == "fail" and f.name in PREREQUISITES:
            raise MachineLimit(f"{f.name}: {f.message}", hint=f.fix)


@dataclass(frozen=True, slots=True)
class _Served:
    endpoint: Endpoint
    load_s: float


@contextmanager
def _served(artifact: Artifact, store: Store, settings: Settings, *, as_json: bool) -> Iterator[_Served]:
    """A server for as long as the block runs; the progress display ends when it is ready."""
    from miyabi_llm import serve
    from miyabi_llm.cli import plans, progress

    with ExitStack() as stack:
        stack.enter_context(store.lease(artifact))
        plan = plans.make(artifact, store, settings, plans.Wanted())
        start = time.perf_counter()
        with progress.shown(as_json=as_json) as on_event:
            endpoint = stack.enter_context(serve.running(plan, settings, on_event, artifact=artifact))
        yield _Served(endpoint, time.perf_counter() - start)


def _measured(artifact: Artifact, program: Program, served: _Served, answer: Answer, settings: Settings) -> Measured:
    from miyabi_llm import serve

    url = served.endpoint.base_url
    return Measured(
        model=str(artifact.ref),
        sha256=artifact.files[0].sha256,
        program=str(program.path),
        load_s=served.load_s,
        ttft_s=answer.stats.ttft_s,
        prompt_per_second=answer.stats.prompt_per_second,
        tokens_per_second=answer.stats.tokens_per_second,
        memory=next((s.memory for s in serve.ps(settings) if s.endpoint.base_url == url), 0),
        total_s=0.0,
        review=answer.text,
        finish_reason=answer.finish_reason,
    )


def _ask(endpoint: Endpoint, *, as_json: bool) -> Answer:
    from importlib import resources

    from miyabi_llm import chat
    from miyabi_llm.cli import answer
    from miyabi_llm.client import Client

    diff = resources.files("miyabi_llm.data").joinpath("review.diff").read_text(encoding="utf-8")
    options = chat.ChatOptions(temperature=0.2, seed=1, max_tokens=MAX_TOKENS)
    session = chat.Session(endpoint.model, options, system=SYSTEM)
    with Client(endpoint) as client:
        deltas = chat.ask(client, session, f"```diff\n{diff}```\n\n{QUESTION}")
        return answer.receive(deltas, answer.streams(as_json=as_json))


def _show(m: Measured) -> None:
    from miyabi_llm.cli.show import human, note

    def rate(value: float | None) -> str:
        return "?" if value is None else f"{value:.1f} tokens/s"

    ttft = "?" if m.ttft_s is None else f"{m.ttft_s:.2f} s"
    note(
        f"\nmeasured: load {m.load_s:.1f} s | TTFT {ttft} | prompt {rate(m.prompt_per_second)} | "
        f"answer {rate(m.tokens_per_second)} | memory {human(m.memory)} | all {m.total_s:.0f} s"
    )
    if m.finish_reason == "length":
        note(f"the review stopped at {MAX_TOKENS} tokens")
    note("\nNext:")
    note(f'  git diff | miyabi-llm run {m.model} "review this"')
    note(f"  miyabi-llm run {m.model}")
    note(f"  miyabi-llm serve {m.model} --detach")
