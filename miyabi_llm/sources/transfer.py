"""The one download engine: ranges over several connections, resumed only where the bytes are surely the same."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, replace

from miyabi_llm.config import Settings
from miyabi_llm.errors import AccessDenied, Corrupt, MiyabiError, ModelMissing, NetworkError
from miyabi_llm.sources import answers
from miyabi_llm.sources.answers import Restart
from miyabi_llm.sources.base import Part
from miyabi_llm.sources.net import Credential, Hiccup, Response, Session
from miyabi_llm.sources.tries import MIB, Limits
from miyabi_llm.types import Event, OnEvent, RemoteFile


def download(
    file: RemoteFile,
    part: Part,
    settings: Settings,
    on_event: OnEvent,
    *,
    credential: Credential | None = None,
    limits: Limits | None = None,
) -> None:
    """Write `file` into `part`, from the first of its URLs that gives it; the store checks and publishes it.

    Progress events (bytes, never backwards, about ten a second) come in the caller's thread. Raises
    NetworkError, AccessDenied (401, 403), ModelMissing (404, 410), Corrupt (wrong length), Unsafe, and what the
    part raises when the disk is full or broken, which is never retried.
    """
    limits = limits or Limits(connections=max(1, settings.connections))
    failed: list[MiyabiError] = []
    meter = _Meter(file, on_event, limits.every)
    for url in file.urls:
        with Session(settings, wire=limits.wire) as session:
            job = _Job(replace(file, urls=(url,)), part, session, credential, limits)
            try:
                return job.run(meter)
            except (NetworkError, AccessDenied, ModelMissing, Corrupt) as e:
                failed.append(e)
                meter.say("log", f"{e.message}; trying the next address" if url != file.urls[-1] else e.message)
    raise _worst(file, failed)


def _worst(file: RemoteFile, failed: list[MiyabiError]) -> MiyabiError:
    """The failure that tells most: a refusal before a missing file before a flaky network."""
    if not failed:
        return NetworkError(f"{file.name}: its source gives no address to fetch it from")
    rank: list[type[MiyabiError]] = [AccessDenied, Corrupt, ModelMissing, NetworkError]
    return min(failed, key=lambda e: next(i for i, kind in enumerate(rank) if isinstance(e, kind)))


class _Meter:
    """Progress of one file: throttled, never backwards, spoken in the caller's thread only."""

    def __init__(self, file: RemoteFile, on_event: OnEvent, every: float) -> None:
        self._name, self.total, self._on_event, self.every = file.name, file.size, on_event, every
        self._most, self._last = -1, 0.0

    def at(self, done: int, *, now: bool = False) -> None:
        """`done` bytes are on disk."""
        clock = time.monotonic()
        if done > self._most and (now or clock - self._last >= self.every):
            self._most, self._last = done, clock
            self._on_event(Event("progress", self._name, done=done, total=self.total, unit="bytes"))

    def say(self, kind: str, message: str) -> None:
        """A line for the log, or a warning."""
        self._on_event(Event("warning" if kind == "warning" else "log", self._name, message))


@dataclass(slots=True)
class _Segment:
    """Bytes still to come: from `at` up to `end` (exclusive), None when nobody knows how long the file is."""

    at: int
    end: int | None


