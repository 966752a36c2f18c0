"""What tokens cost: by prices the user gives, and by the electricity that was measured. No price is built in. Pure."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from miyabi_llm.errors import BadUsage

MILLION = 1e6
JOULES_PER_KWH = 3.6e6

EXAMPLE = """date = 2026-11-01
currency = "USD"
[models.NAME]
input = 0.0
output = 0.0"""


@dataclass(frozen=True, slots=True)
class Price:
    """What somebody takes for a million tokens of prompts (`input`) and of answers (`output`).

    `date` is when the price was looked up, empty when nobody said.
    """

    name: str
    input: float
    output: float
    currency: str = ""
    date: str = ""


@dataclass(frozen=True, slots=True)
class Cost:
    """What the tokens of a run would cost at one price, and per million tokens (prompts and answers together)."""

    name: str
    total: float
    per_million: float
    currency: str = ""
    date: str = ""


def at(price: Price, prompt_tokens: float, output_tokens: float) -> Cost | None:
    """The cost of so many tokens; None without any."""
    tokens = prompt_tokens + output_tokens
    if tokens <= 0:
        return None
    total = (prompt_tokens * price.input + output_tokens * price.output) / MILLION
    return Cost(price.name, total, total * MILLION / tokens, price.currency, price.date)


def electricity(joules: float | None, price_kwh: float | None, tokens: float) -> Cost | None:
    """What the measured energy costs; None where it was not measured or no price was given."""
    if joules is None or price_kwh is None or tokens <= 0:
        return None
    total = joules / JOULES_PER_KWH * price_kwh
    return Cost("electricity", total, total * MILLION / tokens)


def read_prices(path: Path) -> tuple[Price, ...]:
    """The user's own price table: TOML with a date, a currency and `[models.NAME]` tables of `input` and `output`.

    Raises BadUsage for a file that cannot be read, without a date, or with an entry that is no price.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise BadUsage(f"--prices {path}: {e}", hint=f"It looks like:\n{EXAMPLE}") from e
    when, models = table.get("date"), table.get("models")
    if not isinstance(when, date | str) or not when or not isinstance(models, dict) or not models:
        raise BadUsage(f"--prices {path}: a price table has a date and models", hint=f"It looks like:\n{EXAMPLE}")
    return tuple(_price(path, name, entry, table, str(when)) for name, entry in models.items())


def _price(path: Path, name: str, entry: Any, table: Mapping[str, Any], when: str) -> Price:
    numbers = [entry.get(key) if isinstance(entry, dict) else None for key in ("input", "output")]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise BadUsage(f"--prices {path}: models.{name} needs `input` and `output`, per million tokens")
    return Price(name, float(numbers[0] or 0), float(numbers[1] or 0), str(table.get("currency", "")), when)
