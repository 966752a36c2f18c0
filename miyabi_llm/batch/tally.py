"""Counting what the output file holds: pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from miyabi_llm.batch.values import Prices


@dataclass(slots=True)
class Tally:
    """Rows and tokens seen so far."""

    done: int = 0
    failed: int = 0
    cut: int = 0
    uncounted: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def rows(self) -> int:
        """All that is finished, well or not."""
        return self.done + self.failed

    def add(self, document: dict[str, Any]) -> None:
        """Count one line of the output."""
        if is_failed(document):
            self.failed += 1
        else:
            self.done += 1
        body = (document.get("response") or {}).get("body")
        body = body if isinstance(body, dict) else {}
        choices = body.get("choices")
        reasons = [c.get("finish_reason") for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
        self.cut += "length" in reasons
        usage = body.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        self.uncounted += not usage and not is_failed(document)
        self.prompt_tokens += _count(usage.get("prompt_tokens"))
        self.completion_tokens += _count(usage.get("completion_tokens"))

    def cost(self, prices: Prices | None) -> float | None:
        """What the tokens cost, in the currency of the prices."""
        if prices is None:
            return None
        return (self.prompt_tokens * prices.prompt + self.completion_tokens * prices.completion) / 1e6


def is_failed(document: dict[str, Any]) -> bool:
    """Whether a line of the output tells of a failure."""
    response = document.get("response")
    return bool(document.get("error")) or not isinstance(response, dict) or response.get("status_code") != 200


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
