"""A model in a server that is not ours: handed over, proven to answer, never started or ended by us."""

from __future__ import annotations

from miyabi_llm import backends
from miyabi_llm.errors import ServerFailed
from miyabi_llm.serve.check import check_running
from miyabi_llm.serve.prepare import wake
from miyabi_llm.serve.values import Limits
from miyabi_llm.types import Endpoint, Event, LaunchPlan, OnEvent, silent

DEFAULT = Limits()


def hand_over(plan: LaunchPlan, on_event: OnEvent) -> None:
    """Give the plan's model to the server that answers on its endpoint, if the plan says so."""
    if plan.handover is None:
        return
    on_event(Event("phase", "hand over", f"{plan.endpoint.model} to {plan.backend}"))
    with backends.get(plan.backend).control(plan.endpoint) as control:
        control.add(plan.handover, on_event)


def attach(plan: LaunchPlan, on_event: OnEvent = silent, *, limits: Limits = DEFAULT) -> Endpoint:
    """The plan's endpoint once it is proven: it offers the model and a token came out of it.

    Raises ServerFailed when it does not answer, offers another model or gives no token, and what the handover raises.
    """
    from miyabi_llm.serve.probe import Probe  # brings httpx

    endpoint = plan.endpoint
    with Probe(plan) as probe:
        if plan.wake and not probe.healthy():
            wake(plan, on_event)
        if not probe.healthy():
            raise ServerFailed(
                f"no {plan.backend} answers on {endpoint.base_url}", hint="Start it, or leave out --backend."
            )
        hand_over(plan, on_event)
        verdict, why = probe.identity()
        if verdict != "ours":
            raise ServerFailed(f"{plan.backend} on {endpoint.base_url}: {why}", hint="`miyabi-llm backend list`")
        outcome, why = probe.token(limits.first_token_s)
        if outcome != "ok" and not (outcome == "refused" and "with 501" in why):  # 501: embeddings only
            raise ServerFailed(f"{endpoint.model}: {plan.backend} is up but does not answer: {why or outcome}")
    check_running(plan, on_event)
    on_event(Event("phase", "attached", f"{plan.backend} on {endpoint.base_url}"))
    return endpoint
