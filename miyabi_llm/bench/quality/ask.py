"""Ask questions deterministically: temperature 0, one seed, the same words every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from miyabi_llm.bench.engine import Engine
from miyabi_llm.bench.quality.values import How, Question, TaskSet
from miyabi_llm.bench.speech import read, request
from miyabi_llm.bench.values import Call, Item, Load, Raw, Sample, Speech, Target
from miyabi_llm.types import Endpoint, Event, OnEvent

Asked = tuple[Question, TaskSet]
END = "\n\n"  # of an answer that continues a text
TRIES = 2  # a call that failed is sent once more: it is the answer that counts, not the time


def is_llama_cpp(endpoint: Endpoint) -> bool:
    """Whether the server is llama.cpp's, which keeps earlier prompts unless told not to."""
    if endpoint.backend or "openai" not in endpoint.dialects:
        return endpoint.backend == "llama-cpp"
    from miyabi_llm.client import Client

    with Client(endpoint) as client:
        return client.kind() == "llama.cpp"


def params(target: Target, how: How, *, llama_cpp: bool) -> dict[str, Any]:
    """What makes answers repeatable, in the words of the dialect.

    llama.cpp may compute a prompt in other pieces when it has its beginning, and then round differently: no cache.
    """
    if target.speech == "anthropic":
        return {"temperature": 0}  # it knows no seed
    if target.speech == "ollama":
        return {"options": {"temperature": 0, "seed": how.seed}}
    stop = {"stop": [END]} if target.speech == "openai-completions" else {}
    return {"temperature": 0, "seed": how.seed, **stop, **({"cache_prompt": False} if llama_cpp else {})}


def words(question: Question, task: TaskSet, *, plain: bool) -> str:
    """The text of a question; to continue, or to answer."""
    if not plain:
        return f"{task.instruction}\n\n{question.prompt}"
    return f"{task.instruction}\n\n{task.example}\n\n{question.prompt}\n\nAnswer:"


class _Once:
    """A source that gives each call once and keeps what came."""

    ordered = False

    def __init__(self, calls: Sequence[Call], speech: Speech) -> None:
        self._calls, self._speech, self._given = calls, speech, 0
        self.samples: dict[int, Sample] = {}

    def next(self, stream: int) -> Call | None:
        """The next call that was not given yet."""
        if self._given == len(self._calls):
            return None
        self._given += 1
        return self._calls[self._given - 1]

    def finished(self, raw: Raw) -> None:
        """Keep what was read of it."""
        self.samples[raw.call.item] = read(raw, self._speech)


class Asker:
    """Asks one server. `kept` are connections: use it as a context manager."""

    def __init__(self, target: Target, how: How, on_event: OnEvent) -> None:
        self._target, self._how, self._on_event = target, how, on_event
        self._params = params(target, how, llama_cpp=is_llama_cpp(target.endpoint))
        self._engine = Engine([target], stamps=False)

    def __enter__(self) -> Asker:
        self._engine.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._engine.__exit__(*exc)

    def ask(self, asked: Sequence[Asked], name: str) -> list[Sample | None]:
        """The answer to each question, in their order; None for those that were not sent because nothing answers."""
        found: dict[int, Sample] = {}
        for _ in range(TRIES):
            left = [i for i in range(len(asked)) if i not in found or not _answered(found[i])]
            if not left or (found and len(left) == len(asked)):
                break  # all is said, or nothing at all answers
            found |= self._send([(i, asked[i]) for i in left], name)
        return [found.get(i) for i in range(len(asked))]

    def _send(self, numbered: Sequence[tuple[int, Asked]], name: str) -> dict[int, Sample]:
        calls = [Call(request(self._target, self._item(*one)), item=i) for i, one in numbered]
        source = _Once(calls, self._target.speech)
        how = self._how
        load = Load(min(how.concurrency, len(calls)), requests=len(calls), timeout_s=how.timeout_s)

        told = [-1.0]

        def on_event(e: Event) -> None:
            if e.done != told[0]:  # the engine tells twice a second; answers take longer
                told[0] = e.done
                self._on_event(Event(e.kind, name, e.message, e.done, e.total, "items"))

        self._engine.run(load, source, on_event)
        return source.samples

    def _item(self, question: Question, task: TaskSet) -> Item:
        most = self._how.max_tokens or question.max_tokens
        text = words(question, task, plain=self._target.speech == "openai-completions")
        if self._target.speech == "openai-completions":
            return Item(question.id, (), text, most, self._params)
        return Item(question.id, ({"role": "user", "content": text},), None, most, self._params)


def _answered(sample: Sample) -> bool:
    return sample.ok or silent(sample)


def silent(sample: Sample) -> bool:
    """Whether the model itself ended without a word: that is an answer, and a wrong one."""
    return sample.error == "refused" and bool(sample.finish) and not sample.text
