"""What a server's answer to one request means, and the line that is written of it: pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from miyabi_llm.batch.rows import finite, no_constant
from miyabi_llm.batch.values import URLS, Judge, Row

_BUSY = frozenset({429, 503})  # the server takes no request now: waiting is no try
_AGAIN = frozenset({408, 409, 425})  # of the 4xx these alone may end well when they are sent again
_LIST = {"chat": "choices", "completions": "choices", "embeddings": "data"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended. Only `final` is a result; `busy` and `broken` may be asked again.

    `status` and `body` are the server's (0 and None when no whole answer came), `code` and `message` say what is
    wrong beside the status. `wait_s` is what the server asks for before the next try.
    """

    state: Literal["final", "busy", "broken"]
    status: int = 0
    body: Any = None
    request_id: str = ""
    code: str = ""
    message: str = ""
    wait_s: float | None = None


def read(row: Row, status: int, headers: Mapping[str, str], data: bytes, now: datetime | None = None) -> Outcome:
    """What a whole answer means. An error under status 200, or a 200 without what was asked for, is no success."""
    body, wrong = _body(data)
    request_id = headers.get("x-request-id", "")
    wait = retry_after(headers.get("retry-after", ""), now or datetime.now(UTC))
    if status == 200:
        wrong = wrong or _incomplete(row, body)
        state: Literal["final", "broken"] = "broken" if wrong else "final"
        return Outcome(state, status, body, request_id, "bad_answer" if wrong else "", wrong, wait)
    if status in _BUSY:
        return Outcome("busy", status, body, request_id, wait_s=wait)
    again = status in _AGAIN or (status >= 500 and status != 501)
    return Outcome("broken" if again else "final", status, body, request_id, wait_s=wait)


def judged(outcome: Outcome, row: Row, judge: Judge | None) -> Outcome:
    """The outcome with what `judge` has to say about the text of a chat answer."""
    if judge is None or not succeeded(outcome) or URLS[row.url] != "chat":
        return outcome
    for choice in outcome.body["choices"]:
        message = choice.get("message") if isinstance(choice, dict) else None
        text = message.get("content") if isinstance(message, dict) else None
        if wrong := judge(text if isinstance(text, str) else ""):
            return replace(outcome, code="schema", message=wrong)
    return outcome


def succeeded(outcome: Outcome) -> bool:
    """Whether the answer is what was asked for."""
    return outcome.status == 200 and not outcome.code


def document(row: Row, outcome: Outcome, name: str) -> dict[str, Any]:
    """The line of the output file: as a batch service writes it, refusals of the server included."""
    response = None
    if outcome.status:
        response = {"status_code": outcome.status, "request_id": outcome.request_id, "body": outcome.body}
    error = {"code": outcome.code, "message": outcome.message} if outcome.code else None
    return {"id": name, "custom_id": row.custom_id, "response": response, "error": error}


def retry_after(text: str, now: datetime) -> float | None:
    """Seconds to wait by a Retry-After header: a number or a date; None when it says nothing."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - now).total_seconds()
        except (ValueError, TypeError):  # no date, or one without a zone
            return None
    return seconds if 0 <= seconds < float("inf") else None


def _body(data: bytes) -> tuple[Any, str]:
    """The body as JSON, or as text with what is wrong with it."""
    try:
        return json.loads(data, parse_constant=no_constant, parse_float=finite), ""
    except (ValueError, RecursionError):
        return data[:4000].decode("utf-8", "replace"), "the answer is not JSON"


def _incomplete(row: Row, body: Any) -> str:
    if not isinstance(body, dict):
        return "the answer is not a JSON object"
    if body.get("error"):
        return "an error came with status 200"
    key = _LIST[URLS[row.url]]
    found = body.get(key)
    if not isinstance(found, list) or not found:
        return f"the answer has no `{key}`"
    return ""
