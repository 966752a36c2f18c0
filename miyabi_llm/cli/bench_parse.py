"""The words of `bench` as values: loads, limits, prices. Pure, but for the price table's file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from miyabi_llm.errors import BadUsage

if TYPE_CHECKING:
    from miyabi_llm.bench.cost import Price
    from miyabi_llm.bench.slo import Promise
    from miyabi_llm.bench.values import Arrival, Load

SECONDS = 30.0  # of each load when nobody says
BESIDE = 1024  # tokens of a stream's context for the question and the answer


@dataclass(frozen=True, slots=True)
class Words:
    """How much to send, as it was typed."""

    concurrency: str | None = None
    rate: str | None = None
    slo: str | None = None
    duration: float | None = None
    requests: int | None = None
    depth: str | None = None
    sweep: bool = False


@dataclass(frozen=True, slots=True)
class Sending:
    """How each load is sent."""

    arrival: str = "poisson"
    ramp: float = 0.0
    timeout: float = 300.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The loads: given ones; or one that is doubled (`sweep`); or one that is searched for `promises`, from `start`
    requests per second on (None: streams). With `sweep`, a promise about the first token ends it."""

    loads: tuple[Load, ...]
    sweep: bool = False
    promises: tuple[Promise, ...] = ()
    start: float | None = None

    @property
    def context(self) -> int:
        """Tokens of context that a server of ours needs for all streams at the deepest; 0 where no depth was asked."""
        deepest = max(load.depth for load in self.loads)
        streams = max(load.concurrency or 1 for load in self.loads)
        return (deepest + BESIDE) * streams if deepest else 0

    @property
    def searching(self) -> bool:
        """Whether the loads are found while measuring."""
        return self.sweep or bool(self.promises)


def plan(words: Words, sending: Sending) -> Plan:
    """The loads of a command line. Raises BadUsage."""
    from miyabi_llm.bench.slo import parse
    from miyabi_llm.bench.values import Load

    if words.concurrency and words.rate and not words.slo:
        raise BadUsage("--concurrency and --rate are two kinds of load", hint="Measure one, then the other.")
    if words.sweep and (words.concurrency or words.rate):
        raise BadUsage("--sweep chooses the concurrency itself", hint="Leave out --concurrency and --rate.")
    if sending.arrival not in ("poisson", "constant"):
        raise BadUsage(f"--arrival {sending.arrival}: poisson or constant")
    seconds = words.duration if words.duration or words.requests else SECONDS
    base = Load(
        1, None, cast("Arrival", sending.arrival), words.requests, seconds, sending.ramp, sending.seed, sending.timeout
    )
    depths = _depths(words.depth)
    if (words.slo or words.sweep) and len(depths) > 1:
        raise BadUsage("a load is searched at one depth", hint="Give --depth one number.")
    base = replace(base, depth=depths[0])
    promises = parse(words.slo) if words.slo else ()
    rates = numbers(words.rate, "--rate")
    if promises and not words.sweep:
        if words.concurrency or len(rates) > 1:
            raise BadUsage("--slo searches the load itself", hint="--rate N says where to begin, in requests/s.")
        return Plan((base,), promises=promises, start=rates[0] if rates else None)
    if rates:
        return Plan(tuple(replace(base, rate=r, concurrency=None, depth=d) for d in depths for r in rates))
    streams = numbers(words.concurrency, "--concurrency") or (1.0,)
    if any(not n.is_integer() or n > 65536 for n in streams):
        raise BadUsage(f"--concurrency {words.concurrency}: whole numbers of streams")
    loads = tuple(replace(base, concurrency=int(n), depth=d) for d in depths for n in streams)
    return Plan(loads, words.sweep, promises)


def _depths(text: str | None) -> tuple[int, ...]:
    """`0,2048,8192` as whole numbers of tokens. Raises BadUsage."""
    if text is None:
        return (0,)
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 8 for part in parts) or len(set(parts)) != len(parts):
        raise BadUsage(f"--depth {text}: different whole numbers of tokens", hint="Like `--depth 0,2048,8192`.")
    return tuple(map(int, parts))


def numbers(text: str | None, option: str) -> tuple[float, ...]:
    """`1,2,4` as numbers above 0. Raises BadUsage."""
    if text is None:
        return ()
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise BadUsage(f"{option} {text}: numbers with commas between", hint=f"Like `{option} 1,2,4`.") from None
    if not all(0 < n < 1e9 for n in found) or len(set(found)) != len(found):
        raise BadUsage(f"{option} {text}: different numbers above 0")
    return found


def goals(text: str | None) -> dict[str, float]:
    """`ttft<500ms,tpot<50ms` as limits in seconds by figure. Raises BadUsage."""
    from miyabi_llm.bench.slo import parse

    if text is None:
        return {}
    parts = [part.partition("<") for part in text.split(",")]
    limits = parse(",".join(f"{name.strip()}_p50<{limit}" for name, _, limit in parts))
    return {p.metric: p.limit_s for p in limits}


@dataclass(frozen=True, slots=True)
class Tariff:
    """What tokens cost elsewhere, and a kilowatt hour here."""

    prices: tuple[Price, ...] = ()
    price_kwh: float | None = None


def tariff(price_in: float | None, price_out: float | None, table: Path | None, price_kwh: float | None) -> Tariff:
    """The prices of a command line. Raises BadUsage."""
    from miyabi_llm.bench.cost import Price, read_prices

    if (price_in is None) != (price_out is None):
        raise BadUsage("a cost needs both prices", hint="Give --price-in and --price-out; 0 is a price.")
    prices = read_prices(table) if table else ()
    if price_in is not None and price_out is not None:
        prices = (Price("your price", price_in, price_out), *prices)
    return Tariff(prices, price_kwh)
