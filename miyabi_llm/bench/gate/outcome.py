"""A judgement as a process ends with it: nothing, or the error whose exit code says which answer it was."""

from __future__ import annotations

import json
import math
from typing import Any

from miyabi_llm.bench.gate.values import Judgement
from miyabi_llm.errors import GateFailed, Inconclusive, InvalidMeasurement, MiyabiError
from miyabi_llm.types import plain

_ERRORS: dict[str, tuple[type[MiyabiError], str, str]] = {
    "fail": (GateFailed, "the gate failed", "the report and its rounds show what changed"),
    "inconclusive": (
        Inconclusive,
        "it cannot be told whether the gate holds",
        "give it more time (--budget), a quieter machine, or a wider tolerance (--fail-on)",
    ),
    "invalid": (
        InvalidMeasurement,
        "the measurement must not be used",
        "remove the reason and measure again",
    ),
}


def enforce(judgement: Judgement) -> None:
    """Raise GateFailed (exit 5), Inconclusive (6) or InvalidMeasurement (7) with the judgement; return on a pass."""
    if judgement.outcome == "pass":
        return
    error, words, hint = _ERRORS[judgement.outcome]
    raise error(f"{words}: {'; '.join(judgement.reasons)}", hint=hint, judgement=as_dict(judgement))


def as_dict(judgement: Judgement) -> dict[str, Any]:
    """The judgement as JSON can hold it: what is not known is None. Pure."""
    found = _known(plain(judgement))
    assert isinstance(found, dict)
    return found


def as_json(judgement: Judgement) -> str:
    """The judgement as JSON text."""
    return json.dumps(as_dict(judgement), ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _known(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_known(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