class _Job:
    """One file from one URL: a first answer decides how, then one or more threads drain the segments."""

    def __init__(
        self, file: RemoteFile, part: Part, session: Session, credential: Credential | None, limits: Limits
    ) -> None:
        self._file, self._part, self._session = file, part, session
        self._credential, self._limits = credential, limits
        self._ranges = True  # until the server shows that it cannot
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._queue: deque[_Segment] = deque()
        self._notes: deque[str] = deque()
        self._total = file.size
        self._got = 0
        self._error: BaseException | None = None

    def run(self, meter: _Meter) -> None:
        """Bring the part to its full size."""
        reason = ""
        for count in range(self._limits.restarts):
            if count:
                self._wait(count, Hiccup(f"{reason}; from the beginning"), meter)
            try:
                return self._attempt(meter)
            except Restart as e:
                self._stop.clear()
                self._ranges, reason = self._ranges and e.ranges, e.reason
                self._part.reset(None, self._file.size)
        raise NetworkError(
            f"{answers.place(self._file)}: {reason} ({self._limits.restarts} times)",
            hint="Try again later, or pull a fixed revision.",
        )

    def _attempt(self, meter: _Meter) -> None:
        self._total, self._error = self._file.size, None
        self._queue.clear()
        self._stop.clear()
        gaps = self._gaps()
        if gaps is None:
            return self._fresh(meter)
        assert self._part.size is not None
        self._total, self._got = self._part.size, self._part.size - sum(b - a for a, b in gaps)
        self._cut(gaps)
        self._crew(meter, None)

    def _gaps(self) -> list[tuple[int, int]] | None:
        """What is missing of a part that can be continued; None when it must start from the beginning."""
        size, done = self._part.size, sorted(self._part.done)
        if not self._ranges or not self._part.validator or size is None or not done:
            return None
        if self._file.size not in (None, size):
            return None
        gaps, at = [], 0
        for start, end in done:
            if start > at:
                gaps.append((at, start))
            at = max(at, end)
        return [*gaps, (at, size)] if at < size else gaps

    def _fresh(self, meter: _Meter) -> None:
        """Ask for the beginning: a 206 with a strong ETag brings the other connections in, a 200 is read as it is."""
        size, first = self._file.size, self._limits.segment
        ranged = self._ranges and (size is None or size > 2 * first)
        meter.total, self._got = size, 0
        segment = _Segment(0, first if ranged else None)
        failures = 0
        while True:
            try:
                with self._session.open(
                    self._file.urls[0],
                    headers={"Range": f"bytes=0-{first - 1}"} if ranged else {},
                    credential=self._credential,
                ) as response:
                    found = answers.first(response, self._file, segment.end)
                    self._total = meter.total = found.total
                    self._part.reset(found.validator, found.total)
                    segment.end = found.end or found.total  # a 200 brings everything
                    if found.end is not None and found.total is not None and found.end < found.total:
                        if not self._part.validator:
                            raise Restart("this file is taken in one piece", ranges=False)
                        self._cut([(found.end, found.total)])
                    return self._crew(meter, (segment, response))
            except Hiccup as e:
                failures += 1
                self._pause(failures, e, meter, self._limits.most(e))

    def _cut(self, gaps: list[tuple[int, int]]) -> None:
        """Segments of fair size: a few for each connection, none smaller than it is worth."""
        missing = sum(b - a for a, b in gaps)
        fair = -(-missing // (4 * self._limits.connections))
        least = self._limits.segment
        step = max(least, min(self._limits.segment_most, -(-fair // least) * least))
        for a, b in gaps:
            self._queue.extend(_Segment(at, min(at + step, b)) for at in range(a, b, step))

    def _crew(self, meter: _Meter, first: tuple[_Segment, Response] | None) -> None:
        """Drain all segments in threads; speak for them from here; stop them all when one fails."""
        count = min(self._limits.connections, len(self._queue) + (first is not None))
        firsts = [first] + [None] * (count - 1) if first else [None] * count
        threads = [threading.Thread(target=self._work, args=(f,), daemon=True) for f in firsts]
        meter.at(self._got, now=True)
        try:
            for t in threads:
                t.start()
            while any(t.is_alive() for t in threads):
                next(t for t in threads if t.is_alive() or t is threads[-1]).join(meter.every)
                while self._notes:
                    meter.say("log", self._notes.popleft())
                meter.at(self._got)
        finally:
            self._stop.set()
            if any(t.is_alive() for t in threads):
                self._session.abort()
            for t in threads:
                if t.ident:
                    t.join()
        if self._error:
            raise self._error
        meter.at(self._got, now=True)

    def _work(self, first: tuple[_Segment, Response] | None) -> None:
        try:
            if first:
                self._segment(*first)
            while not self._stop.is_set():
                with self._lock:
                    segment = self._queue.popleft() if self._queue else None
                if segment is None:
                    return
                self._segment(segment, None)
        except BaseException as e:  # carried to the caller's thread and raised there
            with self._lock:
                self._error = self._error or e
            self._stop.set()
            self._session.abort()

    def _segment(self, segment: _Segment, opened: Response | None) -> None:
        """Bring one segment in, however often the connection breaks, as long as it gets on."""
        failures, mark = 0, segment.at
        while not self._stop.is_set():
            try:
                if opened is not None:
                    once, opened = opened, None
                    return self._drain(segment, once)
                assert self._part.validator, "only a part with a strong validator is continued"
                assert segment.end is not None
                with self._session.open(
                    self._file.urls[0],
                    headers={"Range": f"bytes={segment.at}-{segment.end - 1}", "If-Range": self._part.validator},
                    credential=self._credential,
                ) as response:
                    answers.later(response, self._file, (segment.at, segment.end, self._total), self._part.validator)
                    return self._drain(segment, response)
            except Hiccup as e:
                if not self._part.validator or segment.end is None:
                    raise Restart(e.reason, ranges=self._ranges) from e
                failures = 1 if segment.at - mark >= MIB else failures + 1
                mark = segment.at
                if not self._stop.is_set():
                    self._pause(failures, e, None, self._limits.tries)

    def _drain(self, segment: _Segment, response: Response) -> None:
        """Write the answer where it belongs. Exactly as many bytes as agreed: fewer is a Hiccup, more is Corrupt."""
        write, sniff = self._part.write, segment.at == 0
        for chunk in response.chunks():
            if self._stop.is_set():
                return
            if sniff and chunk:
                answers.refuse_page(chunk, self._file)
                sniff = False
            if segment.end is not None and segment.at + len(chunk) > segment.end:
                raise Corrupt(
                    f"{answers.place(self._file)}: the server sends more than the {segment.end} bytes it promised",
                    hint="Pull it from another source.",
                )
            write(segment.at, chunk)
            segment.at += len(chunk)
            with self._lock:
                self._got += len(chunk)
        if segment.end is not None and segment.at < segment.end:
            raise Hiccup("the answer ended early")

    def _pause(self, failures: int, hiccup: Hiccup, meter: _Meter | None, most: int) -> None:
        """Wait before the next try; give up after `most`."""
        if failures >= most:
            raise NetworkError(
                f"{answers.place(self._file)}: {hiccup.reason} ({failures} times in a row)",
                hint="Run the same command again: it continues where it stopped.",
            )
        self._wait(failures, hiccup, meter)

    def _wait(self, failures: int, hiccup: Hiccup, meter: _Meter | None) -> None:
        """Say what went wrong and pause; a stop wakes it."""
        wait = self._limits.pause(failures, hiccup)
        note = f"{hiccup.reason}; trying again in {wait:.1f} s"
        if meter:
            meter.say("log", note)
        else:
            self._notes.append(note)
        self._stop.wait(wait)
