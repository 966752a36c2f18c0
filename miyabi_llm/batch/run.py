"""A batch from its input file to its output file: opened, run, ordered, summed up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from miyabi_llm.batch import journal, reading, scan, state
from miyabi_llm.batch.answers import document, judged
from miyabi_llm.batch.disk import explained
from miyabi_llm.batch.journal import Journal
from miyabi_llm.batch.reading import Input
from miyabi_llm.batch.scan import Scan
from miyabi_llm.batch.tally import Tally
from miyabi_llm.batch.values import Job, Limits, Row, Stop, Summary
from miyabi_llm.errors import BadUsage, MiyabiError
from miyabi_llm.types import Endpoint, Event, OnEvent, counted, silent

SLOTS = 8  # requests at once where the server does not say how many it works on
TICK_S = 0.2


@dataclass(slots=True)
class Work:
    """An opened batch: its input checked, its output locked and mended."""

    job: Job
    input: Input
    state: state.State
    finished: set[bytes]
    tally: Tally
    journal: Journal
    resumed: int = 0
    retried: int = 0
    tokens_before: int = 0

    @property
    def left(self) -> int:
        """How many requests are still to be made."""
        return self.input.count - self.tally.rows


@contextmanager
def opened(job: Job, on_event: OnEvent = silent) -> Iterator[Work]:
    """Check the input, then open the output: new, or where an earlier run stopped. Asks no server.

    Raises BadUsage for bad lines (unless they shall be skipped), an output that is of another input, and a file that
    is no output of a batch; MiyabiError when another command writes it; DiskFull.
    """
    found = reading.check(job.source, job.shape)
    if not job.skip_bad:
        reading.refuse_bad(found)
    for problem in found.problems[: reading.SHOWN]:
        on_event(Event("warning", "skipped", str(problem)))
    target = job.target
    if target.exists() and (not target.is_file() or target.samefile(job.source)):
        raise BadUsage(f"{target} cannot be the output", hint="Name a file of its own with -o.")
    if not target.parent.is_dir():
        raise BadUsage(f"{target.parent} is no folder")
    with journal.locked(target) as lock:
        journal.sweep(target)
        if not lock.trusted:
            on_event(Event("warning", "lock", f"the file system of {target} keeps nobody else from writing it"))
        now, seen = _begin(job, found, on_event)
        book = Journal(target)
        work = Work(job, found, now, seen.finished, seen.tally, book, resumed=seen.tally.rows)
        work.tokens_before = seen.tally.completion_tokens
        try:
            yield work
        finally:
            try:
                book.sync()
            finally:
                book.close()


def _begin(job: Job, found: Input, on_event: OnEvent) -> tuple[state.State, Scan]:
    """The state and what of the output stays."""
    target = job.target
    if not job.resume:
        with explained(target):  # the answers go first: a state without them is a batch that has none yet
            target.unlink(missing_ok=True)
            state.beside(target).unlink(missing_ok=True)
    written = target.exists() and target.stat().st_size > 0
    now = state.load(target)
    if now is None and written:
        raise BadUsage(
            f"{target} exists and is no output of a batch: {state.beside(target)} is missing",
            hint="Write to another file with -o, or drop what it holds with --restart.",
        )
    if now is None or not written:  # an earlier run that got no answer binds nobody
        now = state.State.of(found)
        state.save(target, now)
        return now, Scan()
    state.check(target, now, found)
    seen = scan.scan(target, found.ids, retry_failed=job.retry_failed)
    if seen.damaged:
        lines = ", ".join(map(str, seen.damaged[:10]))
        on_event(Event("warning", "damaged", f"{target}: line {lines}: dropped, to be asked again"))
    journal.mend(target, seen)
    return now, seen


def run(
    work: Work, endpoint: Endpoint, limits: Limits, on_event: OnEvent = silent, *, model: str = "", stop: Stop
) -> Summary:
    """Make the requests that are left, and write each answer as it comes.

    `model` is asked whatever the rows name; when empty, each row's own, and the endpoint's where it names none.
    Raises NetworkError when the server is gone for too long, AccessDenied, BadUsage when another model was asked
    before, DiskFull, and MiyabiError when the input changes meanwhile: what is finished is kept.
    """
    begun = time.monotonic()
    work.state = state.bind(work.job.target, work.state, model)
    if work.left:
        many = _at_once(endpoint, limits)
        asked = model or "the models that the rows name"
        text = f"{counted(work.left, 'row')} of {work.input.count:,} to {asked}, {many} at once"
        on_event(Event("phase", "batch", text))
        asyncio.run(_Run(work, endpoint, limits, on_event, stop).all(many, model))
    return finish(work, seconds=time.monotonic() - begun, on_event=on_event)


def finish(work: Work, *, seconds: float = 0.0, on_event: OnEvent = silent) -> Summary:
    """How the batch stands; its output is put in order first when it is whole and that was asked for."""
    if work.job.ordered and not work.left:
        work.journal.sync()
        if journal.order(work.job.target, (reading.digest(r.custom_id) for r in reading.rows(work.input))):
            on_event(Event("phase", "ordered", str(work.job.target)))
    tally = work.tally
    written = tally.completion_tokens - work.tokens_before
    return Summary(
        output=work.job.target,
        total=work.input.count + work.input.bad,
        done=tally.done,
        failed=tally.failed,
        skipped=work.input.bad,
        left=work.left,
        resumed=work.resumed,
        retried=work.retried,
        cut=tally.cut,
        uncounted=tally.uncounted,
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
        seconds=seconds,
        tokens_per_s=written / seconds if written and seconds > 0 else None,
        cost=tally.cost(work.job.prices),
        interrupted=bool(work.left),
    )


def _at_once(endpoint: Endpoint, limits: Limits) -> int:
    """How many requests at once: as asked, else as many as the server works on. Raises when it cannot be reached."""
    import httpx

    from miyabi_llm.client import Client
    from miyabi_llm.errors import AccessDenied

    with Client(endpoint) as client:
        try:
            client.models()
        except AccessDenied:
            raise
        except MiyabiError as e:
            if isinstance(e.__cause__, httpx.HTTPError):  # nobody answers; else it has no such page, or loads a model
                raise
        if limits.concurrency is not None:
            return limits.concurrency
        slots = client.props().get("total_slots")
    return slots if isinstance(slots, int) and slots > 0 else SLOTS


class _Run:
    """The event loop's side: workers that take a row, ask, write."""

    def __init__(self, work: Work, endpoint: Endpoint, limits: Limits, on_event: OnEvent, stop: Stop) -> None:
        self._work = work
        self._endpoint = endpoint
        self._limits = limits
        self._on_event = on_event
        self._stop = stop
        self._begun = time.monotonic()
        self._told = False

    async def all(self, many: int, model: str) -> None:
        """Every row that is left, `many` at once."""
        from miyabi_llm.batch.send import Sender, client

        halt = asyncio.Event()
        feed = reading.rows(self._work.input)
        async with client(self._endpoint, self._limits, many) as http:
            sender = Sender(http, self._limits, halt)
            workers = {asyncio.create_task(self._worker(feed, sender, model)) for _ in range(many)}
            try:
                await self._watch(workers, halt)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                feed.close()
                self._work.retried = sender.retried
                self._progress()

    async def _worker(self, feed: Iterator[Row], sender: Any, model: str) -> None:
        from miyabi_llm.batch.send import Halted

        work = self._work
        while not self._stop.asked and (row := next(feed, None)) is not None:
            name = reading.digest(row.custom_id)
            if name in work.finished:
                await asyncio.sleep(0)  # a long run of finished rows must not hold up the others
                continue
            try:
                outcome = await sender.ask(row, self._body(row, model))
            except Halted:
                return
            line = document(row, judged(outcome, row, work.job.judge), f"batch_req_{name.hex()}")
            work.journal.append(line)
            work.tally.add(line)

    def _body(self, row: Row, model: str) -> Mapping[str, Any]:
        named = row.body.get("model")
        if model and named and named != model and not self._told:
            self._told = True
            self._on_event(Event("warning", "model", f"rows name {named!r} and others; {model} is asked"))
        return {**row.body, "model": model or named or self._endpoint.model}

    async def _watch(self, workers: set[asyncio.Task[None]], halt: asyncio.Event) -> None:
        """Wait for the workers; meanwhile show progress, make rows durable, and look whether to stop."""
        pending, last = workers, float("inf")
        while pending:
            done, pending = await asyncio.wait(pending, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
            for worker in done:
                worker.result()
            if self._work.journal.due:
                await asyncio.to_thread(self._work.journal.sync)
            self._progress()
            if self._stop.asked and not halt.is_set():
                halt.set()
                last = time.monotonic() + self._limits.grace_s
                text = f"{self._limits.grace_s:g} s for the requests in flight; again to stop at once"
                self._on_event(Event("phase", "stopping", text))
            if self._stop.asked > 1 or time.monotonic() > last:
                return

    def _progress(self) -> None:
        tally = self._work.tally
        words = [f"{tally.failed:,} failed"] if tally.failed else []
        seconds = time.monotonic() - self._begun
        if (written := tally.completion_tokens - self._work.tokens_before) and seconds > 0:
            words.append(f"{written / seconds:.1f} tok/s")
        total = self._work.input.count
        self._on_event(Event("progress", "rows", ", ".join(words), tally.rows, total, "rows"))
