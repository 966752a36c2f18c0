"""What answering here saved: against the model that would have been used, electricity included."""

from __future__ import annotations

from dataclasses import dataclass

from miyabi_llm.route.prices import Prices, Usage, cost
from miyabi_llm.route.values import Electricity, Policy


@dataclass(frozen=True, slots=True)
class Saving:
    """US dollars. `instead` is the model that would have been used, empty when its price is not known: then no saving
    is claimed. `cloud` is what it would have cost for as many tokens, `power` what the answer here cost."""

    instead: str
    cloud: float
    power: float

    @property
    def net(self) -> float:
        """What was saved; below zero when the answer here was the dearer one."""
        return self.cloud - self.power


def power(seconds: float, electricity: Electricity) -> float:
    """US dollars of electricity for `seconds` of work: watts x hours / 1000 x price / rate. Pure."""
    return electricity.watts * seconds / 3_600_000 * electricity.price_per_kwh / electricity.per_usd


def instead(policy: Policy, asked: str, prices: Prices) -> str:
    """The model a cloud would have answered with: the one asked for, or the first cloud target's; empty if unknown."""
    cloud = next((t for t in policy.targets if not t.local), None)
    for model in (asked, cloud.price if cloud else "", cloud.endpoint.model if cloud else ""):
        if model and prices.of(model):
            return model
    return ""


def saving(policy: Policy, asked: str, prices: Prices, usage: Usage, seconds: float) -> Saving:
    """What a local answer of `usage` tokens in `seconds` saved. The other tokenizer would count otherwise: it is an
    estimate by our own target's tokens. Pure."""
    model = instead(policy, asked, prices)
    price = prices.of(model) if model else None
    return Saving(model, cost(price, usage) if price else 0.0, power(seconds, policy.electricity))
