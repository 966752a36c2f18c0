"""A server's refusal as an error a person can act on: pure, from status and body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from miyabi_llm.client.values import error_text
from miyabi_llm.errors import AccessDenied, MiyabiError, ModelMissing, NetworkError, PromptTooLong, ServerFailed
from miyabi_llm.types import Endpoint


def refusal(endpoint: Endpoint, status: int, body: Mapping[str, Any], retry_after: str | None = None) -> MiyabiError:
    """The error for an HTTP status other than 200."""
    said = error_text(body) if body else "(no message)"
    where = endpoint.base_url
    inner = body.get("error")
    kind = inner if isinstance(inner, dict) else {}
    if kind.get("type") == "exceed_context_size_error":
        return too_long(kind.get("n_prompt_tokens"), kind.get("n_ctx"))
    if 300 <= status < 400:
        return NetworkError(f"{where} wants to redirect the request ({status}); refused", hint="Use its final address.")
    if status in (401, 403):
        return AccessDenied(
            f"{where} refuses the request ({status}): {said}",
            hint="Give the name of the variable that holds its key: --key-env NAME.",
        )
    if status == 404 and "model" in said.lower():
        return ModelMissing(f"{where}: {said}", hint="`miyabi-llm run --url URL` without a name takes its first model.")
    if status == 429:
        wait = f"; it asks to wait {retry_after[:20]} s" if retry_after else ""
        return NetworkError(f"{where} has too many requests{wait}: {said}", status=status)
    if status == 503:
        return ServerFailed(f"{where} is not ready: {said}", hint="Try again when the model is loaded.", status=status)
    return NetworkError(f"{where} answered {status}: {said}", status=status)


def too_long(prompt: object, context: object) -> PromptTooLong:
    """The prompt does not fit: the numbers, and what to do."""
    prompt_n, context_n = (n if isinstance(n, int) else None for n in (prompt, context))
    numbers = f"the prompt has {_n(prompt_n)} tokens; the context is {_n(context_n)}"
    hint = "Cut the prompt, or serve the model with a larger context: --ctx N."
    return PromptTooLong(
        f"{numbers}: refused, nothing was cut off", hint=hint, prompt_tokens=prompt_n, context=context_n
    )


def unreachable(endpoint: Endpoint, why: str) -> NetworkError:
    """Nobody answers, or the connection failed before the answer began."""
    hint = "Is it running? `miyabi-llm ps` lists the servers started here; `miyabi-llm serve REF` starts one."
    return NetworkError(f"no answer from {endpoint.base_url}: {why}", hint=hint)


def _n(value: int | None) -> str:
    return "too many" if value is None else f"{value:,}"
