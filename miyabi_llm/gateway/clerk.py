"""The judge of a running gateway: looks through each request, decides, and writes down before anything leaves."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from miyabi_llm import detect
from miyabi_llm.gateway import dialects
from miyabi_llm.gateway.asked import Asked, Missed
from miyabi_llm.gateway.passing import Course
from miyabi_llm.route import facts as fact
from miyabi_llm.route.decide import decide
from miyabi_llm.route.scan import scan_request
from miyabi_llm.route.values import Policy, State, Target

ASIDE: Final = 32 << 10  # bytes from which a body is looked through beside the others


class Clerk:
    """Decides by the policy, and by how the world stands."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._cache = detect.Cache()

    async def decide(self, asked: Asked) -> Course:
        """The decision for a request."""
        dialect = dialects.dialect(asked.path)
        headers = dict(asked.headers)
        if asked.query:
            headers["x-miyabi-query"] = asked.query
        arguments = (asked.body.data, dialect, headers, self._cache, self._policy.privacy, self._policy.limits)
        if len(asked.body.data) > ASIDE:
            scan = await asyncio.to_thread(scan_request, *arguments)
        else:
            scan = scan_request(*arguments)
        found = fact.build(dialect, asked.path, headers, scan)
        return Course(decide(self._policy, found, State()))

    async def permit(self, course: Course, target: Target) -> str:
        """The record that allows a try at a cloud."""
        return "none yet"

    def outcome(self, target: Target, missed: Missed | None) -> None:
        """What a try said about its target."""

    def usable(self, target: Target) -> bool:
        """Whether a target may still be tried."""
        return True

    def world(self) -> dict[str, Any]:
        """How targets and money stand, for the page."""
        targets = [{"name": t.name, "kind": t.kind, "model": t.endpoint.model} for t in self._policy.targets]
        return {"mode": self._policy.mode, "policy": {"error": self._policy.error}, "targets": targets}
