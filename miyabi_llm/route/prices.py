"""What a cloud answer costs: a dated table, a file of the user's over it, and no number where there is none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from miyabi_llm import documents
from miyabi_llm.errors import BadUsage

AS_OF = "2026-08"
SOURCE = "platform.claude.com, pricing page, read in August 2026"
# Not on the page as it was read: what it costs to write the cache. Reckoned as in earlier price lists.
CACHE_WRITE = 1.25  # times the price of input


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens. Prompts of more than `above` tokens cost `then` (input, output).

    `open` says what of it is not certain; where sources disagree the higher price stands.
    """

    input: float
    output: float
    cache_read: float | None = None
    cache_write: float | None = None
    above: int = 0
    then: tuple[float, float] = (0.0, 0.0)
    open: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer, as the target counted them. `input` without those read from or written to its cache."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0


TABLE: Mapping[str, Price] = MappingProxyType(
    {
        "claude-fable-5-1": Price(10, 50),
        "claude-opus-5-5": Price(4, 20, cache_read=0.20),
        "claude-opus-5": Price(5, 25),
        "claude-sonnet-5-5": Price(2, 10, cache_read=0.20, open="cache reads: 0.20 on the page, 0.10 in another list"),
        "claude-haiku-5-5": Price(0.10, 0.50, above=100_000, then=(0.50, 2.50)),
        "claude-haiku-4-5": Price(1, 5),
    }
)

_PRICE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["input", "output"],
    "properties": {
        "input": {"type": "number", "minimum": 0},
        "output": {"type": "number", "minimum": 0},
        "cache_read": {"type": "number", "minimum": 0},
        "cache_write": {"type": "number", "minimum": 0},
        "above": {"type": "integer", "minimum": 1},
        "then": {"type": "array", "minItems": 2, "items": {"type": "number", "minimum": 0}},
    },
}
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["as_of", "models"],
    "properties": {
        "as_of": {"type": "string", "pattern": r"^\d{4}-\d{2}(-\d{2})?$", "x-hint": "The date of the prices: 2026-11."},
        "source": {"type": "string"},
        "models": {"type": "object", "additionalProperties": _PRICE},
    },
}


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices by model, with the date and the place they are from."""

    models: Mapping[str, Price]
    as_of: str = AS_OF
    source: str = SOURCE

    def of(self, model: str) -> Price | None:
        """The price of a model; a date at the end of its name does not count. None: not known, never guessed."""
        return self.models.get(model) or self.models.get(re.sub(r"-\d{8}$", "", model))


BUILT_IN = Prices(TABLE)


def load(path: Path) -> Prices:
    """The table with the user's file (`prices.toml`) over it, or alone where there is none. Raises BadUsage."""
    try:
        text = path.read_bytes()[: 1 << 20].decode("utf-8")
    except FileNotFoundError:
        return BUILT_IN
    except (OSError, UnicodeDecodeError) as e:
        raise BadUsage(f"{path}: {e}", hint=f"Mend or remove {path}.") from e
    document = documents.parse(text, str(path))
    documents.check(document, SCHEMA)
    own = {name: _price(body) for name, body in document.value["models"].items()}
    source = document.value.get("source", path.name)
    return Prices(MappingProxyType({**TABLE, **own}), document.value["as_of"], f"{source}, over {SOURCE}")


def _price(body: Mapping[str, Any]) -> Price:
    return Price(**{**body, "then": tuple(body.get("then", (0.0, 0.0)))[:2]})


def cost(price: Price, usage: Usage) -> float:
    """US dollars for an answer. Pure."""
    prompt = usage.input + usage.cache_read + usage.cache_write
    higher = price.above and prompt > price.above
    first, second = price.then if higher else (price.input, price.output)
    read = first if price.cache_read is None or higher else price.cache_read
    write = first * CACHE_WRITE if price.cache_write is None or higher else price.cache_write
    tokens = usage.input * first + usage.output * second + usage.cache_read * read + usage.cache_write * write
    return tokens / 1e6


def worst(price: Price, size: int, most: int) -> float:
    """The most a request can cost, in US dollars: `size` bytes of body as one token each, all written to the cache at
    the highest price, and `most` tokens of answer. No tokenizer makes more tokens than there are bytes. Pure."""
    usage = Usage(output=most, cache_write=size)
    return max(cost(price, usage), cost(price, Usage(input=size, output=most)))
