"""The judge of a running gateway: looks through each request, decides, and writes down before anything leaves."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, Final

from miyabi_llm import detect
from miyabi_llm.errors import MiyabiError
from miyabi_llm.gateway import dialects
from miyabi_llm.gateway.asked import Asked, Missed
from miyabi_llm.gateway.books import Circuits, Files, Flush
from miyabi_llm.gateway.locality import Place
from miyabi_llm.gateway.passing import Course, Record
from miyabi_llm.gateway.streams import Usage
from miyabi_llm.route import facts as fact
from miyabi_llm.route import keys, prices, record
from miyabi_llm.route.decide import decide
from miyabi_llm.route.prices import Price
from miyabi_llm.route.savings import Saving, saving
from miyabi_llm.route.scan import Scan, scan_request
from miyabi_llm.route.taint import log_releases
from miyabi_llm.route.values import Decision, Facts, Health, Policy, State, Target, Verdict

SOON_S: Final = 0.5
SHORT_S: Final = 0.004  # seconds for which nobody else is answered
_UNSURE: Final = frozenset(("cut", "timeout", "garbled"))  # an answer that was not seen may be charged
ASIDE: Final = 32 << 10  # bytes from which a body is looked through beside the others
_NAME: Final = re.compile(r"[A-Za-z0-9._:/@+-]{1,80}")


class Clerk:
    """Decides by the policy and by how the world stands, and keeps the books."""

    def __init__(self, policy: Policy, files: Files, places: Mapping[str, Place]) -> None:
        self._policy, self._files = policy, files
        self._cache = detect.Cache()
        self._answers: list[tuple[float, str, str, prices.Usage, Saving]] = []
        self.circuits = Circuits(policy)
        self._flush = Flush(files.audit) if files.audit is not None else None
        self._elsewhere = {name: Health(False, why=p.elsewhere) for name, p in places.items() if p.elsewhere}

    async def decide(self, asked: Asked) -> Course:
        """The decision for a request, written down."""
        dialect = dialects.dialect(asked.path)
        headers = dict(asked.headers)
        said = [v for k, v in asked.headers if k.lower() in ("user-agent", "accept", "content-type")]
        # the scan passes over headers that are not sent on as they came; of these a cloud sees some, and the address
        headers["x-miyabi-sent"] = " ".join((asked.query, *said))
        scan = await self._scan(asked, headers)
        lower = {k.lower(): v for k, v in headers.items()}
        session = fact.session(lower, asked.body.plain())
        taints = self._files.taints
        taint = Verdict.CONFIDENTIAL if taints is None and session else Verdict.PUBLIC
        if taints is not None:
            taint = taints.of(session)
            if session and self._files.audit is not None:
                with suppress(MiyabiError):  # they stay on the list until the log has them
                    log_releases(taints, self._files.audit)
        facts = fact.build(dialect, asked.path, headers, scan, taint)
        course = Course(
            decide(self._policy, facts, self._state(asked, facts)), model=facts.model, most=facts.max_tokens
        )
        self._remember(facts, course.decision, scan)
        course.record = self._write(self._event(asked, facts, course.decision))
        return course

    async def permit(self, course: Course, target: Target, data: bytes) -> Record | None:
        """Reserve what a try at a cloud may cost, and write it down, on the disk; None when it may not be made."""
        files = self._files
        if files.ledger is None or self._flush is None or files.audit is None:
            return None
        model = target.endpoint.model or course.model
        price = self._price(target, model)
        monthly = self._policy.budget.monthly_usd
        if price is None and (monthly is not None or self._policy.budget.per_request_usd is not None):
            return None
        worst = self._worst(price, len(data), course.most)
        nonce = secrets.token_hex(16)
        try:
            course.entry = files.ledger.reserve(target.name, model if _NAME.fullmatch(model) else "", worst, monthly)
            number = files.audit.append(
                {
                    "kind": "send",
                    "decision": course.record,
                    "target": target.name,
                    "verdict": course.decision.verdict.name,
                    "body": keys.seal(files.key, data, "body"),
                    "bytes": len(data),
                    "permit": nonce,
                },
                sync=False,
            )
            await self._flush.synced()
        except MiyabiError:
            self.drop(course)
            return None
        return Record(str(number), nonce)

    def admit(self, target: Target) -> bool:
        """Whether a target may be tried now."""
        return self.circuits.admit(target)

    def outcome(self, course: Course, target: Target, missed: Missed | None) -> None:
        """What a try said about its target; None: it answered."""
        self.circuits.note(target, missed)
        if missed is None or course.entry is None:
            return
        if missed.kind not in _UNSURE:
            self.drop(course)
        elif self._files.ledger is not None:
            entry, course.entry = course.entry, None
            with suppress(MiyabiError):
                self._files.ledger.settle(entry, None)

    def abandon(self, course: Course, target: Target) -> None:
        """A try ended because its client left."""
        self.circuits.abandon(target)

    def drop(self, course: Course) -> None:
        """Give back what was reserved for a try that failed: it is not charged."""
        if course.entry is not None and self._files.ledger is not None:
            entry, course.entry = course.entry, None
            with suppress(MiyabiError):  # else it stays held, and so counts as spent
                self._files.ledger.drop(entry)

    def finish(self, asked: Asked, course: Course) -> None:
        """The end of a request: what it cost or saved, and how it went."""
        with suppress(MiyabiError):  # what was held stays held: it counts as spent
            self._settle(course)
        self._write(
            {
                "kind": "outcome",
                "decision": course.record,
                "target": course.target.name if course.target is not None else "",
                "attempts": [f"{name}={what}" for name, what in course.tried],
                "status": course.status,
                "broken": course.broken.kind if course.broken is not None else "",
                "adapted": list(course.changes),
                "usage": asdict(course.usage),
                "seconds": round(course.seconds, 3),
            }
        )

    def world(self) -> dict[str, Any]:
        """How targets and money stand, for the page. Nothing of any request."""
        health = self.circuits.health() | self._elsewhere
        targets = [
            {
                "name": t.name,
                "kind": t.kind,
                "model": t.endpoint.model,
                "url": t.endpoint.base_url,
                "healthy": health[t.name].healthy,
                "circuit": health[t.name].circuit,
                "why": health[t.name].why,
            }
            for t in self._policy.targets
        ]
        budget = self._policy.budget
        self.settle_local()
        money: dict[str, Any] = {"monthly_usd": budget.monthly_usd, "prices_as_of": self._files.prices.as_of}
        if self._files.ledger is not None:
            money |= asdict(self._files.ledger.totals())
        policy = {"source": self._policy.source, "digest": self._policy.digest, "error": self._policy.error}
        return {
            "mode": self._policy.mode,
            "policy": policy,
            "books": self._files.why,
            "targets": targets,
            "money": money,
        }

    async def _scan(self, asked: Asked, headers: Mapping[str, str]) -> Scan:
        dialect, data = dialects.dialect(asked.path), asked.body.data
        privacy, limits = self._policy.privacy, self._policy.limits
        if len(data) <= ASIDE:
            return scan_request(data, dialect, headers, self._cache, privacy, limits)
        # most of a long conversation was looked through at its last turn: then it is done before a thread would begin
        short = replace(limits, scan_seconds=min(SHORT_S, limits.scan_seconds))
        scan = scan_request(data, dialect, headers, self._cache, privacy, short)
        if scan.seconds < short.scan_seconds:
            return scan
        return await asyncio.to_thread(scan_request, data, dialect, headers, self._cache, privacy, limits)

    def _state(self, asked: Asked, facts: Facts) -> State:
        costs, left = {}, None
        budget = self._policy.budget
        if budget.monthly_usd is not None or budget.per_request_usd is not None:
            for target in self._policy.targets:
                price = None if target.local else self._price(target, target.endpoint.model or facts.model)
                if price is not None:
                    costs[target.name] = self._worst(price, len(asked.body.data), facts.max_tokens)
        if budget.monthly_usd is not None:
            left = 0.0
            with suppress(MiyabiError):
                left = self._files.ledger.left(budget.monthly_usd) if self._files.ledger is not None else 0.0
        health = self.circuits.health() | self._elsewhere
        if self._files.why and (self._files.audit is None or self._files.ledger is None):
            shut = Health(False, why=f"the books cannot be kept: {self._files.why}")
            health |= {t.name: shut for t in self._policy.targets if not t.local}
        return State(health, left, costs)

    def _price(self, target: Target, model: str) -> Price | None:
        return self._files.prices.of(target.price or model)

    def _worst(self, price: Price | None, size: int, most: int) -> float:
        return prices.worst(price, size, most or self._policy.limits.default_max_tokens) if price is not None else 0.0

    def _remember(self, facts: Facts, decision: Decision, scan: Scan) -> None:
        """Keep a session private from now on that showed more than what the policy takes for granted."""
        if decision.verdict > self._policy.privacy.default_verdict and self._files.taints is not None:
            with suppress(MiyabiError):  # `of` then says confidential
                self._files.taints.mark(facts.session, decision.verdict, scan.marks)

    def _settle(self, course: Course) -> None:
        ledger, target = self._files.ledger, course.target
        if ledger is None or target is None:
            return
        used = _usage(course.usage)
        model = target.endpoint.model or course.model
        if target.local:
            if course.status == 200 and course.broken is None:
                saved = saving(self._policy, course.model, self._files.prices, used, course.seconds)
                name = model if _NAME.fullmatch(model) else ""
                self._later((time.time(), target.name, name, used, saved))
        elif course.entry is not None:
            price = self._price(target, model)
            known = price is not None and course.broken is None and course.done
            ledger.settle(course.entry, prices.cost(price, used) if price is not None and known else None, used)

    def _later(self, answer: tuple[float, str, str, prices.Usage, Saving]) -> None:
        """Put a local answer into the ledger soon, together with others: it costs no money, so it need not be safe."""
        self._answers.append(answer)
        if len(self._answers) == 1:
            asyncio.get_running_loop().call_later(SOON_S, self.settle_local)

    def settle_local(self) -> None:
        """Put the local answers so far into the ledger."""
        answers, self._answers = self._answers, []
        if self._files.ledger is not None and answers:
            with suppress(MiyabiError):
                self._files.ledger.locals(answers)

    def _write(self, event: Mapping[str, Any]) -> str:
        """A line of the audit, not waited for; its number, empty when it could not be written."""
        if self._files.audit is None:
            return ""
        try:
            return str(self._files.audit.append(event, sync=False))
        except MiyabiError:
            return ""

    def _event(self, asked: Asked, facts: Facts, decision: Decision) -> dict[str, Any]:
        files = self._files
        session = files.taints.name(facts.session) if files.taints is not None and facts.session else ""
        sealed = keys.seal(files.key, asked.body.data, "body")
        return record.decided(facts, decision, self._policy, sealed, session) | {"bytes": len(asked.body.data)}


def _usage(usage: Usage) -> prices.Usage:
    return prices.Usage(usage.input, usage.output, usage.cache_read, usage.cache_write)
