"""One request from its verdict to its answer: decide, adapt, try, and pass on what comes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final, Protocol

from aiohttp import web

from miyabi_llm.gateway import dialects, retries
from miyabi_llm.gateway.adapt import adapt
from miyabi_llm.gateway.asked import Asked, Missed, Opened, Record
from miyabi_llm.gateway.delivery import Slow, deliver
from miyabi_llm.gateway.headers import Pairs
from miyabi_llm.gateway.http1 import Failed
from miyabi_llm.gateway.opening import failed, open_answer
from miyabi_llm.gateway.roads import Roads
from miyabi_llm.gateway.streams import Broken, Usage
from miyabi_llm.route.values import Decision, Policy, Target

SHOULD_RETRY_S: Final = 60.0  # a client is not left to wait longer than this on a server's word


@dataclass(slots=True)
class Course:
    """What became of one request. `tried` has target and outcome of each try; `record` names its audit record.

    `model` and `most` are what was asked for: the model's name and the most tokens of an answer. `entry` is what is
    reserved in the ledger; `done` is set when the whole answer was passed on.
    """

    decision: Decision
    record: str = ""
    model: str = ""
    most: int = 0
    entry: int | None = None
    done: bool = False
    tried: list[tuple[str, str]] = field(default_factory=list)
    target: Target | None = None
    changes: tuple[str, ...] = ()
    status: int = 0
    usage: Usage = field(default_factory=Usage)
    broken: Broken | None = None
    seconds: float = 0.0


class Judge(Protocol):
    """Decides, and keeps the books: who may be asked, what is spent, what was written down."""

    async def decide(self, asked: Asked) -> Course:
        """The decision for a request."""

    async def permit(self, course: Course, target: Target, data: bytes) -> Record | None:
        """The record that allows a try at a cloud, on the disk; None when it may not be made."""

    def admit(self, target: Target) -> bool:
        """Whether a target may be tried now."""

    def outcome(self, course: Course, target: Target, missed: Missed | None) -> None:
        """What a try said about its target; None: it answered."""

    def abandon(self, course: Course, target: Target) -> None:
        """A try ended because its client left."""

    def finish(self, asked: Asked, course: Course) -> None:
        """The request is over."""


class Passing:
    """Passes requests on by the judge's decisions."""

    def __init__(self, policy: Policy, roads: Roads, judge: Judge) -> None:
        self._targets = {t.name: t for t in policy.targets}
        self._roads, self._judge = roads, judge
        self._budget = retries.Budget()

    async def answer(self, request: web.BaseRequest, asked: Asked, course: Course) -> web.StreamResponse:
        """Answer a request whose course is decided. Raises ConnectionError or Slow when its client is gone."""
        self._budget.request()
        found = await self._find(asked, course)
        if found is None:
            return self._refuse(asked, course)
        course.target, course.status = found.target, found.status
        if isinstance(found, Missed):
            return _missed(found, told(course))
        course.changes, course.usage = found.changes, found.usage
        try:
            response, course.broken = await deliver(request, asked, found, told(course))
        except (asyncio.CancelledError, ConnectionError, Slow):
            course.done = found.passed  # many a client leaves with the last event, before the end of the body
            raise
        if course.broken is not None:
            course.tried[-1] = (found.target.name, "broken")
        course.done = course.broken is None
        return response

    async def _find(self, asked: Asked, course: Course) -> Opened | Missed | None:
        """The first answer that can be passed on, else the last failure; None when there is nobody to ask."""
        names = [n for n in (course.decision.target, *course.decision.fallbacks) if n is not None]
        last: Missed | None = None
        for number, name in enumerate(names):
            target = self._targets[name]
            if not self._judge.admit(target):  # the circuit opened since the decision, or another one tries it now
                course.tried.append((name, "skipped"))
                continue
            more = number + 1 < len(names)
            found = await self._try(asked, course, target, first=number == 0, hold=more)
            again = 0
            while isinstance(found, Missed) and not more:
                wait = retries.pause(found, again)
                if wait is None or not self._budget.take():
                    break
                await asyncio.sleep(wait)
                again += 1
                found = await self._try(asked, course, target, first=number == 0, hold=False)
            if isinstance(found, Opened) or found.final:
                return found
            last = found if last is None or found.kind not in ("elsewhere", "permit") else last
        return last

    async def _try(self, asked: Asked, course: Course, target: Target, *, first: bool, hold: bool) -> Opened | Missed:
        adapted = adapt(asked.body, asked.headers, target, path=asked.path, first=first)
        try:
            if target.local:
                answer = await self._roads.local(target, asked, adapted)
            else:
                record = await self._judge.permit(course, target, adapted.data)
                if record is None:
                    raise Failed("permit", "the request cannot be paid for or written down, so it is not sent")
                answer = await self._roads.cloud(target, asked, adapted, course.decision, record)
            found = await open_answer(target, asked, answer, hold=hold)
        except Failed as e:
            found = failed(target, asked, e)
        except BaseException:
            self._judge.abandon(course, target)
            raise
        if isinstance(found, Missed):
            course.tried.append((target.name, str(found.status) if found.why.startswith("status ") else found.kind))
            self._judge.outcome(course, target, found)
        else:
            found.changes = adapted.changes
            course.tried.append((target.name, str(found.status)))
            self._judge.outcome(course, target, None)
        return found

    def _refuse(self, asked: Asked, course: Course) -> web.StreamResponse:
        why = course.decision.reason
        if course.decision.rejected:
            why += ": " + "; ".join(f"{name}: {reason}" for name, reason in course.decision.rejected)
        course.status = 503
        body = dialects.error_body(asked.path, 503, f"refused ({course.decision.verdict.name.lower()}): {why}")
        spoken = dialects.dialect(asked.path)
        here = any(t.local and spoken in t.endpoint.dialects for t in self._targets.values())
        # a server here may be back soon; what only a cloud could answer is refused the next time too
        again = ("retry-after", "5") if here else ("x-should-retry", "false")
        return _response(503, body, (("content-type", "application/json"), again, *told(course)))


def told(course: Course) -> Pairs:
    """The headers that tell the decision."""
    decision = course.decision
    target = course.target
    headers = [
        ("x-miyabi-route", "none" if target is None else target.kind),
        ("x-miyabi-verdict", decision.verdict.name.lower()),
        ("x-miyabi-rule", decision.rule),
        ("x-miyabi-target", "none" if target is None else target.name),
        ("x-miyabi-attempts", ", ".join(f"{name}={what}" for name, what in course.tried) or "none"),
        ("x-miyabi-audit-id", course.record or "none"),
    ]
    if course.changes:
        headers.append(("x-miyabi-adapted", ", ".join(course.changes)))
    return tuple((name, value.encode("ascii", "backslashreplace").decode("ascii")) for name, value in headers)


def _missed(missed: Missed, told: Pairs) -> web.StreamResponse:
    extra: Pairs = ()
    long = missed.retry_after is not None and missed.retry_after > SHOULD_RETRY_S
    if long or missed.kind == "spend":  # an SDK would obey the server's word, however long
        extra = (("x-should-retry", "false"),)
    kept = tuple((k, v) for k, v in missed.headers if not extra or k.lower() != "x-should-retry")
    return _response(missed.status, missed.body, (*kept, *extra, *told))


def _response(status: int, body: bytes, headers: Pairs) -> web.Response:
    response = web.Response(status=status, body=body)
    response.headers.popall("content-type", None)
    for name, value in headers:
        response.headers.add(name, value)
    return response


__all__ = ["Course", "Judge", "Passing", "Record", "Slow", "told"]
